"""ragged: lists of unequal lengths, as a processor gives them, joined and padded to tensors."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


def aligned(value: Any, ids: list[list[int]]) -> bool:
    """Whether a processor's output has one entry a token."""
    if not isinstance(value, list) or len(value) != len(ids):
        return False
    return all(isinstance(row, list) and len(row) == len(piece) for row, piece in zip(value, ids, strict=True))


def join(pieces: list[list[int]], owners: list[int]) -> list[list[int]]:
    """Put the pieces of each owner, 0 to the last one, one after the other."""
    rows: list[list[int]] = [[] for _ in range(owners[-1] + 1)] if owners else []
    for owner, piece in zip(owners, pieces, strict=True):
        rows[owner] += piece
    return rows


def pad(rows: list[list[int]], value: int, *, limit: int | None, side: Literal["left", "right"]) -> Tensor:
    """Cut B rows after ``limit`` entries and fill them up with ``value``: (B, T) long."""
    rows = [row[:limit] for row in rows]
    width = max((len(row) for row in rows), default=0)
    fills = [[value] * (width - len(row)) for row in rows]
    padded = [fill + row if side == "left" else row + fill for row, fill in zip(rows, fills, strict=True)]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)


def tensor(value: Any) -> Any:
    """A processor's output as a tensor; what is ragged stays as it came."""
    try:
        return torch.as_tensor(np.stack(value) if isinstance(value, list) else value)
    except (ValueError, TypeError):
        return value
