"""Intervals and tests, against numbers that can be worked out by hand or looked up in a table."""

import itertools
import math

import numpy as np
import pytest

from alignlab.study.statistics import (
    gap_share,
    holm,
    mean_interval,
    paired_difference,
    paired_differences,
    probability_of_improvement,
    ratio_interval,
    sign_flip_p,
    smallest_sign_flip_p,
    standard_error,
    t_quantile,
    unit_means,
)


@pytest.mark.parametrize(
    ("degrees", "probability", "quantile"),
    # The table in every statistics book; one degree is a Cauchy: tan(0.475 pi).
    [(1, 0.975, 12.7062), (2, 0.975, 4.3027), (3, 0.975, 3.1824), (9, 0.95, 1.8331), (30, 0.995, 2.7500)],
)
def test_t_quantile_is_the_tables(degrees, probability, quantile):
    assert t_quantile(probability, degrees) == pytest.approx(quantile, abs=1e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-quantile, abs=1e-4)


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


def test_pairing_takes_out_what_the_starts_share():
    baseline = {("a", 0): 0.1, ("b", 0): 0.5, ("c", 0): 0.9}
    values = {pair: value + shift for (pair, value), shift in zip(baseline.items(), (0.01, 0.02, 0.03), strict=True)}
    # mean 0.02, standard deviation 0.01: half width 4.3027 * 0.01 / sqrt(3) = 0.02484
    expected = pytest.approx((0.02, 0.02 - 0.02484, 0.02 + 0.02484), abs=1e-5)
    assert paired_difference(values, baseline, "start") == expected


def test_only_common_starts_and_seeds_are_compared():
    values, baseline = {("a", 0): 1.0, ("a", 1): 5.0}, {("a", 0): 0.25, ("b", 1): 7.0}
    assert paired_differences(values, baseline) == {("a", 0): 0.75}
    assert paired_difference(values, baseline) == (0.75, None, None)
    assert paired_differences(values, {("c", 0): 1.0}) == {} and paired_difference(values, {("c", 0): 1.0}) is None


def test_starts_are_the_means_of_their_seeds_however_many_they_have():
    values = {("a", 0): 1.0, ("b", 0): 5.0, ("a", 1): 2.0, ("a", 2): 6.0}
    assert unit_means(values, "start") == [3.0, 5.0]
    assert unit_means({("a", 1): 2.0, ("a", 0): 1.0}, "seed") == [1.0, 2.0]


def test_differences_that_rounding_alone_makes_unequal_are_equal():
    values, baseline = {("a", 0): 0.7, ("a", 1): 0.8, ("a", 2): 0.9}, {("a", 0): 0.3, ("a", 1): 0.4, ("a", 2): 0.5}
    differences = [*paired_differences(values, baseline).values()]
    assert len({*differences}) == 2
    assert standard_error(differences) == 0
    assert not mean_interval(differences).excludes_zero


def test_standard_error_by_hand():
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert standard_error([1.0]) is None


def test_ratio_interval_by_hand():
    # All variances and the covariance are 1, so t^2 / n = 4.3027^2 / 3 = 6.1710; Fieller's quadratic is
    # r^2 (100 - 6.1710) - 2 r (20 - 6.1710) + (4 - 6.1710) = 0, whose roots are (13.8290 -+ 19.8732) / 93.8290.
    assert ratio_interval([1.0, 2.0, 3.0], [9.0, 10.0, 11.0]) == pytest.approx((0.2, -0.06442, 0.35919), abs=2e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_ends_of_a_ratio_interval_part_minus_ratio_times_whole_just_reaches_zero(sign):
    parts, wholes = np.random.default_rng(1).normal([1, 4], 0.5, size=(6, 2)).T * [[1], [sign]]
    ratio, *ends = ratio_interval(parts, wholes)
    assert ends[0] < ratio < ends[1] and ratio == pytest.approx(parts.mean() / wholes.mean())
    for end in ends:
        _, low, high = mean_interval(parts - end * wholes)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-12)


