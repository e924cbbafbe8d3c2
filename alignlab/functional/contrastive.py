"""Contrastive losses on embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.functional.likelihood import upcast


def normalize(x: Tensor) -> Tensor:
    """Scale every row to length 1, in float32 or wider; a zero row stays zero."""
    return F.normalize(upcast(x), dim=-1, eps=1e-12)


def info_nce(
    queries: Tensor,
    targets: Tensor,
    *,
    scale: Tensor | float,
    labels: Tensor | None = None,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of finding each query's target among all targets (van den Oord et al. 2018, arXiv 1807.03748).

        mean_i -log softmax_j(scale * <q_i, t_j>)[labels_i]

    With ``symmetric`` the mean of both directions, as in CLIP (arXiv 2103.00020, Figure 3; open_clip ``ClipLoss``).

    Args:
        queries: (B, D), rows expected normalised (not checked).
        targets: (K, D), K >= B; further rows are negatives only.
        scale: Multiplier on the cosines, = 1 / temperature.
        labels: (B,) long, the row of each query's positive; default: row i for query i.
        symmetric: Also find each target's query; needs K = B and labels that name every target once.
        label_smoothing: In [0, 1), as in ``torch.nn.functional.cross_entropy``.

    Returns:
        Scalar in nats per query.
    """
    if queries.ndim != 2 or targets.ndim != 2 or queries.shape[1] != targets.shape[1]:
        raise ValueError(
            f"queries (B, D) and targets (K, D) needed, got {tuple(queries.shape)}, {tuple(targets.shape)}"
        )
    num_queries, num_targets = len(queries), len(targets)
    if symmetric and num_queries != num_targets:
        raise ValueError(f"symmetric needs as many targets as queries, got {num_targets} for {num_queries}")
    if labels is None and num_targets < num_queries:
        raise ValueError(
            f"{num_queries} queries need a target each, got {num_targets}; pass labels if they share targets"
        )
    with torch.autocast(queries.device.type, enabled=False):  # which would round the cosines to 8 bits, times the scale
        logits = scale * (upcast(queries) @ upcast(targets).T)  # (B, K)
    positives = torch.arange(num_queries, device=logits.device) if labels is None else labels
    loss = F.cross_entropy(logits, positives, label_smoothing=label_smoothing)
    if not symmetric:
        return loss
    reverse = positives.argsort()  # the query of each target
    if labels is not None and not torch.equal(positives[reverse], torch.arange(num_queries, device=logits.device)):
        raise ValueError("symmetric needs labels that name every target once")
    return (loss + F.cross_entropy(logits.T, reverse, label_smoothing=label_smoothing)) / 2
