"""DataMixture: several data sets as one, drawn by weight."""

from bisect import bisect_right
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, zip_longest

from PIL import Image

from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.order import MixedBatches, check_size
from alignlab.data.readable import Found, Readable
from alignlab.errors import InputError


class DataMixture(AlignmentData):
    """Several data sets as one; each example's ``source`` is the name that its data set has here.

        sources: {chat: {class_path: LlavaJson, init_args: {...}}, lab: Scenes}
        weights: {chat: 3, lab: 1}

    Training draws a source with replacement, for each example or with ``homogeneous`` for each step, whose batches in
    all processes are then of that source, as contrastive objectives want it. What is drawn of a source goes through a
    permutation of its own, then another, also across epochs, so that none of its examples comes again before all have
    come; drawn for each example, one may come twice in a batch where a pass ends. Validation reads all of each source,
    every batch of one, and gives the metrics of each (``val/<source>/loss``) beside those of all.

    The mixture supplies what all sources supply. Ids and groups begin with the source's name, so those of two sources
    are never the same. A source keeps its own ``unreadable``, ``max_pixels``, ``embeddings`` and ``mined``; the
    mixture's are without effect, and so are the sources' ``batch_size`` and ``num_workers``.

    Args:
        sources: Name -> data set; a name is no path, so it holds no "/".
        weights: Name -> how often a source is drawn, in any unit; null: as often as it has examples.
        homogeneous: Draw a source for each step instead of each example.
        num_samples: Examples an epoch, of all processes; null: as many as all sources have.
        batch_size: Examples a process and micro-batch.
        num_workers: Processes that encode; 0 encodes in the training process.

    Raises:
        InputError: There is no source, weights name others or none to draw, or a source streams.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, AlignmentData],
        weights: Mapping[str, float] | None = None,
        homogeneous: bool = False,
        num_samples: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        _check(sources, weights, num_samples)
        self.sources, self.weights = dict(sources), None if weights is None else dict(weights)
        self.homogeneous, self.num_samples = homogeneous, num_samples
        for data in self.sources.values():
            data.batch_size, data.num_workers = batch_size, num_workers  # what is asked of all, not of the one

    @property
    def supplies(self) -> tuple[str, ...]:
        """The fields that all sources fill."""
        first, *others = self.sources.values()
        return tuple(field for field in first.supplies if all(field in other.supplies for other in others))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of any source."""
        return tuple(dict.fromkeys(split for data in self.sources.values() for split in data.splits))

    @property
    def left_out(self) -> dict[Split, set[str]]:
        found: dict[Split, set[str]] = {}
        for name, data in self.sources.items():
            for split, ids in data.left_out.items():
                found.setdefault(split, set()).update(f"{name}/{id}" for id in ids)
        return found

    def examples(self, split: Split) -> Sequence[Example]:
        return _Joined({name: data.examples(split) for name, data in self._having(split)})

    def filled(self, split: Split) -> Sequence[Example]:
        return _Joined({name: data.filled(split) for name, data in self._having(split)})

    def readable(self, split: Split) -> Readable:
        return _JoinedReadable({name: data.readable(split) for name, data in self._having(split)})

    def first(self, split: Split, count: int) -> list[Example]:
        """Examples to be judged: in turn the first of each source, the second of each, and so on."""
        found = {name: data.first(split, count) for name, data in self._having(split)}
        turns = zip_longest(*([_of(name, each) for each in some] for name, some in found.items()))
        return [example for turn in turns for example in turn if example is not None][:count]

    def source_sizes(self, split: Split) -> Sequence[int]:
        return [len(data.examples(split)) for _, data in self._having(split)]

    def check_files(self) -> None:
        for data in self.sources.values():
            data.check_files()

    def check_training(self, processes: int, max_steps: int) -> None:
        sizes, needed = self._sizes(), self.batch_size * processes if self.homogeneous else 1
        weights = sizes if self.weights is None else self.weights
        for name, size in sizes.items():
            if weights[name] and size < needed:
                raise InputError(
                    f"DataMixture: source {name} has {size} training examples, but {needed} of one source are needed "
                    "at a time; give it more, give it a weight of 0, or lower data.batch_size"
                )
        if not any(weights[name] for name in sizes):
            raise InputError("DataMixture: no source with a weight has training examples")
        check_size(self._samples(), self.batch_size, processes, type(self).__name__)

    def epoch_size(self, num_train: int) -> int:
        return num_train if self.num_samples is None else self.num_samples

    def batch_order(self, rank: int, processes: int) -> MixedBatches:
        sizes = self._sizes()
        weights = sizes if self.weights is None else self.weights
        total = sum(weights[name] for name in sizes)
        return MixedBatches(
            tuple(sizes.values()),
            [weights[name] / total for name in sizes],
            [self.sources[name].run for name in sizes],
            batch_size=self.batch_size,
            seed=self.order_seed,
            rank=rank,
            processes=processes,
            homogeneous=self.homogeneous,
            num_samples=self._samples(),
        )

    def quality(self, example: Example, answer: str) -> float | None:
        return self.sources[example.source].quality(example, answer)

    def complexity(self, example: Example) -> float | None:
        return self.sources[example.source].complexity(example)

    def drawn(self, example: Example, picture: Image.Image) -> dict[str, float] | None:
        return self.sources[example.source].drawn(example, picture)

    def _sizes(self) -> dict[str, int]:
        return {name: len(data.examples("train")) for name, data in self._having("train")}

    def _samples(self) -> int:
        return sum(self._sizes().values()) if self.num_samples is None else self.num_samples

    def _having(self, split: Split) -> list[tuple[str, AlignmentData]]:
        return [(name, data) for name, data in self.sources.items() if split in data.splits]


