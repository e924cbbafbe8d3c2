"""Statistics: intervals and tests over the few units (starts, else seeds) of a study, exact where they can be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import betaincinv, stdtrit

from alignlab.study.naming import Pair


class Interval(NamedTuple):
    """A mean, or a ratio of means, and the ends of its interval, which are None where a single value allows none."""

    mean: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """False where there is no interval, nor one of no width: a few equal values say nothing of the spread."""
        return self.low is not None and self.low < self.high and (self.low > 0 or self.high < 0)


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: In (0, 1).
        degrees: At least 1.
    """
    return float(stdtrit(degrees, probability))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean with its Student t interval.

    Args:
        values: At least one; a single one has no interval.
        level: Share of intervals that hold the true mean, for normal values.
    """
    mean, error = float(np.mean(values)), standard_error(values)
    if error is None:
        return Interval(mean, None, None)
    half = t_quantile((1 + level) / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None where a single value allows none.

    0 where rounding alone makes values unequal: an error of 1e-17 would make anything certain.
    """
    if len(values) < 2:
        return None
    rounding = 1e-9 * float(np.abs(values).max())
    return 0.0 if np.ptp(values) <= rounding else float(np.std(values, ddof=1)) / math.sqrt(len(values))


def paired_differences(values: Mapping[Pair, float], baseline: Mapping[Pair, float]) -> dict[Pair, float]:
    """Value minus baseline for every (start, seed) that both have."""
    return {pair: values[pair] - baseline[pair] for pair in sorted(values.keys() & baseline.keys())}


def unit_means(values: Mapping[Pair, Any], unit: Literal["start", "seed"]) -> list[Any]:
    """What intervals and tests count: the mean over the seeds of each start, or one value for each seed.

    Args:
        values: Numbers, or arrays of one shape.
    """
    units: dict[str | int, list[Any]] = {}
    for (start, seed), value in sorted(values.items(), key=lambda item: item[0]):
        units.setdefault(start if unit == "start" else seed, []).append(value)
    return [sum(group) / len(group) for group in units.values()]


def paired_difference(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], unit: Literal["start", "seed"] = "seed"
) -> Interval | None:
    """Mean of the paired differences with Student's interval over units; None where no (start, seed) is common."""
    differences = paired_differences(values, baseline)
    return mean_interval(unit_means(differences, unit)) if differences else None


class Share(NamedTuple):
    """How much of the way from a baseline to an oracle is gone, over the (start, seed) that all three have.

    Its intervals are over units, without the variance of items.

    Args:
        gap: Oracle minus baseline.
        closed: (mean value - mean baseline) / gap; None where the interval of the gap does not exclude 0.
        pairs: How many (start, seed).
    """

    gap: Interval
    closed: Interval | None
    pairs: int


def gap_share(
    values: Mapping[Pair, float],
    baseline: Mapping[Pair, float],
    oracle: Mapping[Pair, float],
    unit: Literal["start", "seed"] = "seed",
) -> Share | None:
    """The share of the gap that a value closes; None where no (start, seed) is common."""
    common = {pair: baseline[pair] for pair in values.keys() & baseline.keys() & oracle.keys()}
    if not common:
        return None
    parts, wholes = (unit_means(paired_differences(each, common), unit) for each in (values, oracle))
    return Share(mean_interval(wholes), ratio_interval(parts, wholes), len(common))


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], level: float = 0.95) -> Interval | None:
    """Mean part / mean whole of pairs, with Fieller's interval (Fieller 1954, JRSS B 16, 175-185).

    It holds the ratios r for which the t interval of ``part - r whole`` includes 0, so it keeps its level however near
    to 0 the whole is, where dividing the ends of an interval does not. It is finite where the whole's own t interval
    excludes 0.

    Returns:
        None where it is not finite.
    """
    part, whole = mean_interval(parts, level), mean_interval(wholes, level)
    if not whole.excludes_zero:
        return None
    covariance = float(np.cov(parts, wholes)[0, 1]) / len(parts)
    middle = part.mean * whole.mean - t_quantile((1 + level) / 2, len(parts) - 1) ** 2 * covariance
    # r^2 (W^2 - w^2) - 2 r middle + (P^2 - p^2) <= 0, with p and w the half widths about the means P and W
    square = whole.low * whole.high
    root = math.sqrt(max(0.0, middle**2 - square * part.low * part.high))
    return Interval(part.mean / whole.mean, (middle - root) / square, (middle + root) / square)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of the mean difference if every difference might as well have had the other sign.

    Counts the sign assignments whose sum is at least as far from 0, out of all 2^n: sums of the two halves of the
    differences are enumerated and matched, so 40 differences take a second.
    """
    sample = np.asarray(differences, dtype=np.float64)
    bound = abs(sample.sum()) - 1e-9 * np.abs(sample).sum()
    left, right = _signed_sums(sample[::2]), np.sort(_signed_sums(sample[1::2]))
    above = len(right) - np.searchsorted(right, bound - left, side="left")
    below = np.searchsorted(right, -bound - left, side="right")
    both = len(left) * len(right)
    return min(1.0, float(above.sum() + below.sum()) / both)


def _signed_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate((sums + value, sums - value))
    return sums


def smallest_sign_flip_p(count: int) -> float:
    """The least p that ``count`` differences can reach: all of one sign."""
    return min(1.0, 2.0 ** (1 - count))


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p of several tests so that a true null is rejected at most as often as the level says (Holm 1979).

    Under m of them, none falls below 0.05 unless the floor of its test is at most 0.05 / m.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(ps, key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in ps}


def probability_of_improvement(gains: Sequence[float], level: float = 0.95) -> Interval:
    """How often a unit gains, ties counted half (paired, unlike Agarwal et al. 2021, whose runs are not).

    The interval is the exact one of Clopper & Pearson (1934); ties count against both of its ends.

    Args:
        gains: One for each unit, positive where it is for the better.
    """
    sample, tail = np.asarray(gains, dtype=np.float64), (1 - level) / 2
    total, wins, losses = len(sample), int((sample > 0).sum()), int((sample < 0).sum())
    low = betaincinv(wins, total - wins + 1, tail) if wins else 0.0
    high = 1 - betaincinv(losses, total - losses + 1, tail) if losses else 1.0
    return Interval((wins + (total - wins - losses) / 2) / total, float(low), float(high))
