"""Intervals of means over units and items: by hand, at their limits, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from alignlab.study.crossed import Estimate, degrees, estimate
from alignlab.study.power import detectable, units_needed
from alignlab.study.statistics import mean_interval


def crossed(table) -> Estimate:
    table = np.asarray(table, dtype=np.float64)
    return estimate(table.mean(axis=1), table)


def test_mean_squares_by_hand():
    # Rows 0 0 2 4 and 2 2 4 8: units' means 1.5 and 4, items' 1 1 3 6, all together 2.75.
    # MU = 4 * (1.25^2 + 1.25^2) = 12.5; MI = 2 * (1.75^2 + 1.75^2 + 0.25^2 + 3.25^2) / 3 = 11.1667;
    # rests: 0.25 0.25 0.25 -0.75 and their opposites, so MR = 2 * 0.75 / 3 = 0.5.
    found = crossed([[0, 0, 2, 4], [2, 2, 4, 8]])
    assert found.mean == 2.75 and found.items == 4
    assert found.unit_error**2 == pytest.approx(12.5 / 8)
    assert found.item_error**2 == pytest.approx((11.16667 - 0.5) / 8)
    assert found.error**2 == pytest.approx((12.5 + 11.16667 - 0.5) / 8)
    # quantiles of one and of three degrees: 12.7062 and 3.1824
    half = math.sqrt(12.7062**2 * 1.5625 + 3.1824**2 * 1.33333)
    assert found.interval == pytest.approx((2.75, 2.75 - half, 2.75 + half), abs=1e-3)
    assert degrees(2, found.unit_error, 4, found.item_error) == pytest.approx(
        (1.5625 + 1.33333) ** 2 / (1.5625**2 / 1 + 1.33333**2 / 3), abs=1e-4
    )


def test_items_that_all_have_the_same_add_nothing():
    values = np.array([0.1, 0.3, 0.2])
    found = estimate(values, np.repeat(values[:, None], 50, axis=1))
    assert found.item_error == 0 and found.interval == mean_interval(values)


def test_items_that_scatter_less_than_the_rest_add_nothing():
    table = np.array([[1.0, -1.0], [-1.0, 1.0], [3.0, 1.0]])
    assert crossed(table).item_error == 0 and crossed(table).interval == mean_interval([0.0, 0.0, 2.0])


def test_units_that_are_all_alike_leave_the_interval_of_the_items():
    items = np.random.default_rng(0).normal(size=40)
    assert crossed([items] * 3).interval == pytest.approx(mean_interval(items))


@pytest.mark.parametrize("table", [None, [[0.5], [0.25], [0.75]]])
def test_without_several_items_the_interval_is_students(table):
    found = estimate([0.5, 0.25, 0.75], None if table is None else np.array(table))
    assert found.items is None and found.interval == mean_interval([0.5, 0.25, 0.75])
    expected = stats.t.interval(0.95, 2, loc=0.5, scale=0.25 / math.sqrt(3))
    assert found.interval[1:] == pytest.approx(expected)


def test_a_single_unit_has_no_interval_however_many_items():
    found = crossed(np.random.default_rng(0).normal(size=(1, 500)))
    assert found.items == 500 and found.error is None and found.interval[1:] == (None, None)
    assert detectable(found) is None and units_needed(found, 1.0) is None


def test_the_interval_is_never_narrower_than_that_of_the_units():
    generator = np.random.default_rng(0)
    for _ in range(200):
        table = generator.normal(size=(3, 20)) + generator.normal(size=20) + generator.normal(size=(3, 1))
        assert crossed(table).interval.half_width >= mean_interval(table.mean(axis=1)).half_width


@pytest.mark.parametrize("units", [2, 3, 5, 10])
@pytest.mark.parametrize(("of_units", "of_items", "of_rest"), [(1, 0, 0.1), (0.3, 1, 3), (1, 2, 3), (0, 0, 3)])
def test_intervals_hold_their_level_over_units_and_items(units, of_units, of_items, of_rest):
    items, repeats = 40, 1000
    generator = np.random.default_rng([units, int(10 * of_items)])
    held = []
    for _ in range(repeats):
        table = generator.normal(scale=of_rest, size=(units, items))
        table = (
            table + generator.normal(scale=of_units / 3, size=(units, 1)) + generator.normal(scale=of_items, size=items)
        )
        _, low, high = crossed(table).interval
        held.append(low <= 0 <= high)
    assert np.mean(held) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / repeats)


def test_students_interval_over_units_alone_does_not_hold_it():
    # what the items are for: five units, nine tenths of the variance from the choice of 40 items
    generator = np.random.default_rng(0)
    held, wide = [], []
    for _ in range(1000):
        table = generator.normal(scale=math.sqrt(0.1 * 5), size=(5, 1)) + generator.normal(scale=6.0, size=40)
        _, low, high = mean_interval(table.mean(axis=1))
        held.append(low <= 0 <= high)
        wide.append(crossed(table).interval[1] <= 0 <= crossed(table).interval[2])
    assert np.mean(held) < 0.7 and np.mean(wide) >= 0.93


def test_the_percentile_bootstrap_over_five_seeds_does_not_hold_it():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(1500, 5))
    means = values[np.arange(1500)[:, None, None], generator.integers(0, 5, size=(1500, 400, 5))].mean(axis=2)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.84, abs=0.03)


def test_the_detectable_difference_is_the_tables():
    # Cohen's d that a paired t test of 5 and of 10 pairs shows with a power of 80 %: 1.68 and 1.00 standard deviations
    for count, size in ((5, 1.682), (10, 0.996)):
        values = np.random.default_rng(0).normal(size=count)
        assert detectable(estimate(values)) == pytest.approx(size * values.std(ddof=1), rel=1e-3)


def test_the_detectable_difference_is_detected_four_times_in_five():
    true = detectable(Estimate((0.0,) * 5, 1 / math.sqrt(5)))
    samples = np.random.default_rng(0).normal(true, 1, size=(4000, 5))
    shown = [mean_interval(values).excludes_zero for values in samples]
    assert np.mean(shown) == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 4000))


def test_units_needed_are_those_at_which_the_difference_is_detectable():
    found = Estimate((0.0,) * 5, 1 / math.sqrt(5))  # standard deviation 1
    assert units_needed(found, 1.682) == 5 and units_needed(found, 1.68) == 6
    assert units_needed(found, 0.5) == 34  # as in the tables: 33.4 pairs
    assert units_needed(found, 0.05) is None and units_needed(found, 0.0) is None


def test_units_cannot_make_up_for_too_few_items():
    found = Estimate((0.0,) * 5, 0.1, item_error=1.0, items=100)
    # endless units leave the items' error of 1, of which 2.8 can be shown
    assert units_needed(found, 2.7) is None and units_needed(found, 2.9) is not None


def test_equal_units_tell_nothing_of_power():
    assert detectable(estimate([0.5, 0.5, 0.5])) is None and units_needed(estimate([0.5, 0.5, 0.5]), 0.5) is None
