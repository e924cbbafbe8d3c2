"""crossed: means over units and over the items that all units judged, and how far both may be off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.study.statistics import Interval, standard_error, t_quantile


@dataclass(frozen=True)
class Estimate:
    """A mean that stands for more units, and more items, than there are.

    Args:
        units: One value for each.
        unit_error: Standard error from the spread of the units alone; None for a single unit, 0 for equal ones.
        item_error: Standard error that the choice of the items adds; 0 where they are not known.
        items: How many each unit judged; None where they are not known.
    """

    units: tuple[float, ...]
    unit_error: float | None
    item_error: float = 0.0
    items: int | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.units))

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.unit_error is None else math.hypot(self.unit_error, self.item_error)

    @property
    def interval(self) -> Interval:
        """The mean with its 95 % interval."""
        reach = half_width(len(self.units), self.unit_error, self.items, self.item_error)
        return Interval(self.mean, *((None, None) if reach is None else (self.mean - reach, self.mean + reach)))


def half_width(
    units: int, unit_error: float | None, items: int | None, item_error: float, level: float = 0.95
) -> float | None:
    """Half of the interval of a mean over units and items: the root of the squares of what either alone would have.

    With a variance that a few units tell and another that many items tell, this keeps its level however they share the
    error (Howe 1974, JASA 69, 789-794), where Satterthwaite's degrees of freedom fall short of it: they are many just
    when the few units happen to be too much alike. It is Student's interval where either error is 0.

    Returns:
        None for a single unit.
    """
    if unit_error is None:
        return None
    probability = (1 + level) / 2
    from_items = t_quantile(probability, items - 1) * item_error if item_error and items else 0.0
    return math.hypot(t_quantile(probability, units - 1) * unit_error, from_items)


def degrees(units: int, unit_error: float, items: int | None, item_error: float) -> float:
    """Degrees of freedom of the sum of both variances (Satterthwaite 1946), for power; at least those of the units."""
    first, second = unit_error**2, item_error**2
    if not second or not items:
        return units - 1
    return (first + second) ** 2 / (first**2 / (units - 1) + second**2 / (items - 1))


def estimate(units: Sequence[float], table: np.ndarray | None = None) -> Estimate:
    """Estimate a mean.

    Units and items are crossed and random: value = mean + unit + item + rest (Cornfield & Tukey 1956). The mean squares
    of units, MU, items, MI, and rest, MR, tell the variance of the mean over U units and I items:

        (MU + MI - MR) / (U I)

    The part MU / (U I) is what the units alone tell; the other is how much the items add, and is never negative here.

    Args:
        units: A value for each.
        table: ``(U, I)``, what each unit has on each item; its rows have the units' means. None where nobody knows.
    """
    values, error = tuple(map(float, units)), standard_error(units)
    if table is None or table.shape[1] < 2:
        return Estimate(values, error)
    count, items = table.shape
    if error is None:
        return Estimate(values, None, items=items)
    by_item = table.mean(axis=0)
    rest = table - by_item - table.mean(axis=1, keepdims=True) + table.mean()
    of_items = count * float(by_item.var(ddof=1))
    of_rest = float((rest**2).sum()) / ((count - 1) * (items - 1))
    more = max(0.0, of_items - of_rest) / (count * items)
    return Estimate(values, error, math.sqrt(more), items)
