"""AlignmentData: examples of three splits, and loaders whose order is a function of the seed and resumes exactly."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal, Self

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader

from alignlab.batch import Example
from alignlab.data.embeddings import Embeddings
from alignlab.data.filling import FILLED, Filled
from alignlab.data.lengths import estimated_lengths
from alignlab.data.loaders import Encode, Encoding, Indexed, ResumableLoader
from alignlab.data.loading import MAX_PIXELS
from alignlab.data.mentions import Vocabulary
from alignlab.data.mined import Mined
from alignlab.data.order import Order, ShuffledBatches, SourceBatches, StepNumbers, check_size
from alignlab.data.readable import Readable, first_readable
from alignlab.data.stream import Stream
from alignlab.data.streaming import Streamed, check_readers, check_unlimited
from alignlab.errors import InputError

Split = Literal["train", "val", "test", "compositional"]

NUM_CHECKED = 64
"""Examples of a split, spread evenly, that are compared with such a file before training."""


NUM_HEAD = 256
"""Examples of a stream that are looked at before training."""


class AlignmentData(LightningDataModule):
    """A data set as objectives and evaluators see it. A subclass writes ``examples`` and names what it supplies.

    Args:
        batch_size: Examples a process and micro-batch.
        num_workers: Processes that encode; 0 encodes in the training process.
        unreadable: What a picture does that is missing, corrupt or too large: ``stop``, or ``skip`` its example, which
            the next readable one stands in for while training, and which evaluators leave out; it is counted.
        max_pixels: Pictures of more pixels, width x height, are not decoded; at most Pillow's own limit.
        group_by_length: Make batches of examples of about one length, by characters and pictures: of answers of mixed
            lengths (log-normal, 16 a batch) 16 % is padding then, without it 59 %.
        shuffle_buffer: Of a stream, examples among which the next one is drawn.
        embeddings: A file that ``alignlab embed`` made of these data; the loaders take ``Example.embedding`` from it.
        mined: A file that ``alignlab mine`` made of these data; the loaders add to ``Example.negatives`` from it.
    """

    supplies: ClassVar[tuple[str, ...]] = ()
    """The fields of ``Example`` that every example fills."""

    splits: ClassVar[tuple[Split, ...]] = ("train", "val", "test")
    """The splits there are; ``compositional`` holds combinations that no other split shows."""

    attributes: Mapping[str, tuple[str, ...]] = {}
    """Words of the captions by attribute, where the data set knows them; caption accuracy is given for each."""

    sources: Mapping[str, Self] = {}
    """The data sets of a mixture by name, which is the ``source`` of their examples; metrics are given for each."""

    canonical: Mapping[str, str] = {}
    """Synonym -> the word that it counts as."""

    objects: Vocabulary = Vocabulary()
    """The names of the objects that pictures may show, where the data set knows them."""

    caption_prompt: str = "Describe the image."
    """What asks for a caption like those of ``Example.captions``."""

    def __init__(
        self,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        unreadable: Literal["stop", "skip"] = "stop",
        max_pixels: int = MAX_PIXELS,
        group_by_length: bool = False,
        shuffle_buffer: int = 1000,
        embeddings: str | None = None,
        mined: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"{type(self).__name__} needs batch_size >= 1 and num_workers >= 0, "
                f"got {batch_size = }, {num_workers = }"
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        if not 1 <= max_pixels <= MAX_PIXELS or shuffle_buffer < 1:
            raise InputError(
                f"{type(self).__name__} needs max_pixels from 1 to {MAX_PIXELS} and shuffle_buffer >= 1, "
                f"got {max_pixels = }, {shuffle_buffer = }"
            )
        self.unreadable: Literal["stop", "skip"] = unreadable
        self.max_pixels = max_pixels
        self.group_by_length = group_by_length
        self.shuffle_buffer = shuffle_buffer
        self.embeddings = None if embeddings is None else Embeddings(embeddings)
        self.mined = None if mined is None else Mined(mined)
        if isinstance(type(self).supplies, tuple):  # else the class works out itself what it supplies
            files = {"embeddings": embeddings, "mined": mined}
            filled = [field for name, field in FILLED.items() if files[name] is not None]
            self.supplies = tuple(dict.fromkeys((*self.supplies, *filled)))
        self.encode: Encode | None = None
        self._left_out: dict[Split, set[str]] = {}
        self.order_seed = 0
        """Which order the training split comes in; an experiment sets it from its seed."""

        self.run = 1
        """How many neighbouring training examples stay together when the others are shuffled."""

    @abstractmethod
    def examples(self, split: Split) -> Sequence[Example]:
        """The examples of a split, by index, the same ones in every process; made or decoded on access."""

    def stream(self) -> Stream | None:
        """The training examples in shards, where they are too many for ``examples``; None: they are not."""
        return None

    def quality(self, example: Example, answer: str) -> float | None:
        """How right an answer to the last question of an example's conversation is, in [0, 1]; None: not known.

        It is told from the truth, not from the conversation's own answer, which may be wrong.
        """
        return None

    def complexity(self, example: Example) -> float | None:
        """How much there is to see in an example's picture, e.g. the number of its objects; None: not known."""
        return None

    def read(self, picture: Image.Image) -> str | None:
        """What a picture shows, told as a caption tells it; None: the data cannot read pictures."""
        return None

    def drawn(self, example: Example, picture: Image.Image) -> dict[str, float] | None:
        """How well a picture shows what an example's first caption says: name -> share in [0, 1]; None: not known.

        Always with ``exact``, 1 where the objects are right, else 0. What the caption does not tell is left out.
        """
        return None

    def filled(self, split: Split) -> Sequence[Example]:
        """The examples of a split as training sees them: with what ``embeddings`` and ``mined`` add.

        Of a stream the first ``NUM_HEAD`` training examples, for those who only need some.
        """
        if self.embeddings is None and self.mined is None:
            return self._indexed(split)
        return Filled(self.examples(split), split, self.embeddings, self.mined)

    def _indexed(self, split: Split) -> Sequence[Example]:
        stream = self.stream() if split == "train" else None
        return self.examples(split) if stream is None else list(islice(stream.shard(0), NUM_HEAD))

    def check_files(self) -> None:
        """Raise InputError if ``embeddings`` or ``mined`` were not made of these data; looks at a spread sample."""
        for split in ("train", "val") if self.embeddings or self.mined else ():
            examples = self.filled(split)
            for index in range(0, len(examples), max(len(examples) // NUM_CHECKED, 1)):
                examples[index]

    def connect(self, encode: Encode) -> None:
        """Say how examples become batches, which is the backbone's business."""
        self.encode = encode

    def readable(self, split: Split) -> Readable:
        """The examples of a split as loaders hand them on: ``filled``, their pictures decoded.

        With ``unreadable = skip`` another one stands at the place of one that cannot be read.
        """
        return Readable(self.filled(split), max_pixels=self.max_pixels, skip=self.unreadable == "skip")

    def first(self, split: Split, count: int) -> list[Example]:
        """The first examples of a split, to be judged; fewer, where there are not so many.

        With ``unreadable = skip`` those are left out that cannot be read, and ``left_out`` keeps their ids. Pictures
        are then decoded once to find out, and so they are where there is a limit below Pillow's.
        """
        examples, skip = self._indexed(split), self.unreadable == "skip"
        if not skip and self.max_pixels == MAX_PIXELS:
            return [examples[index] for index in range(min(count, len(examples)))]
        found, left_out = first_readable(examples, count, max_pixels=self.max_pixels, skip=skip)
        self._left_out.setdefault(split, set()).update(left_out)
        return found

    @property
    def left_out(self) -> Mapping[Split, set[str]]:
        """Ids of what ``first`` left out, by split."""
        return self._left_out

    def check_training(self, processes: int, max_steps: int) -> None:
        """Raise InputError if so many processes cannot be trained on these data, as far as is known by their number."""
        who, stream = type(self).__name__, self.stream()
        if stream is None:
            check_size(len(self.examples("train")), self.batch_size, processes, who)
            if self.group_by_length and self.run > 1:
                raise InputError(f"{who}: its neighbours stay together, which group_by_length would part")
            return
        check_readers(stream, processes, max(self.num_workers, 1), max_steps, who=who)
        wanted = {"embeddings": self.embeddings, "mined": self.mined, "group_by_length": self.group_by_length or None}
        if given := [name for name, value in wanted.items() if value is not None]:
            raise InputError(f"{who} streams its training examples, so there is no {', '.join(given)}")

    def epoch_size(self, num_train: int) -> int:
        """How many examples an epoch has, of all processes, where there are so many training examples."""
        return num_train

    def batch_order(self, rank: int, processes: int) -> Order:
        """Which training examples a process takes at which step."""
        return ShuffledBatches(
            len(self.examples("train")),
            self.batch_size,
            seed=self.order_seed,
            rank=rank,
            processes=processes,
            run=self.run,
            lengths=estimated_lengths(self.examples("train")) if self.group_by_length else None,
            who=type(self).__name__,
        )

    def train_dataloader(self) -> DataLoader:
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        steps = self.trainer.max_steps if self.trainer else -1
        self.check_training(processes, steps)
        if (stream := self.stream()) is None:
            examples, order = Indexed(self.readable("train")), self.batch_order(rank, processes)
        else:
            check_unlimited(self.trainer.limit_train_batches, who=type(self).__name__)
            # An epoch is as long as the training: Lightning then neither looks for its end nor reads ahead.
            examples = self._streamed(stream, rank, processes)
            order = StepNumbers(steps * self.trainer.accumulate_grad_batches)
        return ResumableLoader(examples, batch_sampler=order, **self._settings())

    def _streamed(self, stream: Stream, rank: int, processes: int) -> Streamed:
        workers = max(self.num_workers, 1)
        return Streamed(
            stream,
            batch_size=self.batch_size,
            seed=self.order_seed,
            first=rank * workers,
            num_readers=processes * workers,
            num_workers=workers,
            buffer=self.shuffle_buffer,
            max_pixels=self.max_pixels,
            skip=self.unreadable == "skip",
        )

    def val_dataloader(self) -> DataLoader:
        examples = self.readable("val")
        order = SourceBatches(self.source_sizes("val"), self.batch_size)
        return DataLoader(Indexed(examples), batch_sampler=order, **self._settings())

    def source_sizes(self, split: Split) -> Sequence[int]:
        """How many examples each source has in a split, in which they stand one after the other."""
        return [len(self.examples(split))]

    def _settings(self) -> dict[str, Any]:
        if self.encode is None:
            raise RuntimeError(f"{type(self).__name__}.connect must be called before its loaders are used")
        return {
            "collate_fn": Encoding(self.encode),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own: making an iterator draws a number, which must not shift training's randomness.
            "generator": torch.Generator().manual_seed(self.order_seed),
        }


def check_supplies(who: str, requires: Sequence[str], data: AlignmentData | type[AlignmentData]) -> None:
    """Raise InputError if the data do not supply what an objective or evaluator requires."""
    if missing := [name for name in requires if name not in data.supplies]:
        whose = data.__name__ if isinstance(data, type) else type(data).__name__
        raise InputError(
            f"{who} requires {', '.join(requires)}, but {whose} supplies {', '.join(data.supplies) or 'nothing'}; "
            f"it lacks {', '.join(missing)}"
        )


def check_listed(who: str, data: AlignmentData) -> None:
    """Raise InputError where not all examples of data can be gone through, each by its own id."""
    whose = type(data).__name__
    if data.stream() is not None:
        raise InputError(f"{who} goes through all training examples, but {whose} streams them; give it some as a set")
    if data.sources:
        raise InputError(
            f"{who} goes through the examples of one data set, but {whose} has those of {', '.join(data.sources)}; "
            "do it for each of them, which takes the file for itself"
        )
    if data.unreadable == "skip":
        raise InputError(f"{who} needs every example, so {whose} cannot skip any; set data.unreadable to stop")
