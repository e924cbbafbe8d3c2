"""storing: a visual tokenizer as a directory, its classes by their names."""

import json
from collections.abc import Callable, Iterator
from inspect import isabstract
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from alignlab.errors import InputError

if TYPE_CHECKING:
    from alignlab.modules.tokenizer.base import PictureTokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_tokenizer(tokenizer: "PictureTokenizer", folder: Path) -> None:
    """Write both files, and the directory where there is none."""
    config = {"class": type(tokenizer).__name__, **tokenizer.config()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: each.contiguous() for name, each in tokenizer.state_dict().items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(kind: type["PictureTokenizer"], folder: Path) -> "PictureTokenizer":
    """Read them, as ``kind`` or a class beneath it.

    Raises:
        InputError: They are missing or damaged, or name a class that is not known.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        # Copies, as the file may be written again while they are in use.
        weights = {name: each.clone() for name, each in load_file(folder / WEIGHTS).items()}
        tokenizer = _class(kind, config.pop("class")).made(config)
        tokenizer.load_state_dict(weights, assign=True)
        return tokenizer
    except KeyError as error:
        raise InputError(f"the visual tokenizer in {folder} cannot be read: {error} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the visual tokenizer in {folder} cannot be read: {error}") from None


def recipe(module: nn.Module | None) -> dict[str, Any] | None:
    """What ``maker`` makes a part of again; None: there is none."""
    return None if module is None else {"class": type(module).__name__, "settings": module.settings}


def maker(base: type[nn.Module], recipe: dict[str, Any] | None) -> Callable[[int], nn.Module] | None:
    """What makes a part for a width; InputError for an unknown class."""
    if recipe is None:
        return None
    settings = recipe["settings"]
    kind = _class(base, recipe["class"])
    return lambda dim: kind(dim, **settings)


def _class(base: type, name: str) -> type:
    known = {each.__name__: each for each in (base, *_subclasses(base)) if not isabstract(each)}
    if name not in known:
        raise InputError(f"{name!r} is no {base.__name__} that is imported, which are {', '.join(sorted(known))}")
    return known[name]


def _subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)
