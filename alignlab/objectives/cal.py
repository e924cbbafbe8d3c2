"""CAL: likelihood in which a token weighs the more, the more the picture adds to it."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.batch import IGNORE, Batch
from alignlab.errors import InputError
from alignlab.functional import stop_gradient, supervised, upcast, visual_weights, weighted_mean
from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.contrasts import Contrast, NoImage


class CAL(Objective):
    """Minimise the negative log-likelihood, each token weighed by what the picture adds to its logit.

        sum over supervised t of w_t * -log p(y_t | y_<t, image) / sum of the w        in nats per token
        w_t = mean over the window around t of clamp(logit_t(y_t) - logit_t(y_t) without the image, low, high)

    Xiao et al. 2024, https://arxiv.org/abs/2405.17871; the weights have no gradient. The pass without the image is over
    the text alone, with its positions unchanged, which is exact (``Backbone.without_images``). Differs from the
    official file, which pools over the flattened batch (``pooling: flat``), divides by the weights of each micro-batch
    and process by itself, where here it is by those of the whole step, and cannot validate. Validation reports
    ``loss``, weighted as in training, and ``likelihood_loss``, in which all tokens weigh the same.

    Beside likelihood it costs a pass without gradient over the text; of full length where leaving out is inexact, and
    through the vision tower, too, for another picture. Dropout is drawn anew in each pass, as in the official file.

    Args:
        low: Least weight; 0 forgets tokens that the picture makes no likelier.
        high: Largest weight.
        window: Odd number of neighbouring tokens that a weight is the mean of.
        pooling: ``masked``, over supervised tokens of the row; ``flat``, as officially, also over what is not trained
            on and over other rows, which makes the second pass as long as the first.
        normalize: ``batch``, over all tokens; ``sample``, over each sequence, then their mean, as in the paper's text.
        contrast: What is seen instead of the image; None: nothing.
    """

    requires = ("conversation",)

    def __init__(
        self,
        backbone,
        *,
        low: float = 1.0,
        high: float = 5.0,
        window: int = 3,
        pooling: Literal["masked", "flat"] = "masked",
        normalize: Literal["batch", "sample"] = "batch",
        contrast: Contrast | None = None,
    ) -> None:
        super().__init__(backbone)
        if not 0 <= low <= high or high == 0 or window < 1 or window % 2 == 0:
            raise InputError(
                f"CAL needs 0 <= low <= high, high > 0 and an odd window >= 1, got {low = }, {high = }, {window = }"
            )
        self.low, self.high, self.window, self.pooling, self.normalize = low, high, window, pooling, normalize
        self.contrast = contrast or NoImage()
        self.contrast.check(backbone)
        if pooling == "flat":
            self.coupled = self.per_process = "pooling: flat mixes the weights of neighbouring rows"

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        targets = F.pad(chat.labels[:, 1:], (0, 1), value=IGNORE)  # (B, T): position t predicts label t + 1
        kept = targets != IGNORE
        features = self.backbone.features(chat)  # the image is encoded once for both passes
        blind = self.blind_states(batch, features)  # first, before the other pass keeps what its gradient needs
        output = self.backbone(chat, logits_at=kept, features=features)
        gain = self.gain(batch, output.hidden, blind)  # (B, T-1)
        weights = stop_gradient(self.weights(batch, gain)[kept[:, :-1]])  # (M,)
        logits = upcast(output.logits)  # (M, V)
        correct = logits.detach().argmax(-1) == targets[kept]
        losses = F.cross_entropy(logits, targets[kept], reduction="none")  # (M,)
        mean = weighted_mean(losses, weights, kept.nonzero()[:, 0], normalize=self.normalize, eps=0.0)
        over = weights.sum() if self.normalize == "batch" else kept.any(1).sum()
        report = self._report(losses.detach(), correct.float(), gain[kept[:, :-1]], weights)
        return Loss(mean, over, report, report_weight=len(weights))

    @torch.no_grad()
    def blind_states(self, batch: Batch, features: Any) -> Tensor:
        """States that predict the labels without the picture, (M, D); for ``flat``, all B (T - 1) states."""
        flat = self.pooling == "flat"
        blind = self.contrast(self.backbone, batch.conversation, features, batch.ids, whole=flat)
        return self.backbone.label_states(blind, everywhere=flat)

    def gain(self, batch: Batch, hidden: Tensor, blind: Tensor) -> Tensor:
        """How much the picture adds to each label's logit, (B, T - 1), without gradient.

        Args:
            hidden: (B, T, D), the states of the pass that sees the picture.
            blind: Result of ``blind_states``.
        """
        return self.backbone.label_gains(batch.conversation, hidden, blind, everywhere=self.pooling == "flat")

    def weights(self, batch: Batch, gain: Tensor) -> Tensor:
        """Weights of the tokens, (B, T - 1), 0 where unsupervised."""
        kept, bounds = supervised(batch.conversation.labels), {"low": self.low, "high": self.high}
        return visual_weights(gain, kept, **bounds, window=self.window, pooling=self.pooling)

    def _report(self, losses: Tensor, correct: Tensor, gain: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Means over the tokens (M,), and the deciles of their weights."""
        of_tokens = {"likelihood_loss": losses, "token_accuracy": correct, "gain": gain, "mean_weight": weights}
        of_tokens |= {"at_low": (gain <= self.low).float(), "at_high": (gain >= self.high).float()}
        report = {name: values.sum() / max(len(values), 1) for name, values in of_tokens.items()}
        ordered = weights.sort().values if len(weights) else weights.new_zeros(1)
        return report | {f"weight_p{p}": ordered[round(p / 100 * (len(ordered) - 1))] for p in (10, 50, 90)}
