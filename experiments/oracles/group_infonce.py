"""GroupInfoNCE: InfoNCE on hard negatives that knows which candidates are right as well, or forgets some blindly."""

import math
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab import Batch, InputError, Loss
from alignlab.objectives import InfoNCE


class GroupInfoNCE(InfoNCE):
    """Minimise InfoNCE, both ways, against the hardest candidates but for those of the searcher's own group.

        mean_i -log softmax_{j = i or j hard for i}(s <q_i, t_j>)_i, and so for targets        in nats per pair

    An oracle: no method can know the groups. Its placebo forgets as many true negatives of each searcher instead,
    drawn from the ids; its baseline forgets nothing. Without groups all three are the same, and with all
    candidates InfoNCE.

    Args:
        scale: Multiplier on the cosines, = 1 / temperature, where it starts; it is learned.
        max_scale: Its upper end.
        forgets: Candidates that are left out: those of the searcher's own group, as many others, or none.
        hardest: How many of the other candidates are kept, those of the largest cosine; None: all.
    """

    requires = ("query", "target", "group")
    per_process = "groups are compared within a process"

    def __init__(
        self,
        backbone,
        *,
        scale: float = 1 / 0.07,
        max_scale: float = 100.0,
        forgets: Literal["own", "others", "none"] = "own",
        hardest: int | None = None,
    ) -> None:
        super().__init__(backbone, scale=scale, max_scale=max_scale)
        if hardest is not None and hardest < 1:
            raise InputError(f"GroupInfoNCE needs hardest >= 1, or null for all, got {hardest}")
        self.forgets, self.hardest = forgets, hardest

    def loss(self, batch: Batch) -> Loss:
        queries, targets = self.embed(batch.query), self.embed(batch.target)  # (B, D)
        logits = self.log_scale.exp() * queries @ targets.T  # (B, B)
        forgotten = self._forgotten(batch).to(logits.device)
        right = torch.arange(len(batch), device=logits.device)
        both = [F.cross_entropy(_kept(way, forgotten, self.hardest), right) for way in (logits, logits.T)]
        report = {"scale": self.log_scale.detach().exp(), "forgotten": forgotten.float().sum(1).mean()}
        return Loss((both[0] + both[1]) / 2, len(batch), report)

    def _forgotten(self, batch: Batch) -> Tensor:
        same = _same(batch.groups)
        match self.forgets:
            case "own":
                return same
            case "others":
                return blind(same, batch.ids)
            case "none":
                return torch.zeros_like(same)


def _kept(logits: Tensor, forgotten: Tensor, hardest: int | None) -> Tensor:
    """Logits (B, B) of each row's positive, on the diagonal, and of what it is compared with; -inf elsewhere."""
    logits = logits.masked_fill(forgotten, -math.inf)
    if hardest is None or hardest >= len(logits):
        return logits
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    hard = logits.detach().masked_fill(positive, -math.inf).topk(hardest, dim=1).indices
    return logits.masked_fill(~positive.scatter(1, hard, True), -math.inf)


def _same(groups: tuple[str, ...]) -> Tensor:
    """(B, B) bool: two different samples of one group; samples of no group are of none together."""
    return torch.tensor([[a == b != "" and i != j for j, b in enumerate(groups)] for i, a in enumerate(groups)])


def blind(same: Tensor, ids: tuple[str, ...]) -> Tensor:
    """As many marks in each row as there are, or as many as fit, at true negatives drawn from the ids."""
    marked = torch.zeros_like(same)
    for row, count in enumerate(same.sum(1).tolist()):
        others = [j for j in range(len(ids)) if j != row and not same[row, j]]
        lots = {j: Random(f"{ids[row]} {ids[j]}").random() for j in others} if count else {}
        marked[row, sorted(lots, key=lots.get)[:count]] = True
    return marked
