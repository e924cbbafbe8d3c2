"""Adapters of every family: what is written is read by peft as by alignlab, and merges into the plain names."""

import pytest
import torch
from adapting import disturb
from families import CONFIGS, make, sequences
from peft import PeftModel

import alignlab.adapters.plora  # noqa: F401  so that peft knows PLoRA
from alignlab.adapters import LoRA, PLoRA
from alignlab.adapters.merging import merged_weights, unadapted_weights
from alignlab.adapters.placing import adapters_of
from alignlab.adapters.storing import read_adapters, write_adapters
from alignlab.backbones import PARTS


@pytest.mark.parametrize("adapter", [LoRA(rank=2), PLoRA(ranks={"visual": 2}), PLoRA(ranks={"visual": 2, "all": 1})])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_written_is_read_by_peft_and_here(family, adapter, tmp_path):
    backbone = make(family)
    adapter.apply(backbone)
    disturb(backbone)
    tokens = sequences(backbone)
    write_adapters(backbone.model, tmp_path, base="tiny", dtype=None)
    wanted = backbone.hidden(tokens)

    again = make(family).eval()
    assert not torch.allclose(again.hidden(tokens), wanted, atol=1e-3)
    names = list(adapters_of(backbone.model))
    read_adapters(again.model, tmp_path, names)
    assert torch.equal(again.hidden(tokens), wanted)

    plain = make(family).eval()
    first, *others = names
    wrapped = PeftModel.from_pretrained(plain.model, tmp_path / first if others else tmp_path, adapter_name=first)
    for name in others:
        wrapped.load_adapter(tmp_path / name, adapter_name=name)
    wrapped.base_model.set_adapter(names)
    wrapped.eval()
    assert torch.equal(plain.hidden(tokens), wanted)


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Pixtral"])
def test_branches_everywhere_are_read_bit_for_bit(family, tmp_path):
    backbone, again = make(family), make(family).eval()
    LoRA(rank=2, parts=PARTS).apply(backbone)
    disturb(backbone)
    write_adapters(backbone.model, tmp_path, base="tiny", dtype=None)
    read_adapters(again.model, tmp_path, ["lora"])
    tokens, state = sequences(backbone), again.model.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in backbone.model.state_dict().items())
    assert torch.allclose(again.hidden(tokens), backbone.hidden(tokens), atol=1e-5)
    backbone.requires_grad_(False)  # torch multiplies strided inputs in another order by weights that train
    assert torch.equal(again.hidden(tokens), backbone.hidden(tokens))


@pytest.mark.parametrize("family", CONFIGS)
def test_merged_weights_have_the_plain_names_and_compute_the_same(family):
    backbone, plain = make(family), make(family).eval()
    before = plain.model.state_dict()
    LoRA(rank=2, parts=["vision_tower", "language_model"]).apply(backbone)
    disturb(backbone)
    tokens = sequences(backbone)
    assert all(torch.equal(each, before[name]) for name, each in unadapted_weights(backbone.model).items())
    assert unadapted_weights(backbone.model).keys() == before.keys()
    plain.model.load_state_dict(merged_weights(backbone.model, adapters_of(backbone.model)))
    assert torch.allclose(plain.hidden(tokens), backbone.hidden(tokens), atol=1e-4)
