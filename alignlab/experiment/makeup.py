"""makeup: what the sequences that an objective reads are made of, over the first batches of training."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import mean

from alignlab.backbones.batching import Batching
from alignlab.batch import IGNORE, Batch, Example, Tokens
from alignlab.errors import InputError

SAMPLE = 64
"""Examples that are looked at, at least, where there are so many."""

BATCHES = 8
"""Batches that are looked at, at least, where they have no more than MOST examples: one alone may be of one length."""

MOST = 256
"""Examples of a batch that are looked at, at most, and of all batches but for SAMPLE."""

FEW = 2
"""Examples of a batch that only warms up."""


@dataclass(frozen=True)
class Row:
    """One sequence: tokens a sample, mean and largest, of text, of pictures, and trained on.

    Args:
        name: A field of Batch.
        padding: The share of a batch's places that hold no token.
    """

    name: str
    text: tuple[float, int]
    visual: tuple[float, int]
    supervised: tuple[float, int]
    padding: float


@dataclass(frozen=True)
class Makeup:
    """What a sample of the data says.

    Args:
        num_examples: In the sample.
        pictures: A sample, in all its sequences.
        tokens: A sample, in all its sequences, mean.
        encoding: Seconds to encode a batch in one process.
        typical: The batch with the number of places, padding included, next to the mean; of ``tried`` examples.
        small: The first few examples of it.
        longest: Places of the largest batch over those of the typical one, at least 1.
    """

    num_examples: int
    rows: tuple[Row, ...]
    pictures: float
    tokens: float
    encoding: float
    typical: Batch
    small: Batch
    longest: float


def made_of(
    examples: Sequence[Example],
    order: Iterable[list[int]],
    encoder: Batching,
    names: Sequence[str],
    *,
    batch_size: int,
    tried: int,
) -> Makeup:
    """Encode a sample of the examples, the first batches of training.

    Args:
        order: Places of the examples by batch, in the order of training.
        batch_size: Examples of a whole batch.
        tried: Examples of the typical batch, at most as many.

    Raises:
        InputError: There are none, or one cannot be encoded.
    """
    if not len(examples):
        raise InputError("the training split is empty, so there is nothing to look at")
    sampled, batches, seconds = first_batches(examples, order, batch_size), [], []
    for some in sampled:
        started = time.perf_counter()
        batches.append(_without_pictures(encoder.batch(some, names)))
        seconds.append((time.perf_counter() - started) * batch_size / len(some))
    # A batch of its own for each kind of sequence would be as long; those without a token are pictures alone.
    places = [_places(batch) for batch in batches]
    typical = min(range(len(batches)), key=lambda index: abs(places[index] - mean(places)))
    counted, some = sum(map(len, batches)), _filled_up(sampled[typical], tried)
    return Makeup(
        num_examples=counted,
        rows=tuple(_row(name, batches) for name in vars(batches[0]) if _any(name, batches)),
        pictures=sum(int(tokens.num_images.sum()) for batch in batches for tokens in batch) / counted,
        tokens=sum(int(tokens.attention_mask.sum()) for batch in batches for tokens in batch) / counted,
        encoding=min(seconds),
        typical=encoder.batch(some, names),
        small=encoder.batch(some[:FEW], names),
        longest=max(max(places) / max(places[typical], 1), 1.0),
    )


def first_batches(examples: Sequence[Example], order: Iterable[list[int]], batch_size: int) -> list[list[Example]]:
    """The first batches of training."""
    count = max(math.ceil(SAMPLE / batch_size), min(BATCHES, MOST // batch_size))
    return [[examples[index] for index in batch[:MOST]] for batch in islice(order, count)]


def _without_pictures(batch: Batch) -> Batch:
    """The same without pixels, of which there would be many."""
    sequences = {name: value for name, value in vars(batch).items() if isinstance(value, Tokens)}
    return replace(batch, **{name: replace(tokens, vision={}) for name, tokens in sequences.items()})


def _filled_up(some: list[Example], batch_size: int) -> list[Example]:
    """So many examples, also where there are fewer, which then come again under other ids."""
    again = [(some[index % len(some)], index) for index in range(len(some), batch_size)]
    return some[:batch_size] + [replace(example, id=f"{example.id}+{index}") for example, index in again]


def _places(batch: Batch) -> int:
    return sum(tokens.input_ids.numel() for tokens in batch)


def _any(name: str, batches: Sequence[Batch]) -> bool:
    return any(isinstance(getattr(batch, name), Tokens) for batch in batches)


def _row(name: str, batches: Sequence[Batch]) -> Row:
    lengths: dict[str, list[int]] = {"text": [], "visual": [], "supervised": []}
    places = 0
    for tokens in (getattr(batch, name) for batch in batches):
        if tokens is None:  # negatives, which a batch may lack
            continue
        real, visual = tokens.attention_mask.bool(), tokens.image_mask
        masks = {"text": real & ~visual, "visual": real & visual, "supervised": real & (tokens.labels != IGNORE)}
        for kind, mask in masks.items():
            lengths[kind] += mask.sum(1).tolist()
        places += real.numel()
    used = sum(lengths["text"]) + sum(lengths["visual"])
    found = {kind: (mean(values), max(values)) for kind, values in lengths.items()}
    return Row(name, **found, padding=1 - used / places if places else 0.0)
