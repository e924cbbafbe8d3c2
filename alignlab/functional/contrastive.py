"""Contrastive losses on embeddings."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.functional.likelihood import upcast


def normalize(x: Tensor) -> Tensor:
    """Scale every row to length 1, in float32 or wider; a zero row stays zero, and gets no gradient."""
    x = upcast(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # With the mask, since the slope of x / max(length, 1e-12) at 0 is 1e12, which would be a whole step's gradient.
    return x * (length > 1e-12) / length.clamp(min=1e-12)


def info_nce(
    queries: Tensor,
    targets: Tensor,
    *,
    scale: Tensor | float,
    labels: Tensor | None = None,
    symmetric: bool = False,
    label_smoothing: float = 0.0,
    exclude: Tensor | None = None,
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
        label_smoothing: In [0, 1), as in ``torch.nn.functional.cross_entropy``; spread over what is not excluded.
        exclude: (B, K) bool, pairs that are no negatives of each other, such as those of one id; a positive stays.

    Returns:
        Scalar in nats per query.
    """
    _check_pairs(queries, targets, labels)
    num_queries, num_targets = len(queries), len(targets)
    if symmetric and num_queries != num_targets:
        raise ValueError(f"symmetric needs as many targets as queries, got {num_targets} for {num_queries}")
    logits = scale * similarities(queries, targets)  # (B, K)
    positives = torch.arange(num_queries, device=logits.device) if labels is None else labels
    loss = _cross_entropy(logits, positives, label_smoothing, exclude)
    if not symmetric:
        return loss
    reverse = positives.argsort()  # the query of each target
    if labels is not None and not torch.equal(positives[reverse], torch.arange(num_queries, device=logits.device)):
        raise ValueError("symmetric needs labels that name every target once")
    other = None if exclude is None else exclude.T
    return (loss + _cross_entropy(logits.T, reverse, label_smoothing, other)) / 2


