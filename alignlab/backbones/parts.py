"""parts: the three parts of a vision-language model of transformers."""

from typing import Any

from torch import nn


def parts_of(model: Any) -> dict[str, nn.ModuleList]:
    """The modules of each part.

    The projector is what stands between vision tower and decoder; where nothing does, what the tower has behind its
    layers that maps to the decoder's width.
    """
    vision_tower, decoder = model.get_encoder(modality="image"), model.get_decoder()
    between = [module for module in model.base_model.children() if module is not vision_tower and module is not decoder]
    # Some families keep single vectors beside the modules, such as the mark between the rows of an image.
    between += [nn.ParameterList(model.base_model.parameters(recurse=False))]
    seeing: list[nn.Module] = [vision_tower]
    if not any(True for module in between for _ in module.parameters()):
        between = _inside(vision_tower, model.config.get_text_config().hidden_size)
        if between:
            seeing = [module for module in vision_tower.children() if module not in between]
            seeing += [nn.ParameterList(vision_tower.parameters(recurse=False))]
    return {
        "vision_tower": nn.ModuleList(seeing),
        "projector": nn.ModuleList(between),
        "language_model": nn.ModuleList([decoder, model.get_output_embeddings()]),
    }


def _inside(tower: nn.Module, width: int) -> list[nn.Module]:
    """The tower's modules behind its layers, or lists of such, that map to this width."""
    children = list(tower.children())
    lists = [index for index, module in enumerate(children) if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    return [module for module in children[lists[0] + 1 :] if _map_to(module, width)]


def _map_to(module: nn.Module, width: int) -> bool:
    if isinstance(module, nn.ModuleList):
        return len(module) > 0 and all(_map_to(each, width) for each in module)
    maps = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return bool(maps) and maps[-1].out_features == width
