"""Calibration: whether a metric shows what the oracle knows, and how much of that the other arms show."""

import math
from dataclasses import dataclass

from alignlab.study.comparison import compare
from alignlab.study.naming import lower_is_better
from alignlab.study.results import Results
from alignlab.study.statistics import Interval, gap_share, mean_interval, paired_differences, standard_error, unit_means
from alignlab.study.wording import MINUS, count

ERRORS = 10
"""Standard errors by which an accepted oracle is better, at least."""

LOWEST, HIGHEST = 0.30, 0.90
"""What the baseline's mean lies between, so that there is room on both sides."""


@dataclass(frozen=True)
class Calibration:
    """Oracle against baseline on one metric, over the (start, seed) that both have.

    Args:
        difference: Oracle minus baseline, over units (starts, else seeds) alone.
        error: Its standard error, None for a single unit.
        pairs: How many.
        objections: Why the metric is not accepted; empty where it is.
    """

    metric: str
    baseline: float
    oracle: float
    difference: Interval
    error: float | None
    pairs: int
    objections: tuple[str, ...]

    @property
    def errors(self) -> float | None:
        """The difference in standard errors; None where none or only equal differences tell the error."""
        return self.difference.mean / self.error if self.error else None


def calibrate(results: Results, metric: str) -> Calibration | None:
    """Judge a metric by the oracle; None where no start and seed has it in both arms."""
    baseline, oracle = results.values(results.baseline, metric), results.values(results.oracle, metric)
    common = sorted(baseline.keys() & oracle.keys())
    if not common:
        return None
    differences = unit_means(paired_differences(oracle, baseline), results.unit)
    difference, error = mean_interval(differences), standard_error(differences)
    means = [mean_interval(unit_means({p: of[p] for p in common}, results.unit)).mean for of in (baseline, oracle)]
    return Calibration(
        metric=metric,
        baseline=means[0],
        oracle=means[1],
        difference=difference,
        error=error,
        pairs=len(common),
        objections=tuple(objections(means[0], gain(metric, difference.mean), error)),
    )


def gain(metric: str, difference: float) -> float:
    """A difference to the baseline, positive where it is for the better."""
    return -difference if lower_is_better(metric) else difference


def objections(baseline: float, gain: float, error: float | None) -> list[str]:
    """Why a metric cannot carry a conclusion.

    Args:
        baseline: Mean of the baseline.
        gain: By how much the oracle is better.
        error: Standard error of the gain, None where there is none.
    """
    reasons = []
    if error is None:
        reasons.append("a single start or seed has no standard error")
    elif not error:
        reasons.append("equal differences tell no standard error")
    elif gain < 0:
        reasons.append(f"the oracle is worse by {tenths(-gain / error)} standard errors")
    elif gain < ERRORS * error:
        reasons.append(f"the oracle is better by {tenths(gain / error)} standard errors, fewer than {ERRORS}")
    if not LOWEST <= round(baseline, 12) <= HIGHEST:
        reasons.append(f"the baseline's mean {baseline:.4g} is not between {LOWEST:.2f} and {HIGHEST:.2f}")
    return reasons


def tenths(value: float) -> str:
    """A number of standard errors, cut and not rounded: 9.99 is not 10."""
    return f"{math.trunc(round(value * 10, 9)) / 10:.1f}".replace("-", MINUS)


def share(results: Results, arm: str, metric: str) -> str:
    """The share of the oracle's gap that an arm closes, with its interval, or why there is none: 42 % [31, 53]."""
    values = (results.values(name, metric) for name in (arm, results.baseline, results.oracle))
    found = gap_share(*values, results.unit)
    if found is None:
        return "n/a"
    if found.closed is None:
        return "n/a (gap not established)"
    if gain(metric, found.gap.mean) < 0:
        return "n/a (the oracle is worse)"
    mean, low, high = (f"{100 * value:.0f}".replace("-0", "0").replace("-", MINUS) for value in found.closed)
    return f"{mean} % [{low}, {high}]{_of(found.pairs, len(results.values(arm, metric)))}"


def _of(pairs: int, cells: int) -> str:
    """How many pairs a number is made of, where they are fewer than the arm's cells."""
    return "" if pairs == cells else f" ({count(pairs, 'pair')})"


def effect(results: Results, metric: str) -> tuple[str, bool | None]:
    """Whether the placebo can be told from the baseline, in words and as a truth; None where nobody can know."""
    entry = compare(results, results.placebo, metric)
    if entry.difference is None:
        return "n/a: no start and seed is finished in both", None
    if entry.difference.low is None:
        return f"n/a: a single {results.unit}", None
    if not any(entry.differences):
        return f"the same as {results.baseline} in every cell", False
    return f"{'' if entry.clear else 'not '}distinguishable from {results.baseline}", entry.clear
