"""FocalMLE: likelihood that looks harder at the tokens the model still gets wrong."""

from alignlab import Batch, Loss, Objective
from alignlab.functional import supervised, token_logps


class FocalMLE(Objective):
    """Minimise the mean over supervised tokens of -(1 - p)^gamma log p (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    Args:
        gamma: 0 gives MLE; larger ones count easy tokens less.
    """

    requires = ("conversation",)

    def __init__(self, backbone, *, gamma: float = 2.0) -> None:
        super().__init__(backbone)
        self.gamma = gamma

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        logps = token_logps(self.backbone(chat).logits, chat.labels)  # (B, T-1)
        count = supervised(chat.labels).sum()
        mean = ((1 - logps.exp()) ** self.gamma * -logps).sum() / count
        return Loss(mean, count, {"likelihood_loss": -logps.detach().sum() / count})
