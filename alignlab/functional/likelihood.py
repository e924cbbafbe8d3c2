"""Log-probabilities of labels, in nats: position t predicts label t + 1."""

import torch
from torch import Tensor

from alignlab.batch import IGNORE


def upcast(x: Tensor) -> Tensor:
    """Float32 or wider: half precisions become float32, float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def supervised(labels: Tensor) -> Tensor:
    """Mark the positions that predict a trained token.

    Args:
        labels: (B, T) long, unshifted, -100 where not trained on.

    Returns:
        (B, T - 1) bool; position t is True when label t + 1 is trained on.
    """
    return labels[:, 1:] != IGNORE


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Look up the log-probability of every label.

    Args:
        logits: (B, T, V).
        labels: (B, T) long, unshifted, -100 where not trained on.

    Returns:
        (B, T - 1) in nats, <= 0; exactly 0 where unsupervised, whatever the logits there.
    """
    _check(logits, labels)
    mask = supervised(labels)
    logps = logits.new_zeros(mask.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    kept = upcast(logits[:, :-1][mask])  # (M, V): the softmax is taken where it is needed
    target = labels[:, 1:][mask]
    return logps.masked_scatter(mask, kept.gather(-1, target[:, None]).squeeze(-1) - kept.logsumexp(-1))


def sequence_logps(logits: Tensor, labels: Tensor, *, average: bool = False) -> Tensor:
    """Sum the labels' log-probabilities over each row.

    Args:
        logits: (B, T, V).
        labels: (B, T) long, unshifted, -100 where not trained on.
        average: Divide by the row's number of supervised tokens.

    Returns:
        (B,) in nats; 0 for a row without a supervised token.
    """
    total = token_logps(logits, labels).sum(-1)
    return total / supervised(labels).sum(-1).clamp(min=1) if average else total


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits (B, T, V) and labels (B, T) needed, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
