"""ablations: what a paper's own ablation found, beside what a study of the lab finds where it turns the same knob."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alignlab.errors import InputError
from alignlab.experiment.reading import load
from alignlab.study.naming import lower_is_better
from alignlab.study.records import Record
from alignlab.study.statistics import Interval, Pair, mean_interval

KEYS = ("method", "asks", "source", "scale", "study", "metric", "note", "rows")
ROW_KEYS = ("arm", "against", "study", "published", "rank")

Sign = Literal["the same", "the opposite", "undecided"]


@dataclass(frozen=True)
class Row:
    """One setting of an ablation.

    Args:
        arm: The lab's.
        against: Where the setting's gain over this arm is compared, and not its score.
        study: Which study has the arm.
        published: The paper's number; None where it only ranks the settings.
        rank: The place that the paper gives the setting, 1 for the best; settings of one rank are not compared.
    """

    arm: str
    against: str | None
    study: str
    published: float | None
    rank: int | None

    @property
    def name(self) -> str:
        return self.arm if self.against is None else f"{self.arm} − {self.against} ({self.study})"


@dataclass(frozen=True)
class Ablation:
    """What a paper varied, and which arms of the lab vary the same.

    Args:
        asks: What is varied.
        source: Where the paper says so.
        scale: What the published numbers are; None where there are only ranks.
        metric: The lab's.
        note: In what the lab's setting is not the paper's.
    """

    method: str
    asks: str
    source: str
    scale: str | None
    metric: str
    note: str | None
    rows: tuple[Row, ...]


class Published(NamedTuple):
    """What a page of claims is told beside the records: what a reader should know first, and published ablations."""

    about: str
    ablations: tuple[Ablation, ...]


def read_published(path: Path) -> Published:
    """Read a file of published ablations.

    Raises:
        InputError: All that is wrong with it.
    """
    content = load(path)
    faults = [f"unknown key {key!r}; there is about, ablations" for key in content if key not in Published._fields]
    listed = content.get("ablations") or []
    if not isinstance(listed, list):
        faults, listed = [*faults, f"ablations: expected a list, got {listed!r}"], []
    for number, item in enumerate(listed, 1):
        faults += [f"ablations: number {number}: {fault}" for fault in _wrong(item)]
    if faults:
        raise InputError("\n".join([f"{path}: {len(faults)} errors", *(f"  {fault}" for fault in faults)]))
    return Published(str(content.get("about", "")).strip(), tuple(map(_ablation, listed)))


def _wrong(item: Any) -> Iterator[str]:
    if not isinstance(item, dict) or not isinstance(item.get("rows"), list):
        yield f"expected {{{', '.join(KEYS)}}}, got {item!r:.80}"
        return
    yield from (f"unknown key {key!r}; there is {', '.join(KEYS)}" for key in item if key not in KEYS)
    yield from (f"{key} is missing" for key in ("method", "asks", "source", "study", "metric") if key not in item)
    for row in item["rows"]:
        if not isinstance(row, dict) or "arm" not in row or set(row) - set(ROW_KEYS):
            yield f"rows: expected {{{', '.join(ROW_KEYS)}}}, got {row!r:.80}"
    by = [sum(isinstance(row, dict) and key in row for row in item["rows"]) for key in ("published", "rank")]
    if sorted(by) != [0, len(item["rows"])] or len(item["rows"]) < 2:
        yield "rows: expected two or more, either all with a published number or all with a rank"


def _ablation(item: Mapping[str, Any]) -> Ablation:
    rows = []
    for row in item["rows"]:
        numbers = {"published": row.get("published"), "rank": row.get("rank")}
        rows.append(Row(str(row["arm"]), row.get("against"), row.get("study", item["study"]), **numbers))
    texts = {key: item.get(key) for key in ("method", "asks", "source", "scale", "metric", "note")}
    return Ablation(**texts, rows=tuple(rows))


class Mirrored(NamedTuple):
    """A setting and its score on the lab, None where no record has it."""

    row: Row
    score: Interval | None


class Agreement(NamedTuple):
    """Two settings that differ in the paper, the better one there first.

    Args:
        difference: The first minus the second on the lab: paired within a study, else of means and without an interval.
        sign: Whether the lab has them in the paper's order; undecided where the interval includes 0, or, without one,
            where the intervals of the two overlap.
    """

    better: Row
    worse: Row
    difference: Interval
    sign: Sign


def mirror(ablation: Ablation, records: Mapping[str, Record]) -> list[Mirrored]:
    """What the lab has of an ablation."""
    found = []
    for row in ablation.rows:
        values = list(_units(_values(row, ablation.metric, records)).values())
        found.append(Mirrored(row, mean_interval(values) if values else None))
    return found


def agreements(ablation: Ablation, records: Mapping[str, Record]) -> list[Agreement]:
    """All pairs of settings that differ in the paper and stand in records."""
    scores = {each.row: each.score for each in mirror(ablation, records) if each.score is not None}
    falls = lower_is_better(ablation.metric)
    found = []
    for one, other in itertools.combinations(scores, 2):
        if not (apart := _apart(one, other, falls)):
            continue
        better, worse = (one, other) if apart > 0 else (other, one)
        difference = _difference(better, worse, ablation.metric, records, scores)
        found.append(Agreement(better, worse, difference, _sign(difference, scores[better], scores[worse], falls)))
    return found


def _apart(one: Row, other: Row, falls: bool) -> float:
    """Above 0 where the paper has the first one better."""
    if one.rank is not None:
        return other.rank - one.rank
    return other.published - one.published if falls else one.published - other.published


def _difference(
    better: Row, worse: Row, metric: str, records: Mapping[str, Record], scores: Mapping[Row, Interval]
) -> Interval:
    if better.study == worse.study:
        ours, theirs = (_units(_values(row, metric, records)) for row in (better, worse))
        if common := sorted(ours.keys() & theirs.keys()):
            return mean_interval([ours[unit] - theirs[unit] for unit in common])
    return Interval(scores[better].mean - scores[worse].mean, None, None)


def _sign(difference: Interval, better: Interval, worse: Interval, falls: bool) -> Sign:
    decided = difference.excludes_zero
    if difference.low is None and None not in (better.low, worse.low):
        decided = better.low > worse.high or better.high < worse.low
    if not decided:
        return "undecided"
    return "the same" if (difference.mean < 0) == falls else "the opposite"


def _values(row: Row, metric: str, records: Mapping[str, Record]) -> dict[Pair, float]:
    record = records.get(row.study)
    if record is None:
        return {}
    values = record.values(row.arm, metric)
    if row.against is None:
        return values
    reference = record.values(row.against, metric)
    return {pair: value - reference[pair] for pair, value in values.items() if pair in reference}


def _units(values: Mapping[Pair, float]) -> dict[Pair, float]:
    """Means over the seeds of each start; the seeds themselves where there is one start."""
    starts: dict[str, list[float]] = {}
    for (start, _), value in values.items():
        starts.setdefault(start, []).append(value)
    if len(starts) < 2:
        return dict(values)
    return {(start, 0): sum(own) / len(own) for start, own in starts.items()}


def tally(found: Sequence[Agreement]) -> str:
    """How often lab and paper agree, in words."""
    if not found:
        return "No two settings that differ in the paper have a record."
    counted = Counter(each.sign for each in found)
    whole = f"Of {len(found)} pairs of settings" if len(found) > 1 else "Of the one pair of settings"
    return (
        f"{whole}, {counted['the same']} stand on the lab in the paper's order, {counted['the opposite']} in the "
        f"opposite one, and {counted['undecided']} cannot be told apart."
    )
