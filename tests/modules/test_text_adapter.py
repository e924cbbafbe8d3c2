import pytest
import torch

from alignlab.functional import normalize
from alignlab.modules import TextAdapter


def renamed(weights, num_blocks):
    """The official state dict under our names: fn = (Linear, GELU, Dropout, Linear) and ln in each block."""
    names = {f"text_adaptor.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(num_blocks)
             for theirs, ours in (("ln", 0), ("fn.0", 1), ("fn.3", 3))}  # fmt: skip
    names |= {f"text_adaptor.{num_blocks}": "norm", f"text_adaptor.{num_blocks + 1}": "linear"}
    found = {}
    for key, value in weights.items():
        module, _, kind = key.rpartition(".")
        found[f"{names[module]}.{kind}"] = torch.tensor(value, dtype=torch.float64)
    return found


def test_matches_llm2clip(golden):
    file = golden("contrastive/llm2clip_TextProj_adapter")
    assert {case["params"]["l2_norm"] for case in file["cases"]} == {True, False}
    for case in file["cases"]:
        given = case["params"]
        adapter = TextAdapter(given["embedding_dim"], given["output_dim"], num_blocks=given["num_layers_text"],
                              expansion=given["expansion_factor"], normalized=given["l2_norm"]).double()  # fmt: skip
        adapter.load_state_dict(renamed(case["state_dict"], given["num_layers_text"]))
        inputs = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["inputs"].items()}
        embedding = inputs["text_embedding"].requires_grad_()
        output = adapter(embedding)
        (output * inputs["cotangent"]).sum().backward()
        close = file["tolerance"]["float64"]
        torch.testing.assert_close(output.tolist(), case["expected"]["output"], **close)
        torch.testing.assert_close(embedding.grad.tolist(), case["expected"]["grads"]["text_embedding"], **close)


def test_the_length_of_an_embedding_means_nothing_unless_asked_for():
    x = torch.randn(3, 6)
    adapter = TextAdapter(6, 4)
    expected = adapter(x)
    torch.testing.assert_close(adapter(7 * x), expected, rtol=1e-4, atol=1e-6)
    adapter.normalized = False
    assert not torch.allclose(adapter(7 * x), expected, rtol=1e-2)
    torch.testing.assert_close(adapter(normalize(x)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_computes_in_the_type_of_its_weights(dtype):
    assert TextAdapter(6, 4).to(dtype)(torch.randn(2, 6)).dtype == dtype
