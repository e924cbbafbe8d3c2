"""mining: for each query the near targets that are wrong for it, by the embeddings of any backbone."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignlab.batch import Content, Example, Part, PictureBytes
from alignlab.data.identity import target_hash
from alignlab.data.teachers import BackboneTeacher
from alignlab.errors import InputError
from alignlab.functional import normalize, similarities


@dataclass(frozen=True)
class Filter:
    """Which near targets are taken for right ones, by their cosine alone; at most one rule.

    Args:
        margin: Those more similar than the positive by over this, in cosines (UniME, Gu et al. 2025,
            https://arxiv.org/abs/2504.17432); a negative one also drops true hard negatives.
        ratio: Those above this share of the positive's cosine (NV-Retriever, Moreira et al. 2024,
            https://arxiv.org/abs/2407.15831: 0.95); means little where positives are not above 0.
    """

    margin: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.margin is not None and self.ratio is not None:
            raise InputError(f"mining filters by margin or by ratio, got {self.margin = } and {self.ratio = }")
        if self.ratio is not None and self.ratio <= 0:
            raise InputError(f"mining needs ratio > 0, got {self.ratio}")

    @property
    def drops(self) -> bool:
        return self.margin is not None or self.ratio is not None

    def limit(self, positives: Tensor) -> Tensor:
        """The cosine (N,) above which a target of the query is dropped."""
        if self.margin is not None:
            return positives + self.margin
        return torch.full_like(positives, math.inf) if self.ratio is None else positives * self.ratio


@dataclass(frozen=True)
class Found:
    """The negatives of N queries, the nearest first.

    Args:
        index: (N, k) long, columns of the targets, each once in a row; -1 after the last one.
        score: (N, k) cosines; -inf after the last one.
        positive: (N,) cosines with the query's own target.
        dropped: By rule, (N,) long: how many targets it drops; of ``filter``, those that no other rule does.
    """

    index: Tensor
    score: Tensor
    positive: Tensor
    dropped: Mapping[str, Tensor]


def mine(
    queries: Tensor,
    targets: Tensor,
    own: Tensor,
    *,
    same: Mapping[str, Tensor],
    num_negatives: int,
    skip: int = 0,
    filter: Filter = Filter(),
    block: int = 2048,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Find the nearest targets of each query that are not taken for right ones; never holds N x M.

    Args:
        queries: (N, D) normalised.
        targets: (M, D) normalised, different ones.
        own: (N,) long, the column of each query's own target.
        same: By rule, (N,) long: the targets of all queries of one number are right for each of them.
        num_negatives: k.
        skip: The nearest that are left out, of what nothing dropped.
        filter: Drops by similarity what ``same`` does not.
        block: Rows and columns of similarities held at a time.
        on_block: Called with the queries (done, all).

    Returns:
        All on the CPU.
    """
    if num_negatives < 1 or skip < 0:
        raise InputError(f"mining needs num_negatives >= 1 and skip >= 0, got {num_negatives = }, {skip = }")
    right = {rule: (label, *_targets_of(label, own)) for rule, label in {"target": own, **same}.items()}
    number, parts = num_negatives + skip, []
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        barred = [_right_of(label[rows], labels, columns) for label, labels, columns in right.values()]
        pairs = torch.cat(barred, 1)  # (2, P)
        ours, positive = queries[rows], (queries[rows] * targets[own[rows]]).sum(-1)
        nearest = _nearest(ours, targets, pairs, filter.limit(positive), filter.drops, number, block)
        counts = [each[0].bincount(minlength=len(ours)) - 1 for each in barred]  # but for its own one
        parts.append((*nearest, positive, *counts))
        on_block(rows.stop, len(queries))
    index, score, over, positive, *counts = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    dropped = dict(zip(right, counts, strict=True)) | {"filter": over}
    del dropped["target"]
    return Found(index[:, skip:], score[:, skip:], positive, dropped)


def _nearest(
    queries: Tensor, targets: Tensor, barred: Tensor, limit: Tensor, drops: bool, number: int, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns and cosines (B, number) of the nearest, and how many each query's limit dropped.

    Args:
        barred: (2, P) long, rows and columns of what is right.
        limit: (B,) cosines; what is above is dropped, if anything ``drops``.
    """
    score = torch.full((len(queries), number), -math.inf, device=queries.device)
    index = torch.full((len(queries), number), -1, device=queries.device)
    over = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for start in range(0, len(targets), block):
        cosines = similarities(queries, targets[start : start + block])  # (B, C)
        rows, columns = barred[:, (barred[1] >= start) & (barred[1] < start + block)]
        cosines[rows, columns - start] = -math.inf
        if drops:
            above = cosines > limit[:, None]
            over += above.sum(1)
            cosines.masked_fill_(above, -math.inf)
        found = cosines.topk(min(number, cosines.shape[1]))
        score, best = torch.cat([score, found.values], 1).topk(number)
        index = torch.cat([index, found.indices + start], 1).gather(1, best)
    return index.masked_fill(score == -math.inf, -1), score, over


def _targets_of(label: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Each number with each column that a query of this number has, once, in order of the numbers."""
    labels, columns = torch.stack([label, own]).unique(dim=1)
    return labels.contiguous(), columns


def _right_of(label: Tensor, labels: Tensor, columns: Tensor) -> Tensor:
    """Rows and columns (2, P) of what is right for the queries of these numbers."""
    first = torch.searchsorted(labels, label)
    counts = torch.searchsorted(labels, label, right=True) - first
    rows = torch.arange(len(label), device=label.device).repeat_interleave(counts)
    within = torch.arange(len(rows), device=label.device) - (counts.cumsum(0) - counts)[rows]
    return torch.stack([rows, columns[first[rows] + within]])


@dataclass(frozen=True)
class Audit:
    """What is known of the negatives where the truth is: examples of one group are right for each other.

    Args:
        false_before: Share of the nearest targets that are right, without the filter.
        false_after: The same of those the filter keeps.
        precision: Share of what the filter drops of the nearest targets that is right; None where it drops nothing.
        recall: Share of the right ones among the nearest that it drops; None where there are none.
    """

    false_before: float | None
    false_after: float | None
    precision: float | None
    recall: float | None


def audit(nearest: Found, kept: Found, own: Tensor, groups: Tensor, filter: Filter) -> Audit:
    """Compare what the filter does with the truth.

    Args:
        nearest: Mined without filter and without regard to groups.
        kept: Mined with the filter and without regard to groups.
        own: (N,) long, the column of each query's own target.
        groups: (N,) long.
    """
    right = _in_group(nearest.index, own, groups)
    drops = (nearest.score > filter.limit(nearest.positive)[:, None]) & (nearest.index >= 0)
    caught = int((right & drops).sum())
    return Audit(
        _share(int(right.sum()), int((nearest.index >= 0).sum())),
        _share(int(_in_group(kept.index, own, groups).sum()), int((kept.index >= 0).sum())),
        _share(caught, int(drops.sum())),
        _share(caught, int(right.sum())),
    )


def _in_group(index: Tensor, own: Tensor, groups: Tensor) -> Tensor:
    """Whether a target is also that of a query of the same group. (N, k) bool"""
    size = int(own.max()) + 1
    pairs = (groups * size + own).unique()
    return torch.isin(groups[:, None] * size + index, pairs) & (index >= 0)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class Embedded:
    """The queries of N examples, and their M different targets.

    Args:
        queries: (N, D) normalised.
        targets: (M, D) normalised.
        own: (N,) long, which target is the example's.
        first: (M,) long, the first example that has the target.
        same: ``query`` and ``group``, (N,) long each: equal numbers where these are equal.
        ids: N.
        hashes: N, of the targets.
    """

    queries: Tensor
    targets: Tensor
    own: Tensor
    first: Tensor
    same: Mapping[str, Tensor]
    ids: Sequence[str]
    hashes: Sequence[int]


def embed_examples(
    teacher: BackboneTeacher,
    split: str,
    examples: Sequence[Example],
    *,
    batch_size: int,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Embed both sides of all examples of a split, of which there is at least one; a target that comes again, once."""
    queries, targets, own, first = [], [], [], []
    places: dict[Hashable, int] = {}
    keys: dict[str, list[Hashable]] = {"query": [], "group": []}
    ids, hashes = [], []
    for start in range(0, len(examples), batch_size):
        part = [examples[index] for index in range(start, min(start + batch_size, len(examples)))]
        queries.append(normalize(teacher.embed([e.query for e in part])))
        new = []
        for index, example in enumerate(part, start=start):
            place = places.setdefault(_key(example.target), len(places))
            if place == len(first):
                first.append(index)
                new.append(example.target)
            own.append(place)
            keys["query"].append(_key(example.query))
            keys["group"].append(example.group or index)  # an example without a group is one by itself
            ids.append(example.id)
            hashes.append(target_hash(split, example))
        if new:
            targets.append(normalize(teacher.embed(new)))
        on_batch(len(ids), len(examples))
    same = {rule: _numbered(each) for rule, each in keys.items()}
    return Embedded(torch.cat(queries), torch.cat(targets), torch.tensor(own), torch.tensor(first), same, ids, hashes)


def _key(content: Content) -> Hashable:
    """What is equal where contents are; a picture without a file of its own is known by its pixels or its bytes."""
    return tuple(map(_known, content))


def _known(part: Part) -> Hashable:
    if isinstance(part, str | Path):
        return str(part)
    pixels = part.content if isinstance(part, PictureBytes) else part.tobytes()
    return hashlib.blake2b(pixels, digest_size=16).digest()


def _numbered(keys: Iterable[Hashable]) -> Tensor:
    """Numbers from 0 for different keys."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