def hard_negatives(
    cosines: Tensor,
    *,
    num_hard: int = 8,
    margin: float = 0.1,
    labels: Tensor | None = None,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The most similar targets of each query that are not taken for right ones; without gradient.

    A target more similar than the positive by over the margin is taken for a false negative and left out (UniME, Gu et
    al. 2025, https://arxiv.org/abs/2504.17432, section 3.3; GaryGuTC/UniME-v2 lists the official file).

    Args:
        cosines: (B, K).
        num_hard: How many to find at most.
        margin: In units of the cosines; a negative one leaves out true hard negatives, too.
        labels: (B,) long, the column of each query's positive; default: column i for query i.
        exclude: (B, K) bool, pairs that are no negatives of each other.

    Returns:
        (B, k) long, columns, the most similar first, k = min(num_hard, K); and (B, k) bool, True where there was no
        further candidate, so that the column means nothing.
    """
    positives = torch.arange(len(cosines), device=cosines.device) if labels is None else labels
    barred = cosines > cosines.gather(1, positives[:, None]) + margin
    if exclude is not None:
        barred = barred | exclude
    barred = barred.scatter(1, positives[:, None], True)
    found = cosines.detach().masked_fill(barred, -math.inf).topk(min(num_hard, cosines.shape[1]))
    return found.indices, barred.gather(1, found.indices)


def hard_negative_info_nce(
    queries: Tensor,
    targets: Tensor,
    *,
    scale: Tensor | float = 50.0,
    num_hard: int = 8,
    margin: float = 0.1,
    fill: Literal["mask", "duplicate"] = "mask",
    labels: Tensor | None = None,
    exclude: Tensor | None = None,
) -> Tensor:
    """InfoNCE against the hardest negatives alone (UniME's second stage; see ``hard_negatives``).

        mean_i -log( exp(scale * s_ii) / (exp(scale * s_ii) + sum over hard j of exp(scale * s_ij)) )

    Differs from the official ``BatchRank`` on purpose where a query has fewer than ``num_hard`` candidates: there the
    filtered ones, and the positive itself, come back as negatives; here they never do.

    Args:
        queries: (B, D), rows expected normalised (not checked).
        targets: (K, D).
        scale: Multiplier on the cosines, = 1 / temperature.
        fill: Where candidates are too few: ``mask``, compare with those there are; ``duplicate``, repeat them, the
            hardest first, as the paper says.

    Returns:
        Scalar in nats, the mean over the queries that have a candidate; 0, with a graph, where none has.
    """
    _check_pairs(queries, targets, labels)
    cosines = similarities(queries, targets)
    hard, missing = hard_negatives(cosines, num_hard=num_hard, margin=margin, labels=labels, exclude=exclude)
    if fill == "duplicate":
        hard, missing = repeated(hard, missing, num_hard)
    return hard_cross_entropy(cosines, hard, missing, scale=scale, labels=labels)


def repeated(hard: Tensor, missing: Tensor, num_hard: int) -> tuple[Tensor, Tensor]:
    """What ``hard_negatives`` gives, each query's negatives repeated in their order up to ``num_hard``."""
    count = (~missing).sum(1, keepdim=True)
    place = torch.arange(num_hard, device=hard.device)[None] % count.clamp(min=1)
    return hard.gather(1, place), (count == 0).expand(-1, num_hard)


def hard_cross_entropy(
    cosines: Tensor, hard: Tensor, missing: Tensor, *, scale: Tensor | float, labels: Tensor | None = None
) -> Tensor:
    """The loss of ``hard_negative_info_nce`` for cosines (B, K) and what ``hard_negatives`` found in them."""
    positives = torch.arange(len(cosines), device=hard.device) if labels is None else labels
    kept = cosines.gather(1, torch.cat([positives[:, None], hard], dim=1))
    # Masked after the scaling: infinity times a learned scale would give it a gradient that is not a number.
    logits = (scale * kept).masked_fill(F.pad(missing, (1, 0), value=False), -math.inf)
    has = ~missing.all(1) if missing.shape[1] else missing.new_zeros(len(missing))
    losses = -logits.log_softmax(1)[:, 0]
    return (losses * has).sum() / has.sum().clamp(min=1)


def multi_positive_info_nce(
    queries: Tensor, targets: Tensor, *, scale: Tensor | float, positives: Tensor, exclude: Tensor
) -> Tensor:
    """Cross-entropy of finding each of a query's positives among the negatives, the other positives left out.

        mean_i mean over positives j of i of -log( exp(s_ij) / (exp(s_ij) + sum over negatives k of i of exp(s_ik)) )

    With one positive each it is ``info_nce``; as supervised contrastive learning with the mean outside of the
    logarithm, Khosla et al. 2020, https://arxiv.org/abs/2004.11362, Eq. 2, but that positives do not compete.

    Args:
        queries: (B, D), rows expected normalised (not checked).
        targets: (K, D).
        scale: Multiplier on the cosines, = 1 / temperature.
        positives: (B, K) bool.
        exclude: (B, K) bool, no negatives of the query; its positives never are.

    Returns:
        Scalar in nats, the mean over the queries that have a positive; 0, with a graph, where none has.
    """
    logits = scale * similarities(queries, targets)
    # A number below all others instead of -inf, whose gradient where a query has no negative is none.
    negatives = logits.masked_fill(exclude | positives, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    losses = F.softplus(negatives - logits) * positives
    counts = positives.sum(1)
    return (losses.sum(1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)


def sigmoid_contrastive(
    images: Tensor, texts: Tensor, *, scale: Tensor | float, bias: Tensor | float, negatives_only: bool = False
) -> Tensor:
    """Sigmoid loss of each pair being right or wrong (SigLIP, Zhai et al. 2023, arXiv 2303.15343; ``SigLipLoss``).

        1/B sum_ij -log sigmoid(z_ij * (scale * <i, t> + bias)),  z = 1 for a pair, -1 for all others

    Args:
        images: (B, D), rows expected normalised (not checked).
        texts: (K, D); row i is the pair of image i.
        negatives_only: All pairs are wrong, as with the texts of another process.

    Returns:
        Scalar in nats per image.
    """
    if not negatives_only and len(texts) < len(images):
        raise ValueError(f"each image needs its text, got {len(texts)} texts for {len(images)} images")
    logits = scale * similarities(images, texts) + bias
    signs = -torch.ones_like(logits)
    if not negatives_only:
        signs.fill_diagonal_(1)
    return -F.logsigmoid(signs * logits).sum() / max(1, len(images))


def similarities(queries: Tensor, targets: Tensor) -> Tensor:
    """Inner products (B, K) of rows (B, D) and (K, D), in float32 or wider whatever autocast likes."""
    with torch.autocast(queries.device.type, enabled=False):  # which would round the cosines to 8 bits, times the scale
        return upcast(queries) @ upcast(targets).T


def _check_pairs(queries: Tensor, targets: Tensor, labels: Tensor | None) -> None:
    if queries.ndim != 2 or targets.ndim != 2 or queries.shape[1] != targets.shape[1]:
        raise ValueError(
            f"queries (B, D) and targets (K, D) needed, got {tuple(queries.shape)}, {tuple(targets.shape)}"
        )
    if labels is None and len(targets) < len(queries):
        raise ValueError(
            f"{len(queries)} queries need a target each, got {len(targets)}; pass labels if they share targets"
        )


def _cross_entropy(logits: Tensor, positives: Tensor, smoothing: float, exclude: Tensor | None) -> Tensor:
    if exclude is None:
        losses = F.cross_entropy(logits, positives, label_smoothing=smoothing, reduction="sum")
        return losses / max(1, len(logits))
    hidden = exclude.scatter(1, positives[:, None], False)
    logps = logits.masked_fill(hidden, -math.inf).log_softmax(1)
    right = logps.gather(1, positives[:, None])[:, 0]
    spread = logps.masked_fill(hidden, 0.0).sum(1) / (~hidden).sum(1)
    return -((1 - smoothing) * right + smoothing * spread).sum() / max(1, len(logits))
