"""packing: rows of pictures that have different numbers of them, one after another or in a padded block."""

import torch
from torch import Tensor


def is_kept(mask: Tensor) -> Tensor:
    """(P, N) bool of a mask of zeros and ones; NaN is kept, so that it comes to the loss, where it is reported."""
    return ~(mask < 0.5)


def padded(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Put packed rows into a block, those of a picture first in its line, zeros behind them.

    Args:
        rows: (M, C), picture by picture.
        counts: (P,) long with sum M.

    Returns:
        (P, L, C) with the largest count L, and (P, L) bool, True where a row is.
    """
    longest = int(counts.max()) if len(counts) else 0
    present = torch.arange(longest, device=rows.device) < counts[:, None]
    block = rows.new_zeros(*present.shape, rows.shape[-1])
    return block.masked_scatter(present[..., None], rows), present
