"""storing: a visual tokenizer as a directory, its classes by their names."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.modules.quantizers import Quantizer
from alignlab.modules.tokenizer.pixels import PixelDecoder
from alignlab.modules.tokenizer.selection import Selection

if TYPE_CHECKING:
    from alignlab.modules.tokenizer.tokenizer import VisualTokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_tokenizer(tokenizer: "VisualTokenizer", folder: Path) -> None:
    """Write both files, and the directory where there is none."""
    parts = {"selection": tokenizer.selection, "quantizer": tokenizer.quantizer}
    config = {
        "dim": tokenizer.dim,
        "num_patches": tokenizer.num_patches,
        **tokenizer.settings,
        **{name: _recipe(module) for name, module in parts.items()},
        "pixel_decoder": _recipe(tokenizer.pixel_decoder),
        "split": tokenizer.input_merger is not None,
        "discrete": tokenizer.discrete,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: each.contiguous() for name, each in tokenizer.state_dict().items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(kind: type["VisualTokenizer"], folder: Path) -> "VisualTokenizer":
    """Read them.

    Raises:
        InputError: They are missing or damaged, or name a class that is not known.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        # Copies, as the file may be written again while they are in use.
        weights = {name: each.clone() for name, each in load_file(folder / WEIGHTS).items()}
        return _made(kind, config, weights)
    except KeyError as error:
        raise InputError(f"the visual tokenizer in {folder} cannot be read: {error} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the visual tokenizer in {folder} cannot be read: {error}") from None


def _made(kind: type["VisualTokenizer"], config: dict[str, Any], weights: dict[str, Tensor]) -> "VisualTokenizer":
    split, discrete, painter = (config.pop(name) for name in ("split", "discrete", "pixel_decoder"))
    parts = {"selection": Selection, "quantizer": Quantizer}
    tokenizer = kind(**config | {name: _maker(base, config[name]) for name, base in parts.items()})
    tokenizer.discrete = discrete
    if painter is not None:
        tokenizer.pixel_decoder = _maker(PixelDecoder, painter)(tokenizer.dim)
    if split:
        tokenizer.split()
    tokenizer.load_state_dict(weights, assign=True)
    return tokenizer


def _recipe(module: nn.Module | None) -> dict[str, Any] | None:
    return None if module is None else {"class": type(module).__name__, "settings": module.settings}


def _maker(base: type[nn.Module], recipe: dict[str, Any] | None) -> Callable[[int], nn.Module] | None:
    if recipe is None:
        return None
    name, settings = recipe["class"], recipe["settings"]
    known = {each.__name__: each for each in _subclasses(base)}
    if name not in known:
        raise InputError(f"{name!r} is no {base.__name__} that is imported, which are {', '.join(sorted(known))}")
    return lambda dim: known[name](dim, **settings)


def _subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)
