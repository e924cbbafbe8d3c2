"""InfoNCE: each query finds its target among the batch's, and each target its query."""

import math

import torch

from alignlab.batch import Batch
from alignlab.errors import InputError
from alignlab.functional import info_nce, similarities
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive
from alignlab.objectives.pairs import clamp, cosine_report


class InfoNCE(Contrastive):
    """Minimise the cross-entropy of picking the right target among the batch's.

        (mean_i -log softmax_j(s <q_i, t_j>)_i + mean_j -log softmax_i(s <q_i, t_j>)_j) / 2      in nats per pair

    q and t are normalised embeddings. Source: van den Oord et al. 2018, arXiv 1807.03748; symmetric and with a learned
    scale as CLIP, Radford et al. 2021, arXiv 2103.00020; negatives that serve all queries as in LLM2CLIP's
    ``HardNegativeNLLLoss`` and VLM2Vec. At chance the loss is ln B, where B counts the pairs of all processes.

    Args:
        scale: Multiplier on the cosines, = 1 / temperature; where it starts, when it is learned.
        learn_scale: Train the scale's logarithm.
        max_scale: Upper end of a learned scale, enforced after every step as open_clip does; None: free.
        symmetric: Both directions; else queries find targets only. Targets never choose among negatives.
        negatives: Each sample's own negatives (any number, or none) join the candidates of all queries.
        groups: Samples of one group are no negatives of each other, as they are right for each other.
        label_smoothing: In [0, 1).
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("query", "target")

    def __init__(
        self,
        backbone,
        *,
        scale: float = 1 / 0.07,
        learn_scale: bool = True,
        max_scale: float | None = 100.0,
        symmetric: bool = True,
        negatives: bool = False,
        groups: bool = False,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        if scale <= 0 or (learn_scale and max_scale is not None and scale > max_scale):
            raise InputError(
                f"InfoNCE needs 0 < scale <= max_scale, got {scale = }, {max_scale = }; max_scale: null lifts it"
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(f"InfoNCE needs 0 <= label_smoothing < 1, got {label_smoothing}")
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)
        self.max_scale = max_scale
        self.symmetric, self.groups = symmetric, groups
        self.requires += ("negatives",) * negatives + ("group",) * groups
        self.negatives = negatives
        self.label_smoothing = label_smoothing

    def loss(self, batch: Batch) -> Loss:
        queries, targets = self.embed(batch.query), self.embed(batch.target)  # (B, D)
        all_queries, _ = self.gather(queries)  # (N, D)
        candidates, own, same = self.candidates(batch, targets, negatives=self.negatives, groups=self.groups)
        settings = {"scale": self.log_scale.exp(), "labels": own, "label_smoothing": self.label_smoothing}
        mean = info_nce(queries, candidates, exclude=same, **settings)
        if self.symmetric:
            same = None if same is None else same[:, : len(all_queries)]
            mean = (mean + info_nce(targets, all_queries, exclude=same, **settings)) / 2
        report = {"scale": self.log_scale.detach().exp()} | cosine_report(similarities(queries, candidates), own)
        return Loss(mean, len(batch), report)

    def after_step(self) -> None:
        if self.log_scale.requires_grad:
            clamp(self.log_scale, self.max_scale)
