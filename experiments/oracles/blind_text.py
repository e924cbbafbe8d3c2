"""BlindText: a language model learns that the captions of different pictures are alike: LLM2CLIPText's placebo."""

from dataclasses import replace

import torch

from alignlab import Batch, Loss
from alignlab.objectives import LLM2CLIPText


class BlindText(LLM2CLIPText):
    """Minimise LLM2CLIPText after the captions of the batch's pictures are dealt out anew, in order of their kind.

    Each picture then has as many captions as before, nearly all of them other pictures'.
    """

    per_process = "captions are dealt out within a process"

    def loss(self, batch: Batch) -> Loss:
        kinds = torch.cat([torch.arange(count) for count in batch.num_captions.tolist()])
        order = kinds.argsort(stable=True).to(batch.num_captions.device)
        return super().loss(replace(batch, captions=batch.captions.select(order)))
