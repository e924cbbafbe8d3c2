from functools import partial

import pytest
from visual import CODES, SMALL, with_tokens

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.backbones import PARTS
from alignlab.modules import AllPatches, VectorQuantizer
from alignlab.objectives import Emu, LaVIT, LaVITTokenizer


@pytest.mark.parametrize("parts", [("projector",), ("vision_tower", "language_model"), PARTS])
def test_only_the_named_parts_train(tiny_backbone, parts):
    Full(parts=parts).apply(tiny_backbone)
    for parameter, part in tiny_backbone.part_of():
        assert parameter.requires_grad == (part in parts)


def test_unknown_and_no_parts_are_refused():
    with pytest.raises(InputError, match="vision_tower, projector, language_model, got head"):
        Full(parts=["head"])
    with pytest.raises(InputError, match="got none"):
        Full(parts=[])


def test_a_visual_tokenizer_is_frozen_until_an_objective_trains_it(tiny_backbone):
    def trained():
        named = tiny_backbone.visual_tokenizer.named_parameters()
        return {name.split(".")[0] for name, each in named if each.requires_grad}

    with_tokens(tiny_backbone, AllPatches)
    assert trained()
    Full(parts=("projector",)).apply(tiny_backbone)
    assert trained() == set()
    LaVIT(tiny_backbone)
    assert trained() == {"input_merger"}
    tiny_backbone.visual_tokenizer.input_merger = None
    codes = partial(VectorQuantizer, num_codes=CODES)
    LaVITTokenizer(tiny_backbone, quantizer=codes, selection=AllPatches, **SMALL)
    assert trained() >= {"merger", "decoder", "pixel_decoder"}
    tiny_backbone.visual_tokenizer = None
    Emu(tiny_backbone, num_tokens=9)
    Full().apply(tiny_backbone)
    assert trained() == set()
    Emu(tiny_backbone)
    assert trained() == {"predict", "pixel_decoder"}
