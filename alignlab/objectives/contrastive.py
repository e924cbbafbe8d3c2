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
        chunks = self.chunks(tokens)
        embeddings = torch.cat([self._recomputed(tokens, rows) for rows in chunks])
        return normalize(embeddings[torch.cat(chunks).argsort()])

    def chunks(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """The rows that are embedded together, ``chunk_size`` at most."""
        # The longest first: the memory that they leave free is large enough for all others.
        order = tokens.attention_mask.sum(1).argsort(stable=True, descending=True)
        return order.split(self.chunk_size or len(order))

    def gather(self, embeddings: Tensor) -> tuple[Tensor, int]:
        """The embeddings (N, D) of all processes, and where one's own begin.

        In validation each process sees all the data, and so its own embeddings alone.
        """
        return gather(embeddings) if self.training else (embeddings, 0)

    def candidates(
        self, batch: Batch, targets: Tensor, *, negatives: bool, groups: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the batch's queries choose among: the targets of all processes, then all samples' own negatives.

        Args:
            targets: (B, D), embedded.
            negatives: Whether the samples' own negatives count; else N + M is N.
            groups: Whether samples of one group are left out of each other's candidates.

        Returns:
            Candidates (N + M, D), the place (B,) of each sample's own target, and with groups (B, N + M) bool, which
            are of the sample's group.
        """
        found, start = self.gather(targets)
        if negatives:  # none of one's own are a part of the targets, which every process has to gather all the same
            own = targets[:0] if batch.negatives is None else self.embed(batch.negatives)
            found = torch.cat([found, self.gather(own)[0]])
        places = torch.arange(start, start + len(targets), device=targets.device)
        return found, places, self.same_group(batch, len(found)) if groups else None

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