def test_ratio_intervals_hold_their_level_where_the_whole_is_small():
    # of mean 4 standard errors, so that a part over a whole is far from normal; without a finite interval nothing fails
    pairs = np.random.default_rng(0).normal([1, 2], 1, size=(4000, 4, 2))
    held = [found is None or found.low < 0.5 < found.high for found in (ratio_interval(*pair.T) for pair in pairs)]
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000) <= np.mean(held)


@pytest.mark.parametrize("wholes", [[-1.0, 0.0, 1.1], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
def test_a_whole_that_is_not_known_to_differ_from_zero_has_no_ratio(wholes):
    assert ratio_interval([1.0, 2.0, 3.0], wholes) is None
    assert ratio_interval([1.0], [2.0]) is None


def test_the_baseline_closes_nothing_of_the_gap_and_the_oracle_all():
    baseline, oracle = {("a", 0): 0.3, ("a", 1): 0.5}, {("a", 0): 0.7, ("a", 1): 0.91}
    assert gap_share(baseline, baseline, oracle).closed == pytest.approx((0, 0, 0), abs=1e-12)
    assert gap_share(oracle, baseline, oracle).closed == pytest.approx((1, 1, 1))


def test_the_gap_is_that_of_the_starts_and_seeds_that_all_three_have():
    baseline = {("a", 0): 0.3, ("a", 1): 0.5, ("a", 2): 0.0}
    oracle = {("a", 0): 0.7, ("a", 1): 0.91, ("b", 2): 1.0}
    share = gap_share({("a", 0): 0.5, ("a", 1): 0.705, ("a", 2): 1.0, ("b", 2): 1.0}, baseline, oracle)
    assert share.pairs == 2 and share.gap.mean == pytest.approx(0.405)
    assert share.closed == pytest.approx((0.5, 0.5, 0.5))
    assert gap_share({("c", 0): 0.5}, baseline, oracle) is None


def test_the_share_of_the_gap_counts_starts():
    baseline = {("a", 0): 0.0, ("a", 1): 0.0, ("b", 0): 0.0}
    oracle = {("a", 0): 1.0, ("a", 1): 1.2, ("b", 0): 1.0}
    # starts' gaps 1.1 and 1.0, of which 0.3 and 0.6 are closed
    share = gap_share({("a", 0): 0.2, ("a", 1): 0.4, ("b", 0): 0.6}, baseline, oracle, "start")
    assert share.pairs == 3 and share.gap.mean == pytest.approx(1.05) and share.closed.mean == pytest.approx(0.9 / 2.1)


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


def test_holm_by_hand():
    # in order: 3 * 0.01, 2 * 0.02, 1 * 0.03, which must not fall below the one before
    assert holm({"a": 0.03, "b": 0.01, "c": 0.02}) == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0} and holm({"a": 0.25}) == {"a": 0.25} and holm({}) == {}


def test_holm_over_two_arms_takes_seven_units():
    least = [holm(dict.fromkeys("ab", smallest_sign_flip_p(units)))["a"] for units in (5, 6, 7)]
    assert least == [0.125, 0.0625, 0.03125]


def test_probability_of_improvement_by_hand():
    # 5 of 5: (0.025)^(1/5) = 0.4782; 3 gains, a tie, a loss: 3.5 of 5
    assert probability_of_improvement([1.0] * 5) == pytest.approx((1, 0.025**0.2, 1))
    assert probability_of_improvement([-1.0] * 5) == pytest.approx((0, 0, 1 - 0.025**0.2))
    mean, low, high = probability_of_improvement([1.0, 2.0, 3.0, 0.0, -1.0])
    assert mean == 0.7
    # at its ends, as many gains, or as many losses, have a chance of 2.5 %
    assert sum(math.comb(5, k) * low**k * (1 - low) ** (5 - k) for k in (3, 4, 5)) == pytest.approx(0.025)
    assert sum(math.comb(5, k) * (1 - high) ** k * high ** (5 - k) for k in (1, 2, 3, 4, 5)) == pytest.approx(0.025)
