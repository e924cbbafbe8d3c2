"""TruePreference: likelihood, and preference for the true answer over one known to be worse."""

from random import Random

from torch.nn import functional as F

from alignlab import Batch, InputError, Loss, Objective
from alignlab.functional import sequence_logps, supervised


class TruePreference(Objective):
    """Minimise likelihood's loss on the chosen answers and a preference's without a reference model.

        w * mean_t -log p(y_t)  +  mean over pairs of -log sigmoid(beta * (log p(chosen) - log p(rejected)))

    Source: CPO, Xu et al. 2024, https://arxiv.org/abs/2401.08417; its likelihood is over sequences, here over all
    supervised tokens t as in MLE, so that the preference is all that is added. An oracle: the rejected answer is truly
    worse. Its placebo swaps the two answers of some pairs, in the preference alone.

    Args:
        beta: Sharpness of the preference; at 0 the gradient is that of MLE, times the weight.
        likelihood: Weight w of the likelihood. At 0 nothing is learned of an answer but that it is better, so a
            placebo cannot learn the truth either.
        swapped: Share of swapped pairs in [0, 1]; which ones depends on the ids alone. At 0.5 preferences are chance.
    """

    requires = ("conversation", "rejected")
    coupled = "its parts average over different things, so micro-batches are weighted by pairs"
    per_process = "its parts average over different things, so processes are weighted by pairs"

    def __init__(self, backbone, *, beta: float = 0.1, likelihood: float = 1.0, swapped: float = 0.0) -> None:
        super().__init__(backbone)
        if min(beta, likelihood) < 0 or not 0 <= swapped <= 1:
            raise InputError(
                "TruePreference needs beta >= 0, likelihood >= 0 and 0 <= swapped <= 1, "
                f"got {beta = }, {likelihood = }, {swapped = }"
            )
        self.beta, self.likelihood, self.swapped = beta, likelihood, swapped

    def loss(self, batch: Batch) -> Loss:
        chat, worse = batch.conversation, batch.rejected
        pictures = self.backbone.features(chat)  # the same in both
        chosen = sequence_logps(self.backbone(chat, features=pictures).logits, chat.labels)  # (B,)
        rejected = sequence_logps(self.backbone(worse, features=pictures).logits, worse.labels)
        margin = chosen - rejected
        signs = margin.new_tensor([-1.0 if Random(id).random() < self.swapped else 1.0 for id in batch.ids])
        preference = -F.logsigmoid(self.beta * signs * margin).mean()
        likelihood = -chosen.sum() / supervised(chat.labels).sum()
        report = {"likelihood_loss": likelihood, "preference_loss": preference, "margin": margin.mean()}
        report["preferred"] = (margin > 0).float().mean()
        return Loss(
            self.likelihood * likelihood + preference,
            len(batch),
            {key: value.detach() for key, value in report.items()},
        )
