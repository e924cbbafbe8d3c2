"""Quantizer: a vector as one of finitely many codes, with a gradient."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.functional import upcast


@dataclass(frozen=True)
class Quantized:
    """What became of M rows.

    Attributes:
        vectors: (M, d) float32 or wider, what goes on to the decoder.
        codes: (M,) long in [0, num_codes).
        losses: (M,) float32 or wider, each row's own loss times its weight; a caller averages them. What couples rows
            is added to each, so that any weighted mean has it once.
    """

    vectors: Tensor
    codes: Tensor
    losses: Tensor


class Quantizer(nn.Module):
    """Base of quantisers: rows (M, d) -> ``Quantized``. It computes in float32 or wider, whatever autocast says.

    Args:
        dim: d, the width of rows.
        num_codes: K.
    """

    coupled: str = ""
    """Why rows of a batch act on each other's losses, where they do."""

    started: Tensor | bool
    """Whether ``start`` has been called; True from the beginning where it does nothing."""

    def __init__(self, dim: int, num_codes: int) -> None:
        super().__init__()
        self.dim, self.num_codes = dim, num_codes
        self.check(dim >= 1 and num_codes >= 2, f"dim >= 1 and num_codes >= 2, got {dim} and {num_codes}")

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The keyword arguments that make it again, in the plain values of JSON."""

    @abstractmethod
    def quantize(self, x: Tensor) -> Quantized:
        """``forward`` of rows (M, d) in float32 or wider, outside autocast."""

    @abstractmethod
    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors (..., d) of codes (...) long, equal to those of ``forward``."""

    def start(self, x: Tensor) -> None:
        """Set the codes by the rows (M, d) of all processes, each of which calls it with its own."""

    def update(self) -> None:
        """Apply what forward passes in training gathered; once an optimizer step, in every process."""

    def report(self) -> dict[str, Tensor]:
        """Scalars on the state of the codes, the same in all processes."""
        return {}

    def forward(self, x: Tensor) -> Quantized:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{type(self).__name__} needs rows (M, {self.dim}), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            return self.quantize(upcast(x))

    def check(self, good: bool, needed: str) -> None:
        if not good:
            raise InputError(f"{type(self).__name__} needs {needed}")

    def extra_repr(self) -> str:
        return ", ".join([f"dim={self.dim}", *(f"{name}={value}" for name, value in self.settings.items())])


def recomputing() -> bool:
    """Whether this forward pass repeats one, inside a backward pass, as checkpointing does."""
    return torch._C._current_graph_task_id() != -1
