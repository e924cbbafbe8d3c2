"""Full: train all weights of the named parts, freeze the others."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from alignlab.adapters.placing import check_whole
from alignlab.adapters.switching import adapter_parameters
from alignlab.errors import InputError
from alignlab.modules.parted import PARTS, Part, Parted


class Adapter(ABC):
    """Which of a backbone's weights train; an axis of its own, crossing with every objective."""

    @abstractmethod
    def apply(self, backbone: Parted) -> None:
        """Change the backbone in place, before the optimizer is made."""


class Full(Adapter):
    """Train all weights of the named parts and freeze the others.

    Adapters that are there already, of an earlier stage, stay as they are, frozen and at work. So does a visual
    tokenizer, until an objective trains it.

    Args:
        parts: Any of vision_tower, projector, language_model.
    """

    def __init__(self, *, parts: Sequence[Part] = PARTS) -> None:
        if not parts or (unknown := set(parts) - set(PARTS)):
            came = ", ".join(sorted(unknown)) if parts else "none"
            raise InputError(f"Full needs one or more of {', '.join(PARTS)}, got {came}")
        self.parts = tuple(parts)

    def apply(self, backbone: Parted) -> None:
        check_whole("Full", backbone, self.parts)
        backbone.requires_grad_(False)
        for parameter, part in backbone.part_of():
            parameter.requires_grad_(part in self.parts)
        for parameter in adapter_parameters(backbone.model):
            parameter.requires_grad_(False)
