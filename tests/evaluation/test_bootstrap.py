"""Intervals over patients: against scipy and Wilson, clustered, paired, at their edges, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from volseg.evaluation.bootstrap import (
    Clusters,
    band,
    bootstrap,
    clustered_proportion,
    paired_bootstrap,
    quantiles,
)
from volseg.evaluation.estimate import Estimate, clopper_pearson, wilson


def test_every_resample_holds_whole_patients_and_as_many_in_each_stratum(rng):
    patients = np.array(["a", "a", "a", "b", "c", "c", "d"])
    strata = np.array([1, 1, 1, 0, 1, 1, 0])
    for rows in Clusters.of(patients, strata).resamples(rng, 50):
        counts = {p: np.count_nonzero(patients[rows] == p) for p in "abcd"}
        times = [counts["a"] // 3, counts["b"], counts["c"] // 2, counts["d"]]
        assert counts["a"] % 3 == 0 and counts["c"] % 2 == 0
        assert times[0] + times[2] == 2 and times[1] + times[3] == 2


def test_a_patient_in_two_strata_is_refused():
    with pytest.raises(ValueError, match="patient a lies in two strata"):
        Clusters.of(["a", "a"], [0, 1])
    with pytest.raises(ValueError, match="1 strata for 2 rows"):
        Clusters.of(["a", "b"], [0])


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_limits_agree_with_scipys_bootstrap(method, rng):
    values = rng.gamma(2.0, size=40)
    ours = bootstrap(lambda rows: values[rows].mean(), np.arange(40), rng=rng, resamples=8000, method=method)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method={"bca": "BCa"}.get(method, method), rng=rng
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean()) and ours.n == 40
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_same_generator_gives_the_same_interval():
    values = np.arange(10.0)
    first, second = (
        bootstrap(lambda rows: values[rows].mean(), np.arange(10), rng=np.random.default_rng(3), resamples=200)
        for _ in range(2)
    )
    assert first == second


def test_lesions_that_agree_within_a_patient_widen_the_interval(rng):
    patients = np.repeat(np.arange(30), 8)
    hit = np.repeat(rng.random(30) < 0.6, 8)
    clustered = clustered_proportion(hit, patients, rng=rng, resamples=500)
    independent = clustered_proportion(hit, np.arange(240), rng=rng, resamples=500)
    assert clustered.n == 240 and clustered.unit == "lesions"
    ratio = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert ratio == pytest.approx(math.sqrt(8), rel=0.2)


def test_when_every_lesion_is_found_the_interval_is_not_a_point(rng):
    found = clustered_proportion(np.ones(40), np.repeat(np.arange(10), 4), rng=rng)
    assert (found.value, found.high) == (1, 1) and found.low == pytest.approx(wilson(10, 10).low)
    missed = clustered_proportion(np.zeros(5), np.arange(5), rng=rng)
    assert missed.low == 0 and 0.3 < missed.high < 0.5
    nothing = clustered_proportion([], [], rng=rng)
    assert math.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


def test_a_paired_difference_sees_what_unpaired_noise_would_hide(rng):
    base = rng.normal(size=40)
    better = base + 0.1 + rng.normal(0, 0.05, 40)
    result = paired_bootstrap(
        lambda r: better[r].mean(), lambda r: base[r].mean(), np.arange(40), rng=rng, resamples=999
    )
    assert result.estimate.value == pytest.approx((better - base).mean())
    assert 0 < result.estimate.low < result.estimate.high and result.p_value == pytest.approx(2 / 1000)


def test_two_equal_models_differ_by_nothing_with_p_1(rng):
    values = rng.normal(size=12)
    result = paired_bootstrap(lambda r: values[r].mean(), lambda r: values[r].mean(), np.arange(12), rng=rng)
    assert (result.estimate.value, result.p_value) == (0, 1)
    assert math.isnan(result.estimate.low) and math.isnan(result.estimate.high), "no spread was seen"
    assert "all alike" in result.estimate.method


@pytest.mark.parametrize("gains", [(0.02, 0.3), (0.1, 0.1), (0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)])
def test_p_is_never_below_what_signs_alone_can_say(gains, rng):
    """Two patients who both gain do so by chance one time in two."""
    gain = np.array(gains)
    result = paired_bootstrap(lambda r: gain[r].mean(), lambda r: 0.0, np.arange(gain.size), rng=rng)
    assert result.p_value == 2 / 2**gain.size


def test_a_gain_that_is_alike_in_all_patients_has_no_interval(rng):
    base = np.array([0.3, 0.11, 0.72, 0.5, 0.26, 0.9, 0.41])  # .1 more is not .1 more in floating point
    result = paired_bootstrap(
        lambda r: (base + 0.1)[r].mean(), lambda r: base[r].mean(), [0, 0, 1, 2, 3, 3, 3], rng=rng
    )
    assert result.estimate.value == pytest.approx(0.1) and math.isnan(result.estimate.low)
    assert result.p_value == 2 / 2**4


def test_one_patient_or_an_undefined_value_has_no_interval(rng):
    alone = bootstrap(lambda rows: 0.5, ["a", "a"], rng=rng)
    assert alone.value == 0.5 and alone.n == 1 and math.isnan(alone.low)
    undefined = bootstrap(lambda rows: math.nan, ["a", "b"], rng=rng)
    assert math.isnan(undefined.value) and math.isnan(undefined.high)
    assert math.isnan(bootstrap(lambda rows: 1.0, [], rng=rng).value)


def test_values_that_are_all_alike_have_no_interval_rather_than_a_certain_one(rng):
    same = bootstrap(lambda rows: np.ones(3)[rows].mean(), np.arange(3), rng=rng, resamples=50)
    assert same.value == 1 and math.isnan(same.low) and "all alike" in same.method


def test_resamples_without_a_value_are_no_spread_either(rng):
    # A share of marks, all right, that a resample without any mark (1 in 55) leaves undefined.
    marks = np.array([1, 1, 1, 1] + [0] * 6)
    share = bootstrap(
        lambda rows: marks[rows].sum() / marks[rows].sum() if marks[rows].any() else math.nan,
        np.arange(10), rng=rng, resamples=500,
    )  # fmt: skip
    assert share.value == 1 and math.isnan(share.low) and "all alike" in share.method


def test_infinite_values_reach_the_limit_instead_of_becoming_nan(rng):
    hd95 = np.array([1.0, 2.0, 3.0, math.inf])
    result = bootstrap(lambda rows: float(np.median(hd95[rows])), np.arange(4), rng=rng, resamples=400)
    assert result.value == 2.5 and result.low >= 1 and math.isinf(result.high)


def test_too_many_undefined_resamples_leave_no_interval():
    drawn = np.where(np.arange(100) < 6, math.nan, 1.0)
    assert math.isnan(quantiles(drawn, (0.025, 0.975))[0])
    assert quantiles(drawn[1:], (0.025, 0.975)) == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert quantiles(drawn[2:], (0.025, 0.975)) == (1.0, 1.0)  # 4 of 98


def test_a_band_is_the_interval_of_each_point(rng):
    values = rng.normal(size=(50, 3))
    low, high = band(lambda rows: values[rows].mean(axis=0), Clusters.of(np.arange(50)), rng=rng, resamples=800)
    half = 1.96 * values.std(axis=0) / math.sqrt(50)
    assert np.allclose(high - low, 2 * half, rtol=0.15)


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (5, 12), (12, 12), (81, 263)])
def test_wilson_and_clopper_pearson_agree_with_scipy(successes, n):
    test = stats.binomtest(successes, n)
    for ours, theirs in ((wilson, "wilson"), (clopper_pearson, "exact")):
        limits = test.proportion_ci(method=theirs)
        assert (ours(successes, n).low, ours(successes, n).high) == pytest.approx((limits.low, limits.high))


def test_wilson_by_newcombes_published_example():
    # Newcombe 1998, table I: 81 of 263 -> .2553 to .3662; 0 of 20 -> 0 to .1611.
    assert (round(wilson(81, 263).low, 4), round(wilson(81, 263).high, 4)) == (0.2553, 0.3662)
    assert (wilson(0, 20).low, round(wilson(0, 20).high, 4)) == (0.0, 0.1611)


def test_wilson_covers_95_percent_on_average_and_clopper_pearson_never_less():
    # Exact, no simulation: at 30 units every outcome and its chance are known.
    chances = np.linspace(0.05, 0.95, 91)
    for interval, least, on_average in ((wilson, 0.90, (0.945, 0.96)), (clopper_pearson, 0.95, (0.96, 0.985))):
        limits = [interval(k, 30) for k in range(31)]
        coverage = [
            sum(stats.binom.pmf(k, 30, p) for k, limit in enumerate(limits) if limit.low <= p <= limit.high)
            for p in chances
        ]
        assert min(coverage) >= least and on_average[0] <= np.mean(coverage) <= on_average[1]


def test_no_units_give_the_whole_range_and_impossible_counts_are_refused():
    assert math.isnan(wilson(0, 0).value) and (wilson(0, 0).low, clopper_pearson(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_an_estimate_in_words():
    assert Estimate(0.8421, 0.78, 0.9, 40).text(2) == "0.84 (0.78 to 0.90)"
    assert Estimate(math.nan, 0, 1, 0).text() == "n/a"
    assert Estimate(0.5, math.nan, math.nan, 1).text() == "0.500"


def test_the_interval_of_a_clustered_proportion_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(11)
    patients = np.repeat(np.arange(40), 3)
    covered = 0
    for _ in range(150):
        chance = rng.beta(6, 4, 40)  # mean .6; patients differ
        hit = rng.random(120) < np.repeat(chance, 3)
        interval = clustered_proportion(hit, patients, rng=rng, resamples=200)
        covered += interval.low <= 0.6 <= interval.high
    # 95 % of 150 is 142.5, standard deviation 2.7; a percentile bootstrap of 40 patients falls a little short.
    assert 0.89 <= covered / 150 <= 0.99
