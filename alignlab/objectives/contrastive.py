"""Contrastive: the base of what compares embeddings across the batch, of all processes and in any number of chunks."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignlab.batch import Tokens
from alignlab.errors import InputError
from alignlab.functional import gather, normalize
from alignlab.objectives.base import Objective


class Contrastive(Objective):
    """Base of objectives on embeddings; a subclass writes ``loss`` with ``embed`` and ``gather``.

    With a chunk size a batch's memory is that of its embeddings and of one chunk's activations, for one more forward
    pass, and the gradient is exact: GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983. A chunk holds
    sequences of like lengths and is padded to its own longest only.

    Args:
        chunk_size: Sequences that are embedded at a time; None: all.
    """

    coupled = "a sample is compared with the others of its own micro-batch; for more of them, set chunk_size"

    def __init__(self, backbone, *, chunk_size: int | None = None) -> None:
        super().__init__(backbone)
        if chunk_size is not None and chunk_size < 1:
            raise InputError(
                f"{type(self).__name__} needs chunk_size >= 1, or null for all sequences at once, got {chunk_size}"
            )
        self.chunk_size = chunk_size

    def embed(self, tokens: Tokens) -> Tensor:
        """Normalised embeddings (B, D)."""
        if self.chunk_size is None:
            return normalize(self.backbone.embed(tokens))
        # The longest first: the memory that they leave free is large enough for all others.
        order = tokens.attention_mask.sum(1).argsort(stable=True, descending=True)
        embeddings = torch.cat([self._recomputed(tokens, rows) for rows in order.split(self.chunk_size)])
        return normalize(embeddings[order.argsort()])

    def gather(self, embeddings: Tensor) -> tuple[Tensor, int]:
        """The embeddings (N, D) of all processes, and where one's own begin.

        In validation each process sees all the data, and so its own embeddings alone.
        """
        return gather(embeddings) if self.training else (embeddings, 0)

    def _recomputed(self, tokens: Tokens, rows: Tensor) -> Tensor:
        # Cut within, so that no copies of pictures wait for the second pass; the ids are handed over so that torch
        # finds the device whose generator it has to set back for it.
        return checkpoint(lambda ids: self.backbone.embed(tokens.select(rows)), tokens.input_ids, use_reentrant=False)
