"""Intervals and tests, against numbers that can be worked out by hand or looked up in a table."""

import itertools
import math

import numpy as np
import pytest

from alignlab.study.statistics import (
    mean_interval,
    paired_difference,
    paired_differences,
    sign_flip_p,
    smallest_sign_flip_p,
    t_quantile,
)


@pytest.mark.parametrize(
    ("degrees", "probability", "quantile"),
    # The table in every statistics book; one degree is a Cauchy: tan(0.475 pi).
    [(1, 0.975, 12.7062), (2, 0.975, 4.3027), (3, 0.975, 3.1824), (9, 0.95, 1.8331), (30, 0.995, 2.7500)],
)
def test_t_quantile_is_the_tables(degrees, probability, quantile):
    assert t_quantile(probability, degrees) == pytest.approx(quantile, abs=1e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-quantile, abs=1e-4)


def test_t_quantile_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees, probability in itertools.product(range(1, 40), (0.6, 0.9, 0.975, 0.995)):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-10)


def test_many_degrees_give_the_normal_quantile():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.959964, abs=1e-4)


def test_mean_interval_by_hand():
    # mean 2, standard deviation 1, so the half width is 4.3027 / sqrt(3) = 2.4841
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_a_single_value_has_no_interval():
    assert mean_interval([0.5]) == (0.5, None, None)
    assert mean_interval([0.5]).half_width is None
    assert not mean_interval([0.5]).excludes_zero


def test_equal_values_have_no_width_and_settle_nothing():
    interval = mean_interval([0.25, 0.25, 0.25])
    assert interval == (0.25, 0.25, 0.25)
    assert not interval.excludes_zero


def test_intervals_hold_their_level_at_three_values():
    samples = np.random.default_rng(0).normal(size=(4000, 3))
    held = [low < 0 < high for _, low, high in map(mean_interval, samples)]
    assert np.mean(held) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_pairing_takes_out_what_the_seeds_share():
    baseline = {("a", 0): 0.1, ("a", 1): 0.5, ("b", 0): 0.9}
    values = {pair: value + shift for (pair, value), shift in zip(baseline.items(), (0.01, 0.02, 0.03), strict=True)}
    difference = paired_difference(values, baseline)
    # mean 0.02, standard deviation 0.01: half width 4.3027 * 0.01 / sqrt(3) = 0.02484
    assert difference == pytest.approx((0.02, 0.02 - 0.02484, 0.02 + 0.02484), abs=1e-5)


def test_only_common_starts_and_seeds_are_compared():
    values, baseline = {("a", 0): 1.0, ("a", 1): 5.0}, {("a", 0): 0.25, ("b", 1): 7.0}
    assert paired_differences(values, baseline) == [0.75]
    assert paired_difference(values, {("c", 0): 1.0}) is None


def test_sign_flip_by_hand():
    # 8 assignments of +-1 +-2 +-3; |sum| >= 6 for two of them, |sum| >= 4 for four
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8


def test_sign_flip_counts_every_assignment():
    generator = np.random.default_rng(0)
    for count in range(1, 9):
        differences = generator.normal(size=count)
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
        sums = np.abs(signs @ differences)
        assert sign_flip_p(differences) == np.mean(sums >= abs(differences.sum()) - 1e-12)


def test_sign_flip_is_not_fooled_by_rounding():
    assert sign_flip_p([0.1] * 6) == 2 / 2**6
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1  # their sum is 5e-17


def test_no_difference_at_all_has_p_one():
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1


@pytest.mark.parametrize(("count", "floor"), [(1, 1.0), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125)])
def test_the_floor_of_the_sign_flip_test(count, floor):
    assert smallest_sign_flip_p(count) == floor == sign_flip_p([1.0] * count)
