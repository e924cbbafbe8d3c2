"""Statistics: intervals and tests over the few cells of a study, exact where they can be."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Pair = tuple[str, int]
"""Start and seed: what two arms share."""


class Interval(NamedTuple):
    """A mean and the ends of its interval, which are None where a single value allows none."""

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
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None)
    half = t_quantile((1 + level) / 2, len(sample) - 1) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Interval(mean, mean - half, mean + half)


def paired_differences(values: Mapping[Pair, float], baseline: Mapping[Pair, float]) -> list[float]:
    """Value minus baseline for every (start, seed) that both have."""
    return [values[pair] - baseline[pair] for pair in sorted(values.keys() & baseline.keys())]


def paired_difference(
    values: Mapping[Pair, float], baseline: Mapping[Pair, float], level: float = 0.95
) -> Interval | None:
    """Mean of the paired differences with its interval; None where no (start, seed) is common."""
    differences = paired_differences(values, baseline)
    return mean_interval(differences, level) if differences else None


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
