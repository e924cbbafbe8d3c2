"""saving: a backbone with adapters as a small directory, beside the model that it was trained from."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from alignlab.adapters import adapter_parameters, has_adapters
from alignlab.adapters.merging import unadapted_weights
from alignlab.adapters.placing import adapters_of
from alignlab.adapters.quantizing import quantize, quantized_pattern
from alignlab.adapters.storing import read_adapters, write_adapters
from alignlab.backbones.locations import locate, packaged
from alignlab.backbones.parts import parts_of
from alignlab.errors import InputError
from alignlab.modules.fingerprints import files_fingerprint
from alignlab.modules.parted import PARTS, Dtype, Parted
from alignlab.modules.tokenizer import PictureTokenizer

BASE, TRAINED, ADAPTER = "base.json", "trained.safetensors", "adapter"
TOKENIZER = "visual_tokenizer"


@dataclass(frozen=True)
class Base:
    """What ``base.json`` says of the model beneath the adapters.

    Args:
        path: A directory, whole, or the name of a packaged checkpoint or on the hub.
        fingerprint: Of the weights in its files; None: nothing is left of them, and they are not read.
        adapters: Their names, in the order in which they were put in.
        changed: Parts whose weights are not in those files.
        quantized: A regular expression that matches the linear maps in 4 bits; None: none is.
        dtype: The type that it was read in, such as bfloat16; None: not known.
        beside: That directory as seen from this one, which is read first, as both may have moved; None: it is none.
    """

    path: str
    fingerprint: str | None
    adapters: list[str]
    changed: list[str]
    quantized: str | None = None
    dtype: Dtype | None = None
    beside: str | None = None

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read it, with the path at which the model lies now.

        Raises:
            InputError: It is missing or damaged.
        """
        try:
            base = cls(**json.loads((Path(folder) / BASE).read_text()))
            base._check()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"backbone.path: {Path(folder) / BASE} cannot be read: {error}") from None
        moved = None if base.beside is None else (Path(folder).resolve() / base.beside).resolve()
        return replace(base, path=str(moved)) if moved is not None and moved.is_dir() else base

    def _check(self) -> None:
        """Raise ValueError for what ``save_adapted`` does not write."""
        for name in ("path", "fingerprint", "quantized", "beside"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name == "path" or value is not None):
                raise ValueError(f"{name} is no text, but {value!r}")
        if self.dtype not in (None, *get_args(Dtype)):
            raise ValueError(f"dtype is one of {', '.join(get_args(Dtype))}, not {self.dtype!r}")
        for name in ("adapters", "changed"):
            value = getattr(self, name)
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ValueError(f"{name} is no list of names, but {value!r}")
        if not self.adapters:
            raise ValueError("adapters names none")
        if unknown := set(self.changed) - set(PARTS):
            raise ValueError(f"changed names {min(unknown)}, and the parts are {', '.join(PARTS)}")
        if self.fingerprint is None and set(self.changed) != set(PARTS):
            raise ValueError("fingerprint is null, though not all parts have changed")
        try:
            re.compile(self.quantized or "")
        except re.error as error:
            raise ValueError(f"quantized is no regular expression: {error}") from None


def beneath(path: str) -> tuple[str, frozenset[str]]:
    """Where the model lies that was there before adapters, and which parts of it are others by now."""
    folder = locate(path)
    if is_adapted(folder):
        base = Base.read(folder)
        return base.path, frozenset(base.changed)
    return path if path in packaged() or not Path(path).is_dir() else str(Path(path).resolve()), frozenset()


def is_adapted(folder: Path | str) -> bool:
    """Whether ``save_adapted`` wrote it."""
    return (Path(folder) / BASE).is_file()


def read_tokenizer(path: str, model: Any) -> PictureTokenizer | None:
    """The visual tokenizer beside a model, where it is and in its type, at least float32; None: there is none."""
    folder = Path(locate(path)) / TOKENIZER
    if not folder.is_dir():
        return None
    with torch.random.fork_rng(devices=[]):  # what is drawn is not what is kept
        return PictureTokenizer.load(folder).to(model.device, torch.promote_types(model.dtype, torch.float32))


def save_tokenizer(tokenizer: PictureTokenizer | None, folder: Path) -> None:
    """Write a backbone's visual tokenizer beside it, if it has one, in its own type."""
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)


