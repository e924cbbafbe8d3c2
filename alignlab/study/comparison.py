"""Comparison: every arm against the baseline, in numbers and in words."""

import math
from dataclasses import dataclass
from typing import Literal

from alignlab.study.audit import mismatches
from alignlab.study.naming import lower_is_better
from alignlab.study.results import Results
from alignlab.study.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_differences,
    sign_flip_p,
    smallest_sign_flip_p,
)
from alignlab.study.wording import count, signed


@dataclass(frozen=True)
class Finding:
    """What may be said of a difference, by the report's one rule.

    Args:
        why: In a few words.
        needed: Units (starts, else seeds) that would probably decide it; None where it is decided or nobody can tell.
    """

    verdict: Literal["supported", "not supported", "inconclusive"]
    why: str
    needed: int | None = None


@dataclass(frozen=True)
class Entry:
    """One arm on one metric.

    Args:
        values: Of the finished cells.
        score: Mean over them, None where there is none.
        difference: To the baseline, or what the arm is compared with instead, over common (start, seed), None for the
            baseline itself.
        differences: One by one; fewer than ``values`` where a cell's partner is missing.
        p: Of the exact sign-flip test.
        p_holm: The same, adjusted by Holm for all arms that are compared on the metric.
        improvement: Probability of improvement, in [0, 1]: how often the arm does better, ties counted half.
        detectable: Smallest difference that a study of this size would probably show; None where nobody can tell.
        finding: What may be said; None for the baseline itself and where no pair is finished.
    """

    arm: str
    metric: str
    values: tuple[float, ...]
    score: Interval | None
    difference: Interval | None
    differences: tuple[float, ...]
    p: float | None
    p_holm: float | None = None
    improvement: float | None = None
    detectable: float | None = None
    finding: Finding | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference is not None and self.difference.excludes_zero


def paired(entry: Entry) -> str:
    """How many pairs a difference is made of, where they are not as many as the values."""
    partial = entry.difference is not None and len(entry.differences) != len(entry.values)
    return count(len(entry.differences), "pair") if partial else ""


def compare(results: Results, arm: str, metric: str) -> Entry:
    """Score an arm on a metric, and against the baseline."""
    values, reference = results.values(arm, metric), results.values(results.reference(arm), metric)
    pairs = arm != results.baseline
    differences = paired_differences(values, reference) if pairs else []
    return Entry(
        arm=arm,
        metric=metric,
        values=tuple(values.values()),
        score=mean_interval(list(values.values())) if values else None,
        difference=paired_difference(values, reference) if pairs else None,
        differences=tuple(differences),
        p=sign_flip_p(differences) if differences else None,
    )


@dataclass(frozen=True)
class Trade:
    """What an arm gains and what it pays, over the finished cells that have both metrics.

    Args:
        cells: The values of both, one for each cell.
        means: Their means.
        size: Mean of the third metric, if there is one and any of the arm's cells has it.
    """

    arm: str
    cells: tuple[tuple[float, ...], tuple[float, ...]]
    means: tuple[Interval, Interval]
    size: Interval | None = None


def trades(results: Results) -> list[Trade]:
    """The study's trade-off, of each arm that has it."""
    if not results.tradeoff:
        return []
    found, (gain, cost, *more) = [], results.tradeoff
    for arm in results.arms:
        gained, lost = results.values(arm, gain), results.values(arm, cost)
        if pairs := [pair for pair in gained if pair in lost]:
            cells = tuple(gained[pair] for pair in pairs), tuple(lost[pair] for pair in pairs)
            sizes = [value for metric in more for value in results.values(arm, metric).values()]
            means = mean_interval(cells[0]), mean_interval(cells[1])
            found.append(Trade(arm, cells, means, mean_interval(sizes) if sizes else None))
    return found


def trade_note(results: Results) -> str:
    """What the trade-off's plot shows, in one sentence."""
    gain, cost, *more = results.tradeoff
    better = [
        f"{'less' if lower_is_better(metric) else 'more'} of {metric} ({low if lower_is_better(metric) else high})"
        for metric, low, high in ((gain, "left", "right"), (cost, "down", "up"))
    ]
    note = (
        "Each arm's mean over its cells with 95 % intervals, and its cells as faint points; dashed lines cross at "
        f"{results.baseline}, the baseline, and what is better has {better[0]} and {better[1]}."
    )
    return note + "".join(f" The area of a point is its {metric}; a hollow one has none." for metric in more)


