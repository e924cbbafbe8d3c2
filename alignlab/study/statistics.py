"""Statistics: intervals and tests over the few cells of a study, exact where they can be."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Pair = tuple[str, int]
"""Start and seed: what two arms share."""


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
    """Quantile of Student's t distribution for whole degrees of freedom.

    Args:
        probability: In (0, 1).
        degrees: At least 1.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while _t_cumulative(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cumulative(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_cumulative(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0, a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for order in range(2 if odd else 1, degrees, 2):
        total += term
        term *= cosine**2 * order / (order + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2


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


def paired_differences(values: Mapping[Pair, float], baseline: Mapping[Pair, float]) -> list[float]:
    """Value minus baseline for every (start, seed) that both have."""
    return [values[pair] - baseline[pair] for pair in sorted(values.keys() & baseline.keys())]


def paired_difference(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], level: float = 0.95
) -> Interval | None:
    """Mean of the paired differences with its interval; None where no (start, seed) is common."""
    differences = paired_differences(values, baseline)
    return mean_interval(differences, level) if differences else None


class Share(NamedTuple):
    """How much of the way from a baseline to an oracle is gone, over the (start, seed) that all three have.

    Args:
        gap: Oracle minus baseline.
        closed: (mean value - mean baseline) / gap; None where the interval of the gap does not exclude 0.
        pairs: How many.
    """

    gap: Interval
    closed: Interval | None
    pairs: int


def gap_share(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], oracle: Mapping[Pair, float]
) -> Share | None:
    """The share of the gap that a value closes; None where no (start, seed) is common."""
    common = {pair: baseline[pair] for pair in values.keys() & baseline.keys() & oracle.keys()}
    if not common:
        return None
    parts, wholes = paired_differences(values, common), paired_differences(oracle, common)
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
