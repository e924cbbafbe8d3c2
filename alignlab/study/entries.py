"""entries: each arm on each metric, beside the arm that it is compared with, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from alignlab.study.crossed import Estimate, estimate
from alignlab.study.naming import Pair, lower_is_better
from alignlab.study.power import detectable
from alignlab.study.results import Results
from alignlab.study.statistics import (
    Interval,
    holm,
    paired_differences,
    probability_of_improvement,
    sign_flip_p,
    unit_means,
)


@dataclass(frozen=True)
class Finding:
    """What may be said of a difference, by the report's one rule.

    Args:
        why: In a few words.
        needed: Units (starts, else seeds) at which the interval would probably decide it, were the difference as large
            and as scattered as seen; None where it is decided, where more units cannot decide it, or nobody can tell.
    """

    verdict: Literal["supported", "not supported", "inconclusive"]
    why: str
    needed: int | None = None


@dataclass(frozen=True)
class Entry:
    """One arm on one metric.

    Args:
        values: Of the finished cells.
        score: Mean over units (starts, else seeds), None where there is none.
        difference: To the baseline, or what the arm is compared with instead, over common (start, seed), None for the
            baseline itself.
        differences: One by one; fewer than ``values`` where a cell's partner is missing.
        p: Of the exact sign-flip test over units.
        p_holm: The same, adjusted by Holm for all arms that are compared on the metric.
        improvement: Probability of improvement, in [0, 1]: how often a unit does better, ties counted half.
        detectable: Smallest difference that a study of this size would probably show; None where nobody can tell.
        finding: What may be said; None for the baseline itself and where no pair is finished.
        spread: What the interval of the difference is made of, unit by unit; None where there is no difference.
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
    spread: Estimate | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference is not None and self.difference.excludes_zero

    @property
    def improvement_interval(self) -> Interval | None:
        """The probability of improvement with its 95 % interval."""
        if self.spread is None:
            return None
        sign = -1 if lower_is_better(self.metric) else 1
        return probability_of_improvement([sign * value for value in self.spread.units])


def measure(results: Results, arm: str, metric: str, reference: str | None) -> Entry:
    """Score an arm on a metric, and against another arm.

    Args:
        reference: None: against none.
    """
    values = results.values(arm, metric)
    other = {} if reference is None else results.values(reference, metric)
    differences = paired_differences(values, other)
    score = _estimate(results, metric, values, [arm]) if values else None
    entry = Entry(
        arm=arm,
        metric=metric,
        values=tuple(values.values()),
        score=score.interval if score else None,
        difference=None,
        differences=tuple(differences.values()),
        p=None,
    )
    if not differences:
        return entry
    found = _estimate(results, metric, differences, [arm, reference])
    entry = replace(entry, difference=found.interval, p=sign_flip_p(found.units), spread=found)
    return replace(entry, improvement=entry.improvement_interval.mean, detectable=detectable(found))


def row(results: Results, metric: str) -> dict[str, Entry]:
    """All arms on a metric, each against what it is compared with, their p adjusted for each other."""
    if ("row", metric) not in results.memory:
        entries = {
            arm: measure(results, arm, metric, None if arm == results.baseline else results.reference(arm))
            for arm in results.arms
        }
        compared = {arm: entry.p for arm, entry in entries.items() if entry.p is not None}
        adjusted = holm({arm: p for arm, p in compared.items() if not results.copies(arm, results.reference(arm))})
        results.memory["row", metric] = {
            arm: replace(entry, p_holm=adjusted.get(arm)) for arm, entry in entries.items()
        }
    return results.memory["row", metric]


def _estimate(results: Results, metric: str, values: Mapping[Pair, float], arms: Sequence[str]) -> Estimate:
    """The mean of an arm's scores, or of its differences to a second arm, with what the items tell of it.

    Args:
        values: What it is the mean of.
        arms: One or two.
    """
    return estimate(unit_means(values, results.unit), _table(results, metric, [*values], arms))


def _table(results: Results, metric: str, pairs: Sequence[Pair], arms: Sequence[str]) -> np.ndarray | None:
    """``(units, items)``: what each unit has on each item; None where the cells did not all judge the same items."""
    cells = {(cell.arm, cell.pair): cell for arm in arms for cell in results.of(arm)}
    found = [[cells[arm, pair].judged(metric) for pair in pairs] for arm in arms]
    if any(each is None or each[0] != found[0][0][0] for line in found for each in line):
        return None
    tables = [{pair: values for pair, (_, values) in zip(pairs, line, strict=True)} for line in found]
    rows = tables[0] if len(arms) == 1 else {pair: tables[0][pair] - tables[1][pair] for pair in pairs}
    return np.stack(unit_means(rows, results.unit))
