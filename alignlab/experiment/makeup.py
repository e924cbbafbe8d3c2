"""makeup: what the sequences that an objective reads are made of, over a spread sample of the training data."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from alignlab.backbones.batching import Batching
from alignlab.batch import IGNORE, Batch, Example, Tokens
from alignlab.errors import InputError

SAMPLE = 64
"""Examples that are looked at, at least, where there are so many; whole batches of them."""

MOST = 256
"""Examples that are looked at, at most."""


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
        typical: The batch with the number of places, padding included, next to the mean.
        longest: Places of the largest batch over those of the typical one, at least 1.
    """

    num_examples: int
    rows: tuple[Row, ...]
    pictures: float
    tokens: float
    encoding: float
    typical: Batch
    longest: float


def made_of(examples: Sequence[Example], encoder: Batching, names: Sequence[str], batch_size: int) -> Makeup:
    """Encode a sample of the examples in batches.

    Raises:
        InputError: There are none, or one cannot be encoded.
    """
    if not len(examples):
        raise InputError("the training split is empty, so there is nothing to look at")
    sampled, batches, seconds = _sampled(examples, batch_size), [], []
    for some in sampled:
        started = time.perf_counter()
        batches.append(_without_pictures(encoder.batch(some, names)))
        seconds.append((time.perf_counter() - started) * batch_size / len(some))
    # A batch of its own for each kind of sequence would be as long; those without a token are pictures alone.
    places = [_places(batch) for batch in batches]
    typical = min(range(len(batches)), key=lambda index: abs(places[index] - mean(places)))
    counted = sum(map(len, batches))
    return Makeup(
        num_examples=counted,
        rows=tuple(_row(name, batches) for name in vars(batches[0]) if _any(name, batches)),
        pictures=sum(int(tokens.num_images.sum()) for batch in batches for tokens in batch) / counted,
        tokens=sum(int(tokens.attention_mask.sum()) for batch in batches for tokens in batch) / counted,
        encoding=min(seconds),
        typical=encoder.batch(_filled_up(sampled[typical], batch_size), names),
        longest=max(max(places) / max(places[typical], 1), 1.0),
    )


def _sampled(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Batches of examples that are spread evenly."""
    size = min(len(examples), MOST, max(SAMPLE, batch_size))
    some = [examples[index * len(examples) // size] for index in range(size)]
    cut = [some[start : start + batch_size] for start in range(0, size, batch_size)]
    return cut[:-1] if len(cut) > 1 and len(cut[-1]) < batch_size else cut


def _without_pictures(batch: Batch) -> Batch:
    """The same without pixels, of which there would be many."""
    sequences = {name: value for name, value in vars(batch).items() if isinstance(value, Tokens)}
    return replace(batch, **{name: replace(tokens, vision={}) for name, tokens in sequences.items()})


def _filled_up(some: list[Example], batch_size: int) -> list[Example]:
    """A whole batch, also where there are fewer examples than that, which then come again under other ids."""
    again = range(len(some), batch_size)
    return some + [replace(some[index % len(some)], id=f"{some[index % len(some)].id}+{index}") for index in again]


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
