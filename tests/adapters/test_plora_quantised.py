"""PLoRA over quantised weights, nf4 and int8, where bitsandbytes is installed."""

import pytest
import torch
from families import TEXT, Bare, llava, sequences
from test_plora_method import Official, adapted, config
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, LlamaConfig

from alignlab import InputError
from alignlab.adapters import PLoraModel, adapter_parameters, adapters_off

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow
KINDS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(params=KINDS)
def backbone(request, tmp_path):
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # blocks of nf4 are 64 wide
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(llava(LlamaConfig(**TEXT | wide))).save_pretrained(tmp_path)
    kept = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    settings = BitsAndBytesConfig(**KINDS[request.param], llm_int8_skip_modules=kept)
    return Bare(
        AutoModelForImageTextToText.from_pretrained(
            tmp_path, quantization_config=settings, device_map="cpu", dtype=torch.float32
        )
    )


def test_quantised_layers_are_adapted_as_others(backbone):
    tokens, text = sequences(backbone), sequences(backbone, text_only=True)
    with torch.no_grad():
        base = [backbone.hidden(each) for each in (tokens, text)]
    tuner = adapted(backbone)
    layer = backbone.model.get_decoder().layers[0].mlp.up_proj
    assert len(tuner.targeted_module_names) == 14 and type(layer).__name__ in ("Linear4bit", "Linear8bitLt")
    found = backbone.hidden(tokens)
    assert torch.equal(backbone.hidden(text), base[1]) and not torch.allclose(found, base[0])
    with adapters_off(backbone):
        assert torch.equal(backbone.hidden(tokens), base[0])
    found.square().mean().backward()
    expected = [each.grad.clone() for each in adapter_parameters(backbone.model)]
    assert len(expected) == 28 and all(each.any() for each in expected)
    backbone.model.zero_grad()
    backbone.model.enable_input_require_grads()
    backbone.model.train()
    backbone.model.gradient_checkpointing_enable()
    losses = [backbone.hidden(each).square().mean() for each in (tokens, text)]
    sum(losses).backward()
    torch.testing.assert_close([each.grad for each in adapter_parameters(backbone.model)], expected)
    backbone.model.gradient_checkpointing_disable()
    backbone.model.eval()
    for work in (tuner.merge_adapter, layer.merge):
        with pytest.raises(InputError, match="cannot merge a"):
            work()
    masks = [tokens.image_mask]
    for name in tuner.targeted_module_names:
        parent, _, end = name.rpartition(".")
        setattr(backbone.model.get_submodule(parent), end, Official(backbone.model.get_submodule(name), "a", masks))
    with torch.no_grad():  # what their layers give must not be changed in place
        torch.testing.assert_close(backbone.hidden(tokens), found, rtol=1e-4, atol=1e-5)


def test_generation_over_quantised_weights(backbone):
    PLoraModel(backbone.model, {"a": config()}, "a")
    tokens = sequences(backbone, side="left")
    ways = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": 999}
    found = backbone.model.generate(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision, **ways
    )
    with adapters_off(backbone):
        base = backbone.model.generate(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision, **ways
        )
    assert torch.equal(found, base)  # a fresh adapter's B is zero
