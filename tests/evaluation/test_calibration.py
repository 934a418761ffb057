"""Calibration and decision curves: by hand, against statsmodels and scikit-learn, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from volseg.evaluation.calibration import calibration, decision_curve, reliability


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def drawn(rng: np.random.Generator, n: int = 400, *, slope: float = 1.0, shift: float = 0.0):
    """Truth follows logit(p) * slope + shift: what recalibration has to find."""
    x = rng.normal(0, 1.5, n)
    return (rng.random(n) < logistic(slope * x + shift)).astype(int), logistic(x)


def test_slope_and_intercept_agree_with_statsmodels(rng):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    y, p = drawn(rng, slope=0.7, shift=0.4)
    x = np.log(p / (1 - p))
    both = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit()
    alone = sm.GLM(y, np.ones_like(x), family=sm.families.Binomial(), offset=x).fit()
    ours = calibration(y, p)
    assert (ours.intercept.value, ours.slope.value) == pytest.approx(tuple(both.params), abs=1e-6)
    assert (ours.slope.low, ours.slope.high) == pytest.approx(tuple(both.conf_int()[1]), abs=1e-5)
    assert ours.in_the_large.value == pytest.approx(alone.params[0], abs=1e-6)
    assert (ours.in_the_large.low, ours.in_the_large.high) == pytest.approx(tuple(alone.conf_int()[0]), abs=1e-5)


def test_a_constant_probability_is_calibrated_in_the_large_by_the_odds():
    # 3 of 4 came true and .5 was said: the intercept must be log 3, with variance 1 / (4 * 3/4 * 1/4).
    ours = calibration([1, 1, 1, 0], [0.5] * 4)
    assert ours.in_the_large.value == pytest.approx(math.log(3))
    assert ours.in_the_large.high - math.log(3) == pytest.approx(1.959964 / math.sqrt(0.75), rel=1e-5)
    assert math.isnan(ours.slope.value)  # a slope needs more than one probability


def test_the_slope_finds_overconfidence_and_its_interval_covers_it_19_times_in_20():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        slope = calibration(*drawn(rng, 200, slope=0.6)).slope
        covered += slope.low <= 0.6 <= slope.high
    assert 0.92 <= covered / 300 <= 0.98


def clustered(rng: np.random.Generator, patients: int):
    """1 to 8 lesions of each patient, all of one class, with a share of the score in common; the slope is 1.

    x is normal with variance 1.44 about -.72 and .72 in the two classes: the log odds of a lesion are x itself.
    """
    who = np.repeat(np.arange(patients), rng.integers(1, 9, patients))
    y = rng.integers(0, 2, patients)
    common, own = rng.normal(0, math.sqrt(0.72), patients), rng.normal(0, math.sqrt(0.72), who.size)
    return y[who], logistic(0.72 * (2 * y[who] - 1) + common[who] + own), who


def test_the_interval_over_patients_agrees_with_statsmodels_sandwich(rng):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    y, p, who = clustered(rng, 50)
    x = np.log(p / (1 - p))
    kinds = {"cov_type": "cluster", "cov_kwds": {"groups": who, "use_correction": False}}
    both = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit(**kinds)
    alone = sm.GLM(y, np.ones_like(x), family=sm.families.Binomial(), offset=x).fit(**kinds)
    ours, model = calibration(y, p, patients=who, unit="lesions"), calibration(y, p, unit="lesions")
    for one, error, k in (
        (ours.intercept, both.bse[0], 2), (ours.slope, both.bse[1], 2), (ours.in_the_large, alone.bse[0], 1)
    ):  # fmt: skip
        half = stats.t.ppf(0.975, 50 - k) * math.sqrt(50 / (50 - k)) * error
        assert (one.high - one.low) / 2 == pytest.approx(half, rel=1e-4) and "over 50 patients" in one.method
    assert ours.slope.value == model.slope.value and ours.slope.n == who.size


def test_with_one_row_per_patient_the_interval_is_near_that_of_the_model(rng):
    y, p = drawn(rng, 2000)
    robust, model = (calibration(y, p, patients=who) for who in (np.arange(2000), None))
    for one, other in ((robust.slope, model.slope), (robust.in_the_large, model.in_the_large)):
        assert (one.high - one.low) == pytest.approx(other.high - other.low, rel=0.05)


def test_repeated_rows_do_not_pretend_to_be_new_patients(rng):
    y, p = drawn(rng, 60)
    plain = calibration(y, p, patients=np.arange(60))
    tripled = calibration(np.repeat(y, 3), np.repeat(p, 3), patients=np.repeat(np.arange(60), 3))
    assert (tripled.slope.low, tripled.slope.high) == pytest.approx((plain.slope.low, plain.slope.high))


def test_the_interval_over_patients_covers_the_truth_about_19_times_in_20_where_the_models_does_not():
    rng = np.random.default_rng(6)
    covered = np.zeros(2)
    for _ in range(200):
        y, p, who = clustered(rng, 40)
        slopes = [calibration(y, p, patients=patients).slope for patients in (who, None)]
        covered += [slope.low <= 1 <= slope.high for slope in slopes]
    assert 0.9 <= covered[0] / 200 <= 0.985 and covered[1] / 200 < 0.85


def test_too_few_patients_or_no_spread_between_them_leave_no_interval():
    y, p = [0, 1, 0, 1], [0.3, 0.6, 0.6, 0.5]
    two = calibration(y, p, patients=["a", "a", "b", "b"])
    assert math.isfinite(two.slope.value) and math.isnan(two.slope.low) and math.isfinite(two.in_the_large.low)
    # Every patient has one right and one wrong lesion at .5: their sums are all 0.
    even = calibration(y, [0.5] * 4, patients=["a", "a", "b", "b"]).in_the_large
    assert even.value == pytest.approx(0) and math.isnan(even.low) and math.isnan(even.high)
    with pytest.raises(ValueError, match="1 patients for 4 rows"):
        calibration(y, p, patients=["a"])


def test_brier_and_ece_by_hand():
    ours = calibration([0, 1, 1, 1], [0.1, 0.1, 0.8, 0.9])
    assert ours.brier == pytest.approx((0.01 + 0.81 + 0.04 + 0.01) / 4)
    assert ours.ece == pytest.approx((2 * abs(0.5 - 0.1) + abs(1 - 0.8) + abs(1 - 0.9)) / 4)
    assert ours.brier_of_prevalence == pytest.approx(0.75 * 0.25)


def test_brier_and_bins_agree_with_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from sklearn.calibration import calibration_curve

    y, p = drawn(rng)
    assert calibration(y, p).brier == pytest.approx(metrics.brier_score_loss(y, p))
    observed, mean = calibration_curve(y, p, n_bins=10)
    ours = [g for g in reliability(y, p) if g.observed.n]
    assert [g.observed.value for g in ours] == pytest.approx(observed.tolist())
    assert [g.mean_probability for g in ours] == pytest.approx(mean.tolist())


def test_bins_hold_their_lower_edge_and_the_last_its_upper():
    groups = reliability([1, 0, 1, 1], [0.3, 0.299, 1.0, 0.9])
    assert [g.observed.n for g in groups] == [0, 0, 1, 1, 0, 0, 0, 0, 0, 2]
    assert math.isnan(groups[0].mean_probability) and math.isnan(groups[0].observed.value)


@pytest.mark.parametrize(
    ("y", "p"), [([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]), ([1, 1, 1], [0.2, 0.5, 0.7]), ([0, 1, 1], [0.0, 1.0, 1.0])]
)
def test_separated_or_single_classes_have_no_slope_but_a_brier_score(y, p):
    ours = calibration(y, p)
    assert math.isnan(ours.slope.value) and math.isnan(ours.slope.low) and ours.brier < 0.5


@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_a_row_that_is_certain_has_no_log_odds_and_leaves_only_brier_and_ece(rng, certain):
    y, p = drawn(rng)
    assert calibration(y, p).n_certain == 0 and math.isfinite(calibration(y, p).slope.value)
    p[:2] = certain
    ours = calibration(y, p)
    assert ours.n_certain == 2 and ours.slope.n == 400
    for one in (ours.slope, ours.intercept, ours.in_the_large):
        assert math.isnan(one.value) and math.isnan(one.low)
    assert ours.brier == pytest.approx(float(np.mean((p - y) ** 2))) and 0 < ours.ece < 1


def test_net_benefit_by_hand():
    # At .5 two true and one false positive of five rows: 2/5 - 1/5. At .2 all are called: 2/5 - 3/5 * .25.
    curve = decision_curve([1, 1, 0, 0, 0], [0.9, 0.6, 0.7, 0.3, 0.2], [0.2, 0.5])
    assert curve.model.tolist() == pytest.approx([2 / 5 - 3 / 5 / 4, 1 / 5])
    assert curve.treat_all.tolist() == pytest.approx([2 / 5 - 3 / 5 / 4, 2 / 5 - 3 / 5])


def test_a_useless_model_never_beats_treating_all_or_none(rng):
    y = np.arange(1000) % 2
    curve = decision_curve(y, rng.random(1000))
    assert (curve.model <= np.maximum(curve.treat_all, 0) + 0.03).all()


@pytest.mark.parametrize(
    ("y", "p", "words"),
    [([0], [1.2], "outside"), ([0, 1], [0.5], "one filled"), ([2], [0.5], "0 or 1"), ([], [], "filled")],
)
def test_what_is_no_probability_is_refused(y, p, words):
    with pytest.raises(ValueError, match=words):
        calibration(y, p)


def test_decision_thresholds_lie_inside_0_and_1():
    with pytest.raises(ValueError, match="between 0 and 1"):
        decision_curve([0, 1], [0.2, 0.3], [1.0])
