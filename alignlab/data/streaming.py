"""streaming: an endless shuffled order of the examples of a stream, divided among processes and workers."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch.utils.data import Dataset

from alignlab.batch import Example
from alignlab.data.loaders import Chosen
from alignlab.data.readable import decoded
from alignlab.data.stream import Stream
from alignlab.errors import InputError, UnreadablePicture

PATIENCE = 10_000
"""Examples in a row that cannot be read, after which a stream that skips them gives up."""


@dataclass(frozen=True)
class Reader:
    """Who reads: one worker of one process.

    Args:
        number: Its place among all workers of all processes.
        of: How many those are.
    """

    number: int
    of: int


def check_readers(stream: Stream, processes: int, workers: int, max_steps: int, *, who: str) -> None:
    """Raise InputError if a stream cannot be divided among the workers of all processes, or nothing says its end."""
    if max_steps < 1:
        raise InputError(f"{who} streams its training examples, which have no end; set trainer.max_steps")
    if stream.num_shards < processes * workers:
        raise InputError(
            f"{who} has {stream.num_shards} shard(s) for {processes} process(es) with {workers} worker(s), each of "
            f"which reads shards of its own; set data.num_workers to at most {stream.num_shards // processes}, start "
            "fewer processes, or cut the data into more shards"
        )


def check_unlimited(limit_train_batches: float | None, *, who: str) -> None:
    """Raise InputError if epochs are cut: each would read the first batches of the stream again."""
    if limit_train_batches not in (None, 1.0) or isinstance(limit_train_batches, int):
        raise InputError(
            f"{who} streams its training examples, whose one epoch lasts as long as the training, so there is no "
            "limit_train_batches; trainer.max_steps says where it ends"
        )


def endless(stream: Stream, reader: Reader, *, seed: int, buffer: int) -> Iterator[Example]:
    """A reader's examples: in every pass its share of the shards, which are dealt out in a new order.

    A pass is given to its end before the next one begins, so an example can stand twice in a batch only where two
    passes meet.

    Args:
        buffer: Examples among which the next one is drawn; it is filled before the first one of a pass comes.
    """
    chance = Random(f"{seed} {reader.number} {reader.of}")
    turn, empty = 0, 0
    while empty < stream.num_shards:
        found = False
        for example in _shuffled(_in_order(stream, reader, seed, turn), buffer, chance):
            found = True
            yield example
        turn, empty = turn + 1, 0 if found else empty + 1
    raise InputError(f"a stream of {stream.num_shards} shards gave no example in {empty} passes")


def _shuffled(examples: Iterator[Example], buffer: int, chance: Random) -> Iterator[Example]:
    kept: list[Example] = []
    for example in examples:
        if len(kept) < buffer:
            kept.append(example)
        else:
            place = chance.randrange(buffer)
            yield kept[place]
            kept[place] = example
    chance.shuffle(kept)
    yield from kept


def _in_order(stream: Stream, reader: Reader, seed: int, turn: int) -> Iterator[Example]:
    generator = torch.Generator().manual_seed(hash((seed, turn)) % 2**63)
    shards = torch.randperm(stream.num_shards, generator=generator).tolist()
    for shard in shards[reader.number :: reader.of]:
        yield from stream.shard(shard)


class Streamed(Dataset):
    """A stream as torch's loader wants it: asked for the number of a batch, it reads on to that batch.

    Worker w of W reads the batches w, w + W, ... of its process. To go on at a batch, what comes before it is read once
    more, but none of its pictures is decoded, so this is as fast as ``Stream.shard`` gives examples.

    Args:
        stream: What is read.
        first: The place of the process's first worker among all workers.
        num_readers: Workers of all processes.
        num_workers: Workers of this process, at least 1.
        buffer: Examples among which the next one is drawn.
        max_pixels: Pictures of more pixels are not decoded.
        skip: Let the next example that can be read stand in for one that cannot; it comes again in its own place.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        seed: int,
        first: int,
        num_readers: int,
        num_workers: int,
        buffer: int,
        max_pixels: int,
        skip: bool,
    ) -> None:
        self.stream, self.batch_size, self.seed, self.buffer = stream, batch_size, seed, buffer
        self.first, self.num_readers, self.num_workers = first, num_readers, num_workers
        self.max_pixels, self.skip = max_pixels, skip
        self._reading: dict[int, _Reading] = {}

    def __getitems__(self, numbers: list[int]) -> Chosen:
        turn, worker = divmod(numbers[0], self.num_workers)
        reading = self._reading.get(worker)
        if reading is None or reading.done > turn:
            reader = Reader(self.first + worker, self.num_readers)
            reading = _Reading(endless(self.stream, reader, seed=self.seed, buffer=self.buffer))
            self._reading[worker] = reading
        for _ in range(reading.done, turn):
            reading.batch(self.batch_size)
        return self._decoded(reading.batch(self.batch_size), reading)

    def _decoded(self, examples: list[Example], reading: "_Reading") -> Chosen:
        found: list[Example] = []
        skipped: list[str] = []
        ahead = 0
        for example in examples:
            for _ in range(PATIENCE):
                try:
                    found.append(decoded(example, self.max_pixels))
                    break
                except UnreadablePicture as error:
                    if not self.skip:
                        raise UnreadablePicture(f"example {example.id!r}: {error}") from None
                    skipped.append(example.id)
                    example, ahead = reading.peek(ahead), ahead + 1
            else:
                raise InputError(f"none of {PATIENCE} examples in a row can be read")
        return Chosen(found, tuple(skipped))


class _Reading:
    """How far an order has been read: so many batches, and some examples that were looked at ahead."""

    def __init__(self, order: Iterator[Example]) -> None:
        self.order, self.done = order, 0
        self._ahead: deque[Example] = deque()

    def batch(self, size: int) -> list[Example]:
        self.done += 1
        return [self._ahead.popleft() if self._ahead else next(self.order) for _ in range(size)]

    def peek(self, distance: int) -> Example:
        """The example so many after the next one, which stays where it is."""
        while len(self._ahead) <= distance:
            self._ahead.append(next(self.order))
        return self._ahead[distance]
