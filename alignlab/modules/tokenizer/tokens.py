"""tokens: what a visual tokenizer makes of pictures."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class VisualTokens:
    """What a tokenizer makes of P pictures; rows of all pictures follow one another, each picture's in raster order.

    Args:
        keep: (P, N) float, 0 or 1, as ``Kept.mask``.
        log_probs: (P, N, 2), as ``Kept.log_probs``.
        merged: (M, C) rows of the kept patches.
        counts: (P,) long, at least 1 each, with sum M.
        projected: (M, d) what a quantizer is given.
        vectors: (M, d) what the decoder reads.
        codes: (M,) long; None: there is no quantizer.
        losses: (M,) float32 or wider, the quantizer's.
    """

    keep: Tensor
    log_probs: Tensor | None
    merged: Tensor
    counts: Tensor
    projected: Tensor
    vectors: Tensor
    codes: Tensor | None
    losses: Tensor


@dataclass(frozen=True)
class VisualInputs:
    """What a language model reads of P pictures: rows (M, C), counts (P,) long, and keep (P, N) bool."""

    rows: Tensor
    counts: Tensor
    keep: Tensor
