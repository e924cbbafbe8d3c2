"""likelihood: how likely backbones find what a conversation's answers say, and how far they are from each other."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.backbones import Backbone
from alignlab.batch import IGNORE, Tokens
from alignlab.functional import divergence, upcast

MOST_NATS = 100.0
"""What a token costs at most, and what one costs whose likelihood is not a number: scores are always finite."""

CHUNK = 256
"""Positions whose distributions are compared at once, since that takes several tensors as wide as the vocabulary."""


class Likelihood(NamedTuple):
    """Of the supervised tokens of B conversations, on the CPU.

    Args:
        logps: (B,) float64, their summed log-probabilities in nats.
        correct: (B,) float64, how many of them are the likeliest ones.
        counts: (B,) float64, how many there are; at least 1.
    """

    logps: Tensor
    correct: Tensor
    counts: Tensor


def likelihood(backbone: Backbone, tokens: Tokens) -> Likelihood:
    """Read the answers once, without gradients of one's own; the LM head runs where a token is supervised."""
    targets, kept = _targets(tokens)
    return _likelihood(upcast(backbone(tokens, logits_at=kept).logits), targets, kept)


def compared(
    start: Backbone, tuned: Backbone, tokens: Tokens, *, before: Tokens | None = None
) -> tuple[Likelihood, Likelihood, Tensor]:
    """Read the answers with two backbones of one vocabulary, but for visual tokens that the start does not have.

    Args:
        tokens: B conversations.
        before: The same as the start reads them, where it has no visual tokens and the other has; these are no words
            then: likelihoods are those of the words alone, renormalised.

    Returns:
        The likelihoods of both, and (B,) float64, summed over the supervised tokens: KL(start || tuned) in nats.
    """
    targets, kept = _targets(tokens)
    read = tokens if before is None else before
    both = [start(read, logits_at=_targets(read)[1]).logits, tuned(tokens, logits_at=kept).logits]
    both = [upcast(logits) for logits in both]  # (M, V) each
    if before is not None:
        # Some of the start's rows that no word used may have become visual tokens' rows.
        words = ~tuned.encoder.visual.tokens(both[1].shape[1], targets.device)
        both = [logits[:, words[: logits.shape[1]]] for logits in both]
    nats = torch.cat([divergence(*part) for part in zip(*(logits.split(CHUNK) for logits in both), strict=True)])
    first, second = (_likelihood(logits, targets, kept) for logits in both)
    return first, second, _summed(_bounded(nats), kept)


def _targets(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The supervised tokens (M,), and which positions predict them, (B, T) bool."""
    targets = F.pad(tokens.labels[:, 1:], (0, 1), value=IGNORE)  # (B, T): position t predicts label t + 1
    kept = targets != IGNORE
    return targets[kept], kept


def _likelihood(logits: Tensor, targets: Tensor, kept: Tensor) -> Likelihood:
    nats = _bounded(F.cross_entropy(logits, targets, reduction="none"))
    correct = logits.argmax(-1) == targets
    return Likelihood(_summed(-nats, kept), _summed(correct, kept), _summed(torch.ones_like(correct), kept))


def _bounded(nats: Tensor) -> Tensor:
    return nats.nan_to_num(nan=MOST_NATS).clamp(max=MOST_NATS)


def _summed(values: Tensor, kept: Tensor) -> Tensor:
    """Sums (B,) of values (M,) that stand where (B, T) says."""
    values = values.cpu().double()
    return values.new_zeros(len(kept)).index_add(0, kept.nonzero()[:, 0].cpu(), values)
