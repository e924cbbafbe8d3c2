"""Weights of tokens by what the picture adds to their likelihood (CAL), and the likelihood that they weigh."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.functional.likelihood import supervised, token_logps, upcast


def logit_gain(logits: Tensor, blind_logits: Tensor, labels: Tensor) -> Tensor:
    """How much larger each label's logit is with the picture than without; without gradient.

    Raw logits, not log-probabilities, as in the official file: a shift of all logits of one pass shifts the gain.

    Args:
        logits: (B, T, V), of the pass that sees the picture.
        blind_logits: (B, T, V), of the pass that does not.
        labels: (B, T) long, unshifted; where one is negative, id 0 is looked up.

    Returns:
        (B, T - 1), float32 or wider.
    """
    if logits.ndim != 3 or logits.shape != blind_logits.shape or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits and blind_logits (B, T, V) and labels (B, T) needed, got {tuple(logits.shape)}, "
            f"{tuple(blind_logits.shape)} and {tuple(labels.shape)}"
        )
    target = labels[:, 1:].clamp(min=0)[..., None]
    seeing, blind = (each[:, :-1].detach().gather(-1, target).squeeze(-1) for each in (logits, blind_logits))
    return upcast(seeing) - upcast(blind)


def visual_weights(
    gain: Tensor,
    supervised: Tensor,
    *,
    low: float = 1.0,
    high: float = 5.0,
    window: int = 3,
    pooling: Literal["masked", "flat"] = "masked",
) -> Tensor:
    """Turn gains into weights: clamp, then average over a window (CAL, Xiao et al. 2024, arXiv 2405.17871).

    Args:
        gain: (B, T - 1), see ``logit_gain``.
        supervised: (B, T - 1) bool.
        low: Least weight.
        high: Largest weight.
        window: Odd number of neighbouring positions; at an end, those there are.
        pooling: ``masked``, over the supervised positions of the row; ``flat``, as in the official file, over all
            positions of the batch one after the other, so that rows bleed into each other, and what is not trained on
            into what is.

    Returns:
        (B, T - 1) in [low, high] where supervised, else 0; without gradient.
    """
    if gain.shape != supervised.shape or gain.ndim != 2:
        raise ValueError(
            f"gain and supervised (B, T - 1) needed, got {tuple(gain.shape)} and {tuple(supervised.shape)}"
        )
    if window < 1 or window % 2 == 0 or low > high:
        raise ValueError(f"an odd window >= 1 and low <= high needed, got {window = }, {low = }, {high = }")
    clamped = gain.detach().clamp(low, high)
    if pooling == "flat":
        pooled = _pooled(clamped.reshape(1, -1), window).reshape(clamped.shape)
    else:
        kept = supervised.to(clamped.dtype)
        # Sums of what is kept over counts of it; where nothing is near, the position itself is not supervised either.
        pooled = _pooled(clamped * kept, window) / _pooled(kept, window).clamp(min=1e-12)
    return pooled * supervised


def weighted_nll(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    normalize: Literal["batch", "sample"] = "batch",
    eps: float = 1e-6,
) -> Tensor:
    """Weighted mean of the labels' negative log-likelihood.

        sum_n w_n * -log p_n / (sum_n w_n + eps)

    Args:
        logits: (B, T, V).
        labels: (B, T) long, unshifted, -100 where not trained on.
        weights: (B, T - 1) >= 0.
        normalize: Over the batch, as in the official file; or over each row, then the mean over the rows with a
            target, as in the paper's text.

    Returns:
        Scalar in nats per token; 0, with a graph, where there is no target.
    """
    kept = supervised(labels)
    losses, rows = -token_logps(logits, labels)[kept], kept.nonzero()[:, 0]
    return weighted_mean(losses, weights[kept], rows, normalize=normalize, eps=eps)


def weighted_mean(
    losses: Tensor, weights: Tensor, rows: Tensor, *, normalize: Literal["batch", "sample"] = "batch", eps: float = 1e-6
) -> Tensor:
    """Weighted mean of losses that are known one by one: ``weighted_nll`` without what is not trained on.

    Args:
        losses: (M,).
        weights: (M,) >= 0.
        rows: (M,) long, the row of the batch that each is of; rows without any have no part.
        normalize: As in ``weighted_nll``.

    Returns:
        Scalar; 0, with a graph, where there is no loss or all weights are 0.
    """
    if normalize == "batch":
        return (weights * losses).sum() / (weights.sum() + eps).clamp(min=1e-30)
    present, rows = rows.unique(return_inverse=True)
    sums = losses.new_zeros(2, len(present)).index_add(1, rows, torch.stack([weights * losses, weights.to(losses)]))
    means = sums[0] / (sums[1] + eps).clamp(min=1e-30)
    return means.sum() / max(len(present), 1)


def _pooled(values: Tensor, window: int) -> Tensor:
    """Mean over a window of each row (B, T); at the ends, over what there is of it."""
    if values.numel() == 0:
        return values
    return F.avg_pool1d(values[:, None], window, stride=1, padding=window // 2, count_include_pad=False)[:, 0]