def save_adapted(backbone: Parted, folder: Path, base: str, dtype: Dtype | None) -> None:
    """Write what tells a model with adapters from the one it was trained from.

    These are the adapters, in peft's format; the parts that train beside them, or were others from the beginning,
    whole; all buffers, as running statistics change without training; and where the rest is. A model that came from
    such a directory names what that names.

    Args:
        base: Where what no training changed was read from, as ``beneath`` says.
        dtype: Of what is written; None: as it is.
    """
    model, added = backbone.model, {id(parameter) for parameter in adapter_parameters(backbone.model)}
    trained = {part for each, part in backbone.part_of() if each.requires_grad and id(each) not in added}
    changed = sorted(backbone.changed | trained)
    weights = weights_of(model, changed)
    if dtype is not None:
        kind = getattr(torch, dtype)
        weights = {name: each.to(kind) if each.is_floating_point() else each for name, each in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / TRAINED, metadata={"format": "pt"})
    write_adapters(model, folder / ADAPTER, base=base, dtype=dtype)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    fingerprint = None if set(changed) == set(PARTS) else _fingerprint(base)
    beside = os.path.relpath(Path(base).resolve(), folder.resolve()) if Path(base).is_absolute() else None
    said = Base(
        base,
        fingerprint,
        list(adapters_of(model)),
        changed,
        quantized=quantized_pattern(model),
        dtype=str(model.dtype).removeprefix("torch."),
        beside=beside,
    )
    (folder / BASE).write_text(json.dumps(asdict(said), indent=2) + "\n")


def weights_of(model: Any, parts: Sequence[str]) -> dict[str, Tensor]:
    """The weights of some parts without their adapters, and what all parts count as they run; tied ones are one."""
    whole = parts_of(model)
    wanted = {each.data_ptr() for part in parts for each in whole[part].state_dict().values()}
    wanted |= {each.data_ptr() for each in model.buffers()}  # a frozen batch norm's, say
    found = {each.data_ptr(): (name, each) for name, each in unadapted_weights(model).items()}
    return {name: each.contiguous() for place, (name, each) in found.items() if place in wanted}


def read_adapted(folder: str, read: Callable[[str], Any], draw: Callable[[], Any]) -> Any:
    """Put a model with adapters together again: parts that have some are frozen, with them, and the others train.

    Every weight is what was saved, bit for bit. So is what it computes, but for maps without a bias of strided inputs,
    as a branch in LLaVA's projector: torch multiplies these in another order where the weight trains.

    Args:
        read: Reads the model that it was trained from.
        draw: Makes one like it, whose weights may be anything.

    Raises:
        InputError: That one is missing, or has other weights by now, or is in 4 bits and read in another type than the
            adapters were trained on, which gives other codes; or the directory is damaged.
    """
    base = Base.read(folder)
    if base.fingerprint is not None:
        _check_base(folder, base)
        model = read(base.path)
    else:
        with torch.random.fork_rng(devices=[]):  # what is drawn is not what is kept
            model = draw()
    _extend(model, folder)
    _read_trained(model, Path(folder) / TRAINED, base)
    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except OSError as error:
            raise InputError(f"backbone.path: the generation config in {folder} cannot be read: {error}") from None
    if base.quantized is not None:
        read_in = str(model.dtype).removeprefix("torch.")
        if base.dtype not in (None, read_in):
            raise InputError(
                f"backbone.path: the adapters in {folder} were trained on weights quantised from {base.dtype}, and "
                f"quantising them from {read_in} gives others; set backbone.dtype to {base.dtype}"
            )
        quantize(model, base.quantized)
    read_adapters(model, Path(folder) / ADAPTER, base.adapters)
    for part in parts_of(model).values():
        part.requires_grad_(not has_adapters(part))
    return model


def _extend(model: Any, folder: str) -> None:
    """Give a model as many tokens as were there when it was saved: some may have been added beneath the adapters."""
    size = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    if getattr(model.config.get_text_config(), "vocab_size", size) != size:
        model.resize_token_embeddings(size, mean_resizing=False)


def _read_trained(model: Any, file: Path, base: Base) -> None:
    try:
        weights = load_file(file)
        if wrong := sorted(weights.keys() ^ weights_of(model, base.changed).keys()):
            raise InputError(f"backbone.path: {file} does not fit {base.path}: {wrong[0]} is on one side alone")
        model.load_state_dict(weights, strict=False)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"backbone.path: {file} cannot be read: {error}") from None


def _check_base(folder: str, base: Base) -> None:
    try:
        found = _fingerprint(base.path)
    except (InputError, OSError, ValueError) as error:
        raise InputError(
            f"backbone.path: {folder} holds what changed in training from {base.path}, which cannot be read "
            f"({str(error).strip().splitlines()[0]}); put it back, or write into {Path(folder) / BASE} where it is now"
        ) from None
    if found != base.fingerprint:
        raise InputError(
            f"backbone.path: {folder} holds what changed in training from {base.path}, whose weights are others by now "
            f"(fingerprint {found}, then {base.fingerprint}); put back those it was trained from"
        )


def _fingerprint(path: str) -> str:
    folder = locate(path)
    index = cached_file(folder, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    names = (SAFE_WEIGHTS_NAME,)
    if index is not None:
        names = tuple(sorted(set(json.loads(Path(index).read_text())["weight_map"].values())))
    return files_fingerprint(Path(cached_file(folder, name)) for name in names)
