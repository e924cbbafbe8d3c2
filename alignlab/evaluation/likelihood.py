"""likelihood: how likely a backbone finds what a conversation's answers say."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from alignlab.backbones import Backbone
from alignlab.batch import IGNORE, Tokens
from alignlab.functional import upcast

MOST_NATS = 100.0
"""What a token costs at most, and what one costs whose likelihood is not a number: scores are always finite."""


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
    targets = F.pad(tokens.labels[:, 1:], (0, 1), value=IGNORE)  # (B, T): position t predicts label t + 1
    kept = targets != IGNORE
    logits = upcast(backbone(tokens, logits_at=kept).logits)  # (M, V)
    nats = F.cross_entropy(logits, targets[kept], reduction="none").nan_to_num(nan=MOST_NATS).clamp(max=MOST_NATS)
    rows = kept.nonzero()[:, 0].cpu()

    def summed(values: Tensor) -> Tensor:
        values = values.cpu().double()
        return values.new_zeros(len(tokens)).index_add(0, rows, values)

    correct = logits.argmax(-1) == targets[kept]
    return Likelihood(summed(-nats), summed(correct), summed(correct.new_ones(len(rows))))
