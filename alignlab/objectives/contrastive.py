"""Contrastive: the base of what compares embeddings across the batch, of all processes and in any number of chunks."""

from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from alignlab.batch import Batch, Tokens
from alignlab.data import AlignmentData
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

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        if data.batch_size * num_processes < 2 and "negatives" not in self.requires:
            raise InputError(
                f"{type(self).__name__} compares each sample with the others of its batch, and with data.batch_size = "
                f"{data.batch_size} in one process there is no other; set data.batch_size to at least 2"
            )

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

    def gather_negatives(self, batch: Batch, like: Tensor) -> Tensor:
        """The embeddings (M, D) of all samples' own negatives, of all processes.

        Args:
            like: Embeddings of the batch, in whose place none are taken where it has no negatives.
        """
        own = like[:0] if batch.negatives is None else self.embed(batch.negatives)
        return self.gather(own)[0]

    def same_group(self, batch: Batch, num_candidates: int) -> Tensor:
        """Which candidates are of the group of each sample, (B, num_candidates) bool.

        The first candidates are what the samples of all processes hold; those after them are of no group, and neither
        is a sample without one.
        """
        own = torch.tensor([key(group) for group in batch.groups], device=self.backbone.device)
        everywhere = self.gather(own)[0]
        same = (own[:, None] == everywhere) & (own[:, None] != 0)
        return F.pad(same, (0, num_candidates - len(everywhere)))

    def _recomputed(self, tokens: Tokens, rows: Tensor) -> Tensor:
        # Cut within, so that no copies of pictures wait for the second pass; the ids are handed over so that torch
        # finds the device whose generator it has to set back for it.
        return checkpoint(lambda ids: self.backbone.embed(tokens.select(rows)), tokens.input_ids, use_reentrant=False)


def key(group: str) -> int:
    """A number that stands for a group in all processes, which Python's own hash of a text would not; 0 for none."""
    return int.from_bytes(blake2b(group.encode(), digest_size=7).digest()) if group else 0
