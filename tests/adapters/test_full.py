import pytest

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.backbones import PARTS


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
