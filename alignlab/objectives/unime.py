"""UniME: each query finds its target among the hardest of the batch's, those that may be right as well left out."""

from typing import Literal

from alignlab.batch import Batch
from alignlab.errors import InputError
from alignlab.functional import hard_cross_entropy, hard_negatives, repeated, similarities
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive


class UniME(Contrastive):
    """Minimise InfoNCE against the hardest negatives, false ones filtered.

        mean_i -log( exp(s <q_i, t_i>) / (exp(s <q_i, t_i>) + sum over hard j of exp(s <q_i, t_j>)) )  in nats per query

    Second stage of UniME, Gu et al. 2025, https://arxiv.org/abs/2504.17432. Hard are the ``num_hard`` most similar
    candidates of all processes, but for those more similar than the positive by over ``margin``. Differs from the
    official file, which trains nothing when it gathers, and takes filtered targets and the positive itself as negatives
    where candidates are too few: here they never come back, and a query without candidates has no part in the mean.

    Args:
        scale: Multiplier on the cosines, = 1 / temperature.
        num_hard: Hard negatives of a query; all candidates where there are fewer.
        margin: Of the filter, in cosines; a negative one filters true hard negatives, too.
        fill: Where candidates are too few: ``mask``, compare with those there are; ``duplicate``, repeat them, as the
            paper has it.
        negatives: Each sample's own negatives (any number, or none) join the candidates of all queries.
        groups: Samples of one group are no negatives of each other, whatever their similarity.
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("query", "target")

    def __init__(
        self,
        backbone,
        *,
        scale: float = 50.0,
        num_hard: int = 8,
        margin: float = 0.1,
        fill: Literal["mask", "duplicate"] = "mask",
        negatives: bool = False,
        groups: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        if scale <= 0 or num_hard < 1:
            raise InputError(f"UniME needs scale > 0 and num_hard >= 1, got {scale = }, {num_hard = }")
        self.scale, self.num_hard, self.margin, self.fill = scale, num_hard, margin, fill
        self.negatives, self.groups = negatives, groups
        self.requires += ("negatives",) * negatives + ("group",) * groups

    def loss(self, batch: Batch) -> Loss:
        queries, targets = self.embed(batch.query), self.embed(batch.target)  # (B, D)
        candidates, own, same = self.candidates(batch, targets, negatives=self.negatives, groups=self.groups)
        cosines = similarities(queries, candidates)  # (B, N + M)
        hard, missing = hard_negatives(cosines, num_hard=self.num_hard, margin=self.margin, labels=own, exclude=same)
        if self.fill == "duplicate":
            hard, missing = repeated(hard, missing, self.num_hard)
        mean = hard_cross_entropy(cosines, hard, missing, scale=self.scale, labels=own)
        cosines = cosines.detach()
        positive = cosines.gather(1, own[:, None])
        report = {
            "accuracy": (cosines.argmax(1) == own).float().mean(),
            "filtered": (cosines > positive + self.margin).float().mean(),
            "positive_cosine": positive.mean(),
            "hard_cosine": cosines.gather(1, hard)[~missing].sum() / (~missing).sum().clamp(min=1),
        }
        return Loss(mean, (~missing).any(1).sum(), report, report_weight=len(batch))
