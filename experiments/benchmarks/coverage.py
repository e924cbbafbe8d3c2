"""Coverage: how often the intervals of a study's report hold the truth, and how often it finds what is not there.

    python experiments/benchmarks/coverage.py --json experiments/benchmarks/results/coverage.json

Paired differences of U units (starts, or seeds) on the same I items are drawn anew 4,000 times from a model with random
units, items and rest; each time the report's own functions make the interval. So a share of 0.950 is one of 0.943 to
0.957 (two standard errors). The error of the mean comes from

    units     units alone: starts that differ, on endlessly many items
    rest      noise of unit and item together alone, as of coin flips
    items     nine tenths from the choice of items, a tenth from units
    mixed     a third each
    collapse  units alone, one in ten of which has a difference 5 standard deviations off: far from normal
    binary    right or wrong, by a logistic model: items of very unequal difficulty (standard deviation 2), units of
              0.3, items that suit one of the arms (0.5), a true difference of 0.5 (about 7 points)

``crossed`` is the interval of the report, ``student`` the one over units alone that it falls back to without records of
items, ``satterthwaite`` the same variance as ``crossed`` with Satterthwaite's degrees of freedom, and ``bootstrap`` the
percentiles of 1,000 resamples of units. ``found`` is how often, without any true difference, the report says
*supported*: the interval excludes 0 and all units agree in sign.

Measured (65 s of one core), with 256 items; last, the least and the most of ``crossed`` with 50, 256 and 1,000:

    units                    2      3      5      10     all
    units     crossed        0.948  0.951  0.956  0.950  0.948 to 0.956
              bootstrap                    0.839
              found          0.050  0.042  0.042  0.002
    rest      crossed        0.961  0.958  0.959  0.953  0.946 to 0.963
              student        0.953  0.952  0.953  0.949
              satterthwaite  0.923  0.945  0.952  0.951
              bootstrap                    0.841
              found          0.043  0.047  0.040  0.003
    items     crossed        0.986  0.971  0.957  0.952  0.948 to 0.986
              student        0.841  0.705  0.580  0.502
              satterthwaite  0.948  0.953  0.950  0.950
              bootstrap                    0.381
              found          0.012  0.030  0.040  0.044
    mixed     crossed        0.978  0.972  0.964  0.951  0.949 to 0.980
              student        0.942  0.929  0.912  0.895
              satterthwaite  0.912  0.933  0.944  0.944
              bootstrap                    0.764
              found          0.020  0.029  0.038  0.006
    collapse  crossed        0.942  0.939  0.922  0.891  0.891 to 0.942
              bootstrap                    0.761
              found          0.052  0.062  0.069  0.010
    binary    crossed        0.949  0.948  0.952  0.947  0.947 to 0.958
              student        0.940  0.945  0.944  0.933
              satterthwaite  0.893  0.927  0.944  0.943
              bootstrap                    0.830
              found          0.043  0.040  0.037  0.004

The report's interval holds its level where units are near to normal, and is wider than need be where two or three units
go with items that have most of the error. A tenth of collapsed units breaks it, as it breaks any interval over so few:
look at the single cells. That all units have to agree makes ten units stricter than five.
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit, stdtrit

from alignlab.study.crossed import degrees, estimate
from alignlab.study.statistics import mean_interval

UNITS, ITEMS = (2, 3, 5, 10), (50, 256, 1000)
SHARES = {"units": (1, 0, 0), "rest": (0, 0, 1), "items": (0.1, 0.9, 0), "mixed": (1, 1, 1)}
"""Shares of units, items and rest in the variance of the mean."""

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


class Held(NamedTuple):
    """Shares of intervals that hold the truth, and of studies without a true difference that find one."""

    crossed: float
    student: float
    satterthwaite: float
    bootstrap: float | None
    found: float


def normal(shares: tuple[float, float, float]) -> Draw:
    """Normal units, items and rest, of mean 0, the mean's variance split into shares."""
    of_units, of_items, of_rest = np.array(shares) / sum(shares)

    def draw(generator: np.random.Generator, units: int, items: int) -> np.ndarray:
        table = generator.normal(0, np.sqrt(units * of_units), size=(units, 1))
        table = table + generator.normal(0, np.sqrt(items * of_items), size=items)
        return table + generator.normal(0, np.sqrt(units * items * of_rest), size=(units, items))

    return draw


def collapse(generator: np.random.Generator, units: int, items: int) -> np.ndarray:
    """Units of mean 0, one in ten of which is far off."""
    values = generator.normal(size=(units, 1)) + 5 * (generator.random((units, 1)) < 0.1) - 0.5
    return np.broadcast_to(values, (units, items)) + 0.01 * generator.normal(size=(units, items))


def binary(shift: float) -> Draw:
    """Right or wrong of one arm, minus that of another, which finds the items harder by a shift in logits."""

    def draw(generator: np.random.Generator, units: int, items: int) -> np.ndarray:
        hardness = generator.normal(0, 2, size=items)
        arms = []
        for half in (shift / 2, -shift / 2):
            suits = generator.normal(0, 0.5, size=items)
            level = generator.normal(0, 0.3, size=(units, 1))
            arms.append(generator.random((units, items)) < expit(hardness + suits + level + half))
        return arms[0].astype(float) - arms[1]

    return draw


def true_difference(shift: float) -> float:
    """What ``binary`` has on average: the logits of each arm are normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = np.sqrt(2**2 + 0.5**2 + 0.3**2)
    means = [float((weights * expit(spread * points + half)).sum() / weights.sum()) for half in (shift / 2, -shift / 2)]
    return means[0] - means[1]


def simulate(draw: Draw, null: Draw, truth: float, units: int, items: int, repeats: int) -> Held:
    """Draw studies and count.

    Args:
        null: Draws without a true difference.
    """
    generator = np.random.default_rng([units, items])
    held, found = [], []
    for _ in range(repeats):
        table = draw(generator, units, items)
        values = table.mean(axis=1)
        result = estimate(values, table)
        plain = mean_interval(values)
        shape = units, result.unit_error, result.items, result.item_error
        reach = stdtrit(degrees(*shape), 0.975) * result.error
        intervals = [result.interval[1:], plain[1:], (result.mean - reach, result.mean + reach)]
        if units == 5:
            means = values[generator.integers(0, units, size=(1000, units))].mean(axis=1)
            intervals.append(tuple(np.quantile(means, (0.025, 0.975))))
        held.append([low <= truth <= high for low, high in intervals])
        table = null(generator, units, items)
        result = estimate(table.mean(axis=1), table)
        found.append(result.interval.excludes_zero and abs(np.sign(result.units).sum()) == units)
    shares = np.mean(held, axis=0).tolist()
    return Held(*shares[:3], shares[3] if units == 5 else None, float(np.mean(found)))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sides = {name: (normal(shares), normal(shares), 0.0) for name, shares in SHARES.items()}
    sides |= {"collapse": (collapse, collapse, 0.0), "binary": (binary(0.5), binary(0.0), true_difference(0.5))}
    print("| error from | units | items | crossed | units alone | Satterthwaite | bootstrap | found |")
    print("| --- " * 8 + "|")
    lines = []
    for name, side in sides.items():
        for units in UNITS:
            for items in ITEMS if name not in ("units", "collapse") else ITEMS[1:2]:
                held = simulate(*side, units, items, arguments.repeats)
                lines.append({"error": name, "units": units, "items": items, **held._asdict()})
                texts = ["" if share is None else f"{share:.3f}" for share in held]
                print(f"| {name} | {units} | {items} | {' | '.join(texts)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"repeats": arguments.repeats, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