def _check(sources: Mapping[str, AlignmentData], weights: Mapping[str, float] | None, num_samples: int | None) -> None:
    if not sources:
        raise InputError("DataMixture needs at least one source, got none")
    for name, data in sources.items():
        if "/" in name or not name:
            raise InputError(f'DataMixture: a source is called by a word without "/", got {name!r}')
        if data.stream() is not None:
            raise InputError(f"DataMixture: source {name} streams its examples, which cannot be drawn by weight")
        if data.group_by_length:
            raise InputError(f"DataMixture: source {name} groups by length, but the mixture makes the batches")
        if data.sources:
            raise InputError(f"DataMixture: source {name} is a mixture itself; name its sources here")
    if weights is not None and set(weights) != set(sources):
        raise InputError(f"DataMixture: weights name {', '.join(weights)}, but its sources are {', '.join(sources)}")
    if weights is not None and (min(weights.values()) < 0 or not sum(weights.values()) > 0):
        raise InputError(f"DataMixture: weights are at least 0 and one is more, got {dict(weights)}")
    if num_samples is not None and num_samples < 1:
        raise InputError(f"DataMixture needs num_samples >= 1, got {num_samples}")


def _of(name: str, example: Example) -> Example:
    group = f"{name}/{example.group}" if example.group else ""
    return replace(example, id=f"{name}/{example.id}", group=group, source=name)


class _Joined(Sequence[Example]):
    """The examples of sources, one source after the other."""

    def __init__(self, parts: Mapping[str, Sequence[Example]]) -> None:
        self.parts = tuple(parts.items())
        self.ends = list(accumulate(len(part) for _, part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> Example:
        number, inside = self.place(range(len(self))[index])
        name, part = self.parts[number]
        return _of(name, part[inside])

    def place(self, index: int) -> tuple[int, int]:
        """Which source an index is in, and where there."""
        number = bisect_right(self.ends, index)
        return number, index - (self.ends[number - 1] if number else 0)


class _JoinedReadable(Readable):
    """The same with pictures decoded, each source as its own settings say; what stands in is of the same source."""

    def __init__(self, parts: Mapping[str, Readable]) -> None:
        self.examples, self.parts = _Joined(parts), tuple(parts.items())

    def find(self, index: int, taken: Container[int] = ()) -> Found:
        number, inside = self.examples.place(index)
        before, (name, part) = index - inside, self.parts[number]
        found = part.find(inside, _Shifted(taken, before))
        skipped = tuple(f"{name}/{id}" for id in found.skipped)
        return Found(_of(name, found.example), before + found.place, skipped)


class _Shifted(Container[int]):
    """What is taken, counted from a source's first example."""

    def __init__(self, taken: Container[int], before: int) -> None:
        self.taken, self.before = taken, before

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index + self.before in self.taken
