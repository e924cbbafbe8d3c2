"""depth: how many layers a directory's model has, and the same model with fewer of them, without weights."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.backbones.composed import is_composed
from alignlab.backbones.locations import locate
from alignlab.backbones.processing import read_processor
from alignlab.backbones.reading import read_config
from alignlab.backbones.saving import TOKENIZER

KEYS = ("num_hidden_layers", "depth")
"""What configs call the number of layers."""

NAMED = ("vision_feature_layer", "deepstack_visual_indexes")
"""What configs call the vision layers that are read beside, or instead of, the last one."""


@dataclass(frozen=True)
class Depths:
    """Layers of the language model (or text tower) and of the vision tower.

    Args:
        least_vision: Fewest vision layers with which the layers are still read that the config names by number.
    """

    text: int
    vision: int
    least_vision: int = 1


def depths(path: str, text_tower: str | None = None) -> Depths | None:
    """The layers of what ``open_backbone`` would make; None: the configs do not say how many there are."""
    if is_composed(path) or (text_tower is not None and is_composed(text_tower, key="text_tower")):
        return None
    config = read_config(path, what="model")
    texts = config if text_tower is None else read_config(text_tower, what="language model", key="text_tower")
    text, vision = texts.get_text_config(), _vision(config)
    if vision is None or (text_key := _key(text)) is None or (vision_key := _key(vision)) is None:
        return None
    return Depths(getattr(text, text_key), getattr(vision, vision_key), max(_reads(config), default=1))


def shallow(
    path: str, text_tower: str | None, folder: Path, *, text_layers: int, vision_layers: int
) -> dict[str, str | None]:
    """Write directories of the same model with so many layers: config and processor, no weights.

    Returns:
        The settings ``path`` and ``text_tower`` of ``open_backbone`` that name them.
    """
    # Beside a text tower of its own, a directory gives its vision tower alone.
    own = text_layers if text_tower is None else 1
    settings: dict[str, str | None] = {"path": str(folder / "path"), "text_tower": None}
    _write(path, folder / "path", text_layers=own, vision_layers=vision_layers)
    if text_tower is not None:
        _write(text_tower, folder / "text_tower", text_layers=text_layers, vision_layers=1)
        settings["text_tower"] = str(folder / "text_tower")
    return settings


def _write(path: str, folder: Path, *, text_layers: int, vision_layers: int) -> None:
    read = read_config(path, what="model")
    config = copy.deepcopy(read)
    for part, layers in ((config.get_text_config(), text_layers), (_vision(config), vision_layers)):
        if part is not None and (key := _key(part)) is not None:
            _cut(part, key, layers)
    config.save_pretrained(folder)
    read_processor(path, read).save_pretrained(folder)
    if (Path(locate(path)) / TOKENIZER).is_dir():
        (folder / TOKENIZER).symlink_to((Path(locate(path)) / TOKENIZER).absolute(), target_is_directory=True)


def _cut(config: Any, key: str, layers: int) -> None:
    before = getattr(config, key)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before:  # one entry a layer, such as its kind of attention
            setattr(config, name, value[:layers])
    setattr(config, key, layers)


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None)


def _key(config: Any) -> str | None:
    return next((key for key in KEYS if isinstance(getattr(config, key, None), int)), None)


def _reads(config: Any) -> Iterator[int]:
    """How many layers there have to be for each that is named; -2 is the last but one."""
    for part in (config, _vision(config)):
        for name in NAMED if part is not None else ():
            value = getattr(part, name, None)
            for each in value if isinstance(value, list | tuple) else () if value is None else (value,):
                yield max(-each, 1) if each < 0 else each + 1


def has_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the directories that settings of ``open_backbone`` name hold weights; hub names are taken to."""
    given = (settings["path"], settings["text_tower"])
    folders = [Path(locate(path)) for path in given if path is not None]
    kinds = ("*.safetensors", "base.json")
    return all(not folder.is_dir() or any(any(folder.glob(kind)) for kind in kinds) for folder in folders)
