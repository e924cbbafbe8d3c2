"""vlm: the vision-language models of transformers, read or drawn anew."""

from typing import Any

from torch import nn
from transformers import AutoModelForImageTextToText

from alignlab.adapters.merging import fold
from alignlab.adapters.placing import adapters_of
from alignlab.backbones.parts import parts_of
from alignlab.backbones.reading import random_model, read_model
from alignlab.modules.parted import Part

WHAT = "vision-language model"


def read(path: str, settings: dict[str, Any]) -> Any:
    """Read a model, with its adapters in place where it was saved with some."""
    return read_model(AutoModelForImageTextToText, path, settings, what=WHAT)


def draw(path: str, settings: dict[str, Any]) -> Any:
    """Draw a model of a directory's config."""
    return random_model(AutoModelForImageTextToText, path, settings, what=WHAT)


def giving(path: str, part: Part, settings: dict[str, Any]) -> dict[str, nn.ModuleList]:
    """The parts of a model, of which one is to be taken: with its adapters merged.

    Raises:
        InputError: They cannot be.
    """
    model = read(path, settings)
    parts = parts_of(model)
    fold(parts[part], adapters_of(model), f"backbone.take: the {part} of {path}")
    return parts
