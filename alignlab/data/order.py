"""order: which examples make a batch at which step; a function of seed and epoch alone, resumed inside an epoch."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from alignlab.errors import InputError

MEGABATCH = 50
"""Batches whose examples are sorted by their length before they are cut."""


class Order(Protocol):
    """A batch sampler of torch that can begin inside an epoch."""

    start: int
    """The batch that the next pass begins with."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class ShuffledBatches:
    """Batches of indices, reshuffled every epoch by (seed, epoch) alone; a last, short batch is dropped.

    Args:
        run: Neighbours that many at a time stay neighbours, so that they share a batch but where it ends.
        lengths: Of the examples. Then batches are of about one length: of every ``MEGABATCH`` of them, the examples
            are sorted, cut and dealt to the processes, and the batches are shuffled again.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int,
        processes: int,
        run: int = 1,
        lengths: Sequence[int] | None = None,
        who: str,
    ) -> None:
        check_size(size, batch_size, processes, who)
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes, self.run = rank, processes, run
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        order = permutation(self.size, self.run, generator)
        if self.lengths is not None:
            order = by_length(order, self.lengths, self.batch_size, self.processes, generator)
        first, self.start = self.start, 0
        for index in range(first, len(self)):
            start = (index * self.processes + self.rank) * self.batch_size
            yield order[start : start + self.batch_size].tolist()


def check_size(size: int, batch_size: int, processes: int, who: str) -> None:
    """Raise InputError if there is not one batch for every process."""
    if size < batch_size * processes:
        raise InputError(
            f"{who} has {size} training examples, fewer than one batch of {batch_size} for {processes} "
            f"process(es); set data.batch_size to at most {max(size // processes, 1)} or give it more examples"
        )


def permutation(size: int, run: int, generator: torch.Generator) -> Tensor:
    """The places 0 to size - 1 in a drawn order, in which runs of neighbours stay together. (size,) long"""
    runs = torch.randperm(math.ceil(size / run), generator=generator)
    order = (runs[:, None] * run + torch.arange(run)).flatten()
    return order[order < size]


def by_length(order: Tensor, lengths: Tensor, batch_size: int, processes: int, generator: torch.Generator) -> Tensor:
    """The whole steps of an order, regrouped so that those of a step are of about one length. (M,) long"""
    step = batch_size * processes
    regrouped = []
    for mega in order[: len(order) // step * step].split(MEGABATCH * step):
        ranked = mega[lengths[mega].argsort(stable=True)].view(-1, step)
        ranked = ranked[torch.randperm(len(ranked), generator=generator)]
        # Every process gets each so-manieth, and not one the short and the next one the long examples.
        regrouped.append(ranked.view(-1, batch_size, processes).transpose(1, 2).flatten())
    return torch.cat(regrouped)


class MixedBatches:
    """Batches of indices into several sources, one after the other, drawn by weight; by (seed, epoch) alone.

    Sources are drawn with replacement; what is drawn of one goes through a permutation of its own, then another, also
    across epochs, so none of its examples comes again before all have come.

    Args:
        sizes: Of the sources, in their order.
        shares: How often each is drawn, which add up to 1.
        runs: Neighbours that stay together in each source's permutation.
        homogeneous: Draw a source for each step, and not for each example; passes through a source then end with the
            last whole step.
        num_samples: Examples an epoch, of all processes.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[float],
        runs: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        rank: int,
        processes: int,
        homogeneous: bool,
        num_samples: int,
    ) -> None:
        self.sizes, self.shares, self.runs = sizes, torch.tensor(shares, dtype=torch.float64), runs
        self.batch_size, self.seed, self.rank, self.processes = batch_size, seed, rank, processes
        self.homogeneous, self.num_samples = homogeneous, num_samples
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        first, self.start = self.start, 0
        for index in range(first, len(self)):
            start = (index * self.processes + self.rank) * self.batch_size
            yield order[start : start + self.batch_size].tolist()

    def _order(self) -> Tensor:
        """The indices of an epoch, all processes', step by step."""
        step = self.batch_size * self.processes
        before = sum(self._drawn(epoch).bincount(minlength=len(self.sizes)) for epoch in range(self.epoch))
        drawn = self._drawn(self.epoch)
        order = torch.empty(len(self) * step, dtype=torch.long)
        first = 0
        for source, size in enumerate(self.sizes):
            places = (drawn == source).nonzero().flatten()
            done = int(before[source]) if self.epoch else 0
            if self.homogeneous:  # of a step's places
                places = (places[:, None] * step + torch.arange(step)).flatten()
                done *= step
            each = size // step * step if self.homogeneous else size
            number = torch.arange(done, done + len(places))
            for turn in (number // each).unique().tolist():
                generator = torch.Generator().manual_seed(hash((self.seed, source, turn, 1)) % 2**63)
                own = number // each == turn
                order[places[own]] = first + permutation(size, self.runs[source], generator)[number[own] % each]
            first += size
        return order

    def _drawn(self, epoch: int) -> Tensor:
        """The source of each step, or of each example of whole steps, of an epoch. (M,) long"""
        generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
        count = len(self) * (1 if self.homogeneous else self.batch_size * self.processes)
        chance = torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.bucketize(chance, self.shares.cumsum(0)[:-1], right=True)


class SourceBatches:
    """All examples of several sources once, each batch of one source.

    The first batch of each source comes first, then the second ones, so the first ones are of all sources.

    Args:
        sizes: Of the sources, in their order.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int) -> None:
        self.sizes, self.batch_size = sizes, batch_size

    def __len__(self) -> int:
        return sum(math.ceil(size / self.batch_size) for size in self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        whole = range(sum(self.sizes))
        own = [whole[end - size : end] for end, size in zip(accumulate(self.sizes), self.sizes, strict=True)]
        for start in range(0, max(self.sizes, default=0), self.batch_size):
            yield from (list(part[start : start + self.batch_size]) for part in own if start < len(part))


class StepNumbers:
    """What a stream is asked for: the numbers of the batches, one at a time.

    Args:
        count: Batches that all of training takes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.start = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        # Not before the first number is asked for: a loader with workers makes two iterators, and reads the second.
        first, self.start = self.start, 0
        yield from ([number] for number in range(first, self.count))
