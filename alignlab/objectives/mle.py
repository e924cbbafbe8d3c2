"""MLE: next-token likelihood of the supervised tokens."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from alignlab.backbones import Backbone
from alignlab.batch import Batch, Tokens
from alignlab.functional import supervised, upcast
from alignlab.objectives.base import Loss, Objective


class MLE(Objective):
    """Minimise the negative log-likelihood of the answers' tokens.

        mean over supervised t of -log p(y_t | y_<t, image)        in nats per token

    The mean is over all supervised tokens of the optimizer step. The LM head runs on the positions that predict one.
    """

    requires = ("conversation",)

    def loss(self, batch: Batch) -> Loss:
        nll, num_tokens, right = likelihood(self.backbone, batch.conversation)
        count = num_tokens.clamp(min=1)  # a batch without targets has loss 0
        return Loss(nll / count, num_tokens, {"token_accuracy": right / count})


def likelihood(backbone: Backbone, tokens: Tokens, *, features: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """The negative log-likelihood of all labels, summed, in nats; how many they are; how many are the likeliest.

    Args:
        features: Result of ``backbone.features``.
    """
    return scored(backbone(tokens, logits_at=predicting(tokens), features=features).logits, tokens)


def predicting(tokens: Tokens) -> Tensor:
    """The positions that predict a label, (B, T) bool."""
    return F.pad(supervised(tokens.labels), (0, 1))


def scored(logits: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """What ``likelihood`` gives, of the logits (M, V) at the positions ``predicting``."""
    logits, kept = upcast(logits), supervised(tokens.labels)
    targets = tokens.labels[:, 1:][kept]  # (M,)
    right = (logits.detach().argmax(-1) == targets).float()
    return F.cross_entropy(logits, targets, reduction="sum"), kept.sum(), right.sum()
