"""CLIP: each picture finds its text among the batch's, and each text its picture, at a learned scale."""

import torch
from torch import Tensor

from alignlab.batch import Batch
from alignlab.functional import info_nce, similarities, upcast
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive
from alignlab.objectives.pairs import clamp, cosine_report, learned_scale, upper_end


class CLIP(Contrastive):
    """Minimise the cross-entropy of picking the right partner, in both directions.

        (mean_i -log softmax_j(s <x_i, y_j>)_i + mean_j -log softmax_i(s <x_i, y_j>)_j) / 2      in nats per pair

    Radford et al. 2021, https://arxiv.org/abs/2103.00020, Figure 3; open_clip's ``ClipLoss`` with local rows against
    the columns of all processes and gradients through the gathering. x is the ``query`` and y the ``target``. On a dual
    encoder it is the model's own scale that is trained, and saved with it; on a vision-language model the objective has
    one. Equal to ``InfoNCE`` with its defaults there, but for where the scale comes from.

    Args:
        scale: Where the multiplier on the cosines starts; None: where the model left it, else at 1 / 0.07.
        max_scale: Its upper end, enforced after every step; None: free. A model that comes with a larger scale, as
            SigLIP's weights do, lifts it, with a warning: else the first step would change the model for the worse.
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("query", "target")

    def __init__(
        self, backbone, *, scale: float | None = None, max_scale: float | None = 100.0, chunk_size: int | None = None
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        name = type(self).__name__
        self.log_scale = learned_scale(name, backbone, scale, default=1 / 0.07)
        self.max_scale = upper_end(name, self.log_scale, scale, max_scale)

    def loss(self, batch: Batch) -> Loss:
        return self.compared(self.embed(batch.query), self.embed(batch.target))

    def compared(self, images: Tensor, texts: Tensor, *, label_smoothing: float = 0.0) -> Loss:
        """The loss of B pairs of normalised embeddings, (B, D) each."""
        all_images, start = self.gather(images)  # (N, D)
        all_texts, _ = self.gather(texts)
        own = torch.arange(start, start + len(images), device=images.device)
        scale = upcast(self.log_scale).exp().squeeze()  # SigLIP's is a vector of one
        settings = {"scale": scale, "labels": own, "label_smoothing": label_smoothing}
        mean = (info_nce(images, all_texts, **settings) + info_nce(texts, all_images, **settings)) / 2
        report = {"scale": scale.detach()} | cosine_report(similarities(images, all_texts), own)
        return Loss(mean, len(images), report)

    def after_step(self) -> None:
        clamp(self.log_scale, self.max_scale)
