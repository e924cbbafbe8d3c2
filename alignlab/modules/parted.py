"""Parted: a model in three parts, which can be trained, drawn anew and taken from elsewhere one by one."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import nn

from alignlab.errors import InputError

PARTS = ("vision_tower", "projector", "language_model")
Part = Literal["vision_tower", "projector", "language_model"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]


class Parted(nn.Module):
    """Base of backbones."""

    path: str
    model: nn.Module
    changed: frozenset[str] = frozenset()
    """Parts whose weights are not all those in the files that the model beneath its adapters was read from."""

    start: str | None = None
    """Where the language model that training begins with is read again, a directory or name; None: nowhere."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, nn.ModuleList]:
        """The modules of each part."""

    @property
    def head(self) -> nn.Module | None:
        """The map from states to logits; None: it writes no text."""
        return None

    def part_of(self) -> Iterator[tuple[nn.Parameter, str]]:
        """Every parameter of the parts with the name of its part, each once."""
        seen = set()
        for name, modules in self.parts.items():
            for parameter in modules.parameters():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter, name

    def transplant(self, donor: Mapping[str, nn.ModuleList], parts: Sequence[Part], who: str) -> None:
        """Take the weights of some parts from another model's parts.

        Raises:
            InputError: They are of another shape.
        """
        for part in parts:
            if part not in donor:
                raise InputError(f"backbone: {who}: that has no {part} to give to {self.path}")
            try:
                self.parts[part].load_state_dict(donor[part].state_dict())
            except RuntimeError as error:
                raise InputError(f"backbone: {who}: the {part} does not fit {self.path}: {error}") from None


def start_of(path: str, fresh: Sequence[str], take: Mapping[str, str] | None) -> str | None:
    """``Parted.start`` of what is made so: ``path``, unless its language model is drawn anew or another's."""
    return None if "language_model" in {*fresh, *(take or {})} else path


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The elements of a model's outermost lists of modules: the layers of its towers."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            for each in child:
                yield from layers_of(nn.ModuleList([each])) if isinstance(each, nn.ModuleList) else (each,)
        else:
            yield from layers_of(child)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while; each submodule then gets its own former mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def disable_dropout(module: nn.Module) -> None:
    """Set all dropout to 0, of modules and of attentions that keep a share of their own."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
