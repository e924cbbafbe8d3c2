"""vlm: the vision-language models of transformers, read or drawn anew, and their three parts."""

from typing import Any

from torch import nn
from transformers import AutoModelForImageTextToText

from alignlab.adapters.merging import fold
from alignlab.adapters.placing import adapters_of
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


def parts_of(model: Any) -> dict[str, nn.ModuleList]:
    """The modules of each part."""
    vision_tower, decoder = model.get_encoder(modality="image"), model.get_decoder()
    between = [module for module in model.base_model.children() if module is not vision_tower and module is not decoder]
    # Some families keep single vectors beside the modules, such as the mark between the rows of an image.
    between += [nn.ParameterList(model.base_model.parameters(recurse=False))]
    return {
        "vision_tower": nn.ModuleList([vision_tower]),
        "projector": nn.ModuleList(between),
        "language_model": nn.ModuleList([decoder, model.get_output_embeddings()]),
    }
