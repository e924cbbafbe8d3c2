"""power: what a study of so many units can probably show, and how many units more would take."""

import math

import numpy as np
from scipy.special import nctdtrinc, stdtrit

from alignlab.study.crossed import Estimate, degrees, half_width

POWER = 0.8
"""With which probability."""

MOST = 1000
"""Units beyond which nobody will go."""


def detectable(found: Estimate) -> float | None:
    """The smallest true difference whose 95 % interval would probably exclude 0 in as large a study as this one.

    From the noncentral t distribution, with the spread as seen, which a few units tell only roughly.

    Returns:
        None for a single unit, or where equal units tell no spread.
    """
    if not found.error:
        return None
    shape = len(found.units), found.unit_error, found.items, found.item_error
    bound = half_width(*shape) / found.error
    return float(nctdtrinc(degrees(*shape), 1 - POWER, bound)) * found.error


def units_needed(found: Estimate, distance: float) -> int | None:
    """How many units it takes, probably, until the 95 % interval excludes a value that far from the true mean.

    Units are taken to scatter as seen; the items stay the same.

    Args:
        distance: Positive.

    Returns:
        None where no spread is known, or where more than a thousand units would not do, as of too few items.
    """
    if not found.error or distance <= 0:
        return None
    counts = np.arange(2, MOST + 1, dtype=np.float64)
    of_units = (found.unit_error * math.sqrt(len(found.units))) ** 2 / counts
    of_items = found.item_error**2
    error = np.sqrt(of_units + of_items)
    reach = stdtrit(counts - 1, 0.975) ** 2 * of_units
    freedom = counts - 1
    if of_items:
        reach = reach + stdtrit(found.items - 1, 0.975) ** 2 * of_items
        freedom = error**4 / (of_units**2 / (counts - 1) + of_items**2 / (found.items - 1))
    shown = nctdtrinc(freedom, 1 - POWER, np.sqrt(reach) / error) * error <= distance
    return int(counts[shown.argmax()]) if shown.any() else None
