"""parts: the three parts of a vision-language model of transformers."""

from typing import Any

from torch import nn


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