@dataclass(frozen=True)
class Verdict:
    """On which metrics an arm differs from the baseline; ``higher`` and ``lower`` where the interval excludes 0.

    Args:
        same: Where every cell has the baseline's score.
        unknown: Why nothing can be said, else None.
    """

    arm: str
    higher: tuple[Entry, ...]
    lower: tuple[Entry, ...]
    undecided: tuple[Entry, ...]
    same: tuple[Entry, ...]
    unknown: str | None


def verdict(results: Results, arm: str) -> Verdict:
    """Sort the metrics by what is known about an arm."""
    entries = [compare(results, arm, metric) for metric in results.metrics]
    compared = [entry for entry in entries if entry.difference is not None]
    unknown = None
    if not compared:
        both = _pairs(results, arm)
        unknown = "no metric is scored in both." if both else "no start and seed is finished in both."
    elif all(entry.difference.low is None for entry in compared):
        unknown = "a single pair of cells, which allows no interval and no conclusion."
    return Verdict(
        arm=arm,
        higher=tuple(entry for entry in compared if entry.clear and entry.difference.mean > 0),
        lower=tuple(entry for entry in compared if entry.clear and entry.difference.mean < 0),
        undecided=tuple(entry for entry in compared if any(entry.differences) and not entry.clear),
        same=tuple(entry for entry in compared if not any(entry.differences)),
        unknown=unknown,
    )


def extent(results: Results) -> list[str]:
    """How large the study is and how much of it is there."""
    axes = ((results.arms, "arm"), (results.starts, "start"), (results.seeds, "seed"))
    planned, missing = len(results.cells), len(results.cells) - len(results.finished)
    full = math.prod(len(values) for values, _ in axes)
    size = " × ".join(count(len(values), noun) for values, noun in axes)
    size += f"{'' if planned == full else ', not all arms with all of them'}: {count(planned, 'cell')}"
    if not results.finished:
        return [f"{size}, none finished: there is nothing to compare yet."]
    if not missing:
        return [f"{size}, all finished."]
    return [f"{size}, {len(results.finished)} finished. The other {count(missing, 'cell')} are listed below."]


def summary(results: Results) -> list[str]:
    """What came out, in sentences."""
    sentences = extent(results)
    return sentences + [_sentence(results, verdict(results, arm)) for arm in results.others if results.finished]


def _sentence(results: Results, verdict: Verdict) -> str:
    name = f"{verdict.arm} against {results.reference(verdict.arm)}"
    if verdict.unknown is not None:
        return f"{name}: {verdict.unknown}"
    parts = []
    for word, entries in (("higher", verdict.higher), ("lower", verdict.lower)):
        if entries:
            parts.append(f"{word} on {_listed([told(entry) for entry in entries])}")
    for word, entries in (("undecided", verdict.undecided), ("the same", verdict.same)):
        if entries:
            parts.append(f"{word} on {_listed([entry.metric for entry in entries])}")
    return f"{name}: {'; '.join(parts)}."


def told(entry: Entry) -> str:
    """A metric with its difference."""
    return f"{entry.metric} ({signed(entry.difference.mean)})"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def caveats(results: Results) -> list[str]:
    """What the numbers do not say; each is true of this study."""
    notes = list(results.notes)
    notes += [f"{metric}: no finished cell has this metric." for metric in _missing(results)]
    notes += [note for arm in results.others for note in mismatches(results, arm)]
    notes += [sentence] if (sentence := power(results)) else []
    notes.append(
        "Intervals are 95 % Student t intervals over cells; differences are paired by start and seed. "
        "They are not corrected for the number of comparisons."
    )
    if len(results.starts) > 1:
        notes.append(
            "Cells of one start are counted as independent; for a claim about new starts the intervals are too narrow."
        )
    return notes


def power(results: Results) -> str | None:
    """What a test over so few cells can show at all."""
    sizes = {len(_pairs(results, arm)) for arm in results.others} - {0}
    return " ".join(_reach(pairs) for pairs in sorted(sizes, reverse=True)) or None


def _reach(pairs: int) -> str:
    floor = smallest_sign_flip_p(pairs)
    reach = "cannot reach p < 0.05, however large the effect" if floor >= 0.05 else "can reach p < 0.05"
    return f"An exact sign-flip test over {count(pairs, 'pair')} has p ≥ {floor:.3g}: it {reach}."


def _missing(results: Results) -> list[str]:
    named = dict.fromkeys((*results.headline, *results.tradeoff))
    return [metric for metric in named if results.finished and metric not in results.all_metrics]


def _pairs(results: Results, arm: str) -> set:
    ours = {cell.pair for cell in results.of(arm) if cell.finished}
    return ours & {cell.pair for cell in results.of(results.reference(arm)) if cell.finished}
