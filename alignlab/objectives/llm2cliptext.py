"""LLM2CLIPText: a language model learns to tell the captions of one picture from those of others."""

import torch

from alignlab.batch import Batch
from alignlab.errors import InputError
from alignlab.functional import multi_positive_info_nce, similarities
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive, key


class LLM2CLIPText(Contrastive):
    """Minimise, for each caption, the cross-entropy of finding another one of its picture among those of others.

        mean over captions i and others j of i's picture of
        -log( exp(s <c_i, c_j>) / (exp(s <c_i, c_j>) + sum over k of other pictures of exp(s <c_i, c_k>)) )

    Caption-contrastive tuning of LLM2CLIP, Huang et al. 2024, https://arxiv.org/abs/2411.04997, before its language
    model becomes a text tower (``LLM2CLIP``). Differs from the official ``HardNegativeNLLLoss``: any number of captions
    a picture, each of which searches for each other one (there a drawn direction of two), and the candidates are all
    captions of the batch's other pictures (there the other kind's, and one drawn caption of the same kind). Embedded
    is the state of the last token under causal attention, as everywhere in alignlab; by the paper's ablation that
    and mean pooling under bidirectional attention differ by 0.4 points at most.

    Args:
        scale: Multiplier on the cosines, = 1 / temperature.
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("captions",)

    def __init__(self, backbone, *, scale: float = 50.0, chunk_size: int | None = None) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        if scale <= 0:
            raise InputError(f"LLM2CLIPText needs scale > 0, got {scale}")
        self.scale = scale

    def loss(self, batch: Batch) -> Loss:
        captions = self.embed(batch.captions)  # (C, D)
        candidates, start = self.gather(captions)  # (all C, D)
        picture = torch.tensor([key(id) for id in batch.ids], device=captions.device)
        picture = picture.repeat_interleave(batch.num_captions.to(picture.device))
        same = picture[:, None] == self.gather(picture)[0]  # (C, all C)
        own = torch.arange(start, start + len(captions), device=captions.device)
        right = same.scatter(1, own[:, None], False)
        mean = multi_positive_info_nce(captions, candidates, scale=self.scale, positives=right, exclude=same)
        cosines = similarities(captions, candidates).detach()
        nearest = cosines.scatter(1, own[:, None], -2.0).argmax(1)
        asked = right.any(1)
        report = {
            "accuracy": (right.gather(1, nearest[:, None])[:, 0] & asked).sum() / asked.sum().clamp(min=1),
            "positive_cosine": (cosines * right).sum() / right.sum().clamp(min=1),
            "negative_cosine": (cosines * ~same).sum() / (~same).sum().clamp(min=1),
        }
        return Loss(mean, asked.sum(), report)
