"""Constants: values that an objective takes as given, although they depend on the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_tapes: list["_Tape"] = []


def stop_gradient(value: Tensor) -> Tensor:
    """The value without its gradient, as a declared part of an objective: a weight, a target, a filter.

    ``detach`` does the same to the gradient; declared, the derivative of the loss can be told from a mistake, since
    ``held_constants`` can hold the value where it was.
    """
    return _tapes[-1].next(value.detach()) if _tapes else value.detach()


@contextmanager
def held_constants() -> Iterator["_Tape"]:
    """Keep what ``stop_gradient`` gives at first; after each ``rewind`` of what this yields it comes again."""
    tape = _Tape()
    _tapes.append(tape)
    try:
        yield tape
    finally:
        _tapes.remove(tape)


class _Tape:
    """Values in the order in which they were declared."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.place: int | None = None

    def rewind(self) -> None:
        self.place = 0

    def next(self, value: Tensor) -> Tensor:
        if self.place is None:
            self.values.append(value.clone())
            return value
        self.place += 1
        return self.values[self.place - 1].clone()
