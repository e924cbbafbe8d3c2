"""The low-rank branch of some tokens: the recorded values of the official class, by hand, and at its limits."""

import pytest
import torch
from torch.nn import functional as F

from alignlab.functional import partial_lora


def layer(x, mask, weights, name="", *, scaling):
    """A linear layer with its branch."""
    base = F.linear(x, weights[f"{name}weight"], weights.get(f"{name}bias"))
    return base + partial_lora(
        x, mask, weights[f"{name}Plora_A.weight"], weights[f"{name}Plora_B.weight"], scaling=scaling
    )


def swiglu(x, mask, weights, *, scaling):
    gate, up = (layer(x, mask, weights, f"{name}.", scaling=scaling) for name in ("w1", "w3"))
    return layer(F.silu(gate) * up, mask, weights, "w2.", scaling=scaling)


@pytest.mark.parametrize(("file", "work", "num_cases"), [("plora_linear", layer, 12), ("plora_swiglu_mlp", swiglu, 2)])
def test_it_is_the_official_class(golden, file, work, num_cases):
    seen = set()
    for case in golden(f"adapters_tokenizer/{file}")["cases"]:
        given, settings, expected = (tensors(case[part]) for part in ("inputs", "config", "expected"))
        seen.add(case["case"])
        x = given["x"].requires_grad_()
        weights = {name: value.requires_grad_() for name, value in tensors(case["weights"]).items()}
        mask = given["im_mask"].bool().reshape(x.shape[:2])
        y = work(x, mask, weights, scaling=settings["lora_alpha"] / settings["lora_r"])
        torch.testing.assert_close(y, expected["y"], rtol=1e-4, atol=1e-5)
        (y * given["cotangent"]).sum().backward()
        for name, gradient in tensors(case["expected_grads"]).items():
            found = (x if name == "x" else weights[name]).grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)
    assert len(seen) == num_cases and any("none" in name for name in seen)


def tensors(recorded):
    """The recorded values, those of arrays as tensors."""
    return {name: torch.tensor(each["values"]) if isinstance(each, dict) else each for name, each in recorded.items()}


def test_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    lora_a, lora_b = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5], [0.0]])
    found = partial_lora(hidden, torch.tensor([[False, True]]), lora_a, lora_b, scaling=3.0)
    assert found.tolist() == [[[0.0, 0.0, 0.0], [-6.0, -1.5, 0.0]]]


def test_others_may_hold_anything():
    hidden = torch.tensor([[[float("nan")] * 2, [float("inf")] * 2, [1.0, 2.0]]], requires_grad=True)
    lora_a, lora_b = (torch.ones(shape, requires_grad=True) for shape in ((1, 2), (3, 1)))
    found = partial_lora(hidden, torch.tensor([[False, False, True]]), lora_a, lora_b, scaling=1.0)
    assert found.tolist() == [[[0.0] * 3, [0.0] * 3, [3.0] * 3]]
    found.sum().backward()
    assert hidden.grad[0, :2].tolist() == [[0.0] * 2] * 2 and lora_a.grad.isfinite().all()


def test_where_there_are_none_gradients_are_zeros():
    lora_a, lora_b = (torch.randn(shape, requires_grad=True) for shape in ((2, 4), (3, 2)))
    hidden = torch.full((2, 3, 4), float("inf"))
    found = partial_lora(hidden, torch.zeros(2, 3, dtype=torch.bool), lora_a, lora_b, scaling=2.0)
    found.sum().backward()
    assert not found.any() and not lora_a.grad.any() and not lora_b.grad.any()


def test_all_tokens_are_plain_lora():
    torch.manual_seed(0)
    hidden, lora_a, lora_b = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(5, 2)
    found = partial_lora(hidden, torch.ones(2, 3, dtype=torch.bool), lora_a, lora_b, scaling=0.5)
    torch.testing.assert_close(found, 0.5 * hidden @ lora_a.T @ lora_b.T)


def test_other_shapes_are_refused():
    hidden, mask, lora_a, lora_b = (
        torch.ones(1, 2, 4),
        torch.ones(1, 2, dtype=torch.bool),
        torch.ones(2, 4),
        torch.ones(3, 2),
    )
    for wrong in (
        (hidden, mask.long(), lora_a, lora_b), (hidden, mask[:, :1], lora_a, lora_b), (hidden, mask, lora_a, lora_b.T),
        (hidden[..., :3], mask, lora_a, lora_b),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"mask \(B, T\) bool"):
            partial_lora(*wrong, scaling=1.0)
