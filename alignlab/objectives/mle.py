"""MLE: next-token likelihood of the supervised tokens."""

from torch.nn import functional as F

from alignlab.batch import IGNORE, Batch
from alignlab.functional import upcast
from alignlab.objectives.base import Loss, Objective


class MLE(Objective):
    """Minimise the negative log-likelihood of the answers' tokens.

        mean over supervised t of -log p(y_t | y_<t, image)        in nats per token

    The mean is over all supervised tokens of the optimizer step. The LM head runs on the positions that predict one.
    """

    requires = ("conversation",)

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        targets = F.pad(chat.labels[:, 1:], (0, 1), value=IGNORE)  # (B, T): position t predicts label t + 1
        kept = targets != IGNORE
        logits = upcast(self.backbone(chat, logits_at=kept).logits)  # (M, V)
        correct = (logits.detach().argmax(-1) == targets[kept]).float()
        count = kept.sum().clamp(min=1)  # a batch without targets has loss 0
        mean = F.cross_entropy(logits, targets[kept], reduction="sum") / count
        return Loss(mean, kept.sum(), {"token_accuracy": correct.sum() / count})
