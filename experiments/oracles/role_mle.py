"""RoleMLE: likelihood that knows which words of an answer their picture shows, or does so blindly."""

from random import Random

import torch
from torch import Tensor

from alignlab import Batch, InputError, Loss, Objective
from alignlab.functional import supervised, token_logps


class RoleMLE(Objective):
    """Minimise the negative log-likelihood with a weight for the true role of each token's word.

        sum over supervised t of w(role_t) * -log p(y_t | y_<t, image) / sum of the w        in nats per token

    An oracle: no method can know the roles. Its placebo gives the same weights of a batch to other tokens of its
    answers' words. Tokens of no word weigh 1; with all weights 1 it is MLE.

    Args:
        visual: Weight of what is read off the picture.
        filler: Weight of what is said whatever the picture shows.
        contradictory: Weight of what is false of the picture; 0 forgets the noise of the captions.
        shuffled: Be the placebo; which tokens lose depends on the batch's ids, not on chance.
    """

    requires = ("conversation", "roles")

    def __init__(
        self, backbone, *, visual: float = 1.0, filler: float = 1.0, contradictory: float = 0.0, shuffled: bool = False
    ) -> None:
        super().__init__(backbone)
        if min(visual, filler, contradictory) < 0:
            raise InputError(f"RoleMLE needs weights >= 0, got {visual = }, {filler = }, {contradictory = }")
        self.weight_of = (visual, filler, contradictory, 1.0)  # in the order of alignlab.batch.ROLES; -1 is no role
        self.shuffled = shuffled
        if shuffled:
            self.coupled = self.per_process = "the weights of a micro-batch are dealt out within it"

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        kept = supervised(chat.labels)  # (B, T-1)
        logps = token_logps(self.backbone(chat).logits, chat.labels)
        roles = batch.roles[:, 1:]
        weights = logps.new_tensor(self.weight_of)[roles] * kept
        if self.shuffled:
            weights = dealt(weights, kept & (roles >= 0), batch.ids)
        total = weights.sum()
        plain = -logps.detach().sum() / kept.sum().clamp(min=1)
        mean = -(weights * logps).sum() / total.clamp(min=1e-30)
        return Loss(mean, total, {"likelihood_loss": plain, "mean_weight": total / kept.sum().clamp(min=1)})


def dealt(weights: Tensor, where: Tensor, ids: tuple[str, ...]) -> Tensor:
    """Deal the weights (B, T-1) at the marked places out anew: the lowest lot, drawn by id, gets the lowest weight."""
    chances = [Random(id) for id in ids]
    lots = [chance.random() for chance, count in zip(chances, where.sum(1).tolist(), strict=True) for _ in range(count)]
    order = torch.tensor(lots, device=weights.device).argsort()
    dealt = torch.empty_like(weights[where])
    dealt[order] = weights[where].sort().values
    return weights.masked_scatter(where, dealt)
