"""SigLIP: every picture and every text of the batch are told to belong together, or not to, pair by pair."""

import math
from typing import Literal

import torch

from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.functional import sigmoid_contrastive, similarities, upcast
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive
from alignlab.objectives.pairs import clamp, cosine_report, learned_bias, learned_scale, upper_end


class SigLIP(Contrastive):
    """Minimise the negative log-likelihood of which pairs belong together.

        mean_i sum_j -log sigmoid(z_ij (s <x_i, y_j> + b)),   z_ij = 1 where i = j, else -1      in nats per picture

    Zhai et al. 2023, https://arxiv.org/abs/2303.15343; open_clip's ``SigLipLoss``. j runs over the texts of all
    processes; those of others are gathered at once instead of passed on in a ring, which is the same sum. x is the
    ``query`` and y the ``target``. On a dual encoder scale and bias are the model's own, where it has them.

    Args:
        scale: Where the multiplier on the cosines starts; None: where the model left it, else at 10.
        max_scale: Its upper end, enforced after every step; None: free. Lifted as in ``CLIP``.
        init_bias: Where the bias starts; None: where the model left it, else at -10, which suits batches of tens of
            thousands; auto: at ln(p / (1 - p)) with p = 1 / N, the share of right ones among the N texts of a batch
            over all processes, which is about as good at small ones (open_clip#650).
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("query", "target")

    def __init__(
        self,
        backbone,
        *,
        scale: float | None = None,
        max_scale: float | None = None,
        init_bias: float | Literal["auto"] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        self.log_scale = learned_scale("SigLIP", backbone, scale, default=10.0)
        self.max_scale = upper_end("SigLIP", self.log_scale, scale, max_scale)
        self.auto = init_bias == "auto"
        self.bias = learned_bias(backbone, None if self.auto else init_bias, default=-10.0)

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        """Set the bias by the batch's size; a checkpoint that training goes on from is read after this."""
        if not self.auto:
            return
        pairs = data.batch_size * num_processes
        if pairs < 2:
            raise InputError("SigLIP: init_bias: auto needs at least two pairs a step, got 1; set data.batch_size")
        with torch.no_grad():
            self.bias.fill_(-math.log(pairs - 1))  # ln(p / (1 - p)) for p = 1 / pairs

    def loss(self, batch: Batch) -> Loss:
        images, texts = self.embed(batch.query), self.embed(batch.target)  # (B, D)
        all_texts, start = self.gather(texts)  # (N, D)
        others = torch.cat([all_texts[:start], all_texts[start + len(texts) :]])
        scale, bias = upcast(self.log_scale).exp().squeeze(), upcast(self.bias).squeeze()
        mean = sigmoid_contrastive(images, texts, scale=scale, bias=bias)
        mean = mean + sigmoid_contrastive(images, others, scale=scale, bias=bias, negatives_only=True)
        own = torch.arange(start, start + len(images), device=images.device)
        report = {"scale": scale.detach(), "bias": bias.detach()}
        return Loss(mean, len(images), report | cosine_report(similarities(images, all_texts), own))

    def after_step(self) -> None:
        clamp(self.log_scale, self.max_scale)
