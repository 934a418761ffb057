"""ROC, DeLong, decisions: by hand, against scikit-learn, statsmodels and confidenceinterval, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from volseg.evaluation.classification import (
    Decisions,
    auc,
    average_precision_score,
    clustered_metrics,
    compare_aucs,
    decide,
    mcnemar,
    precision_recall_curve,
    roc_band,
    roc_curve,
    youden_threshold,
)
from volseg.evaluation.estimate import clopper_pearson, wilson


def sample(rng: np.random.Generator, n: int = 60, *, shift: float = 1.2, ties: bool = True):
    labels = np.arange(n) % 2
    scores = rng.normal(size=n) + shift * labels
    return labels, np.round(scores, 1) if ties else scores


def test_an_auc_counted_by_hand():
    # Positives .8 .5, negatives .5 .1: of four pairs three are right and one is a tie.
    estimate = auc([1, 1, 0, 0], [0.8, 0.5, 0.5, 0.1])
    assert estimate.value == 3.5 / 4 and estimate.n == 4
    # Components: positives (1, .75), negatives (.75, 1): variance (1/32 + 1/32) / 2 = 1/32.
    assert estimate.low == pytest.approx(3.5 / 4 - 1.959964 / math.sqrt(32)) and estimate.high == 1.0


def test_the_auc_is_the_mann_whitney_statistic(rng):
    labels, scores = sample(rng)
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    assert auc(labels, scores).value == pytest.approx(u / 30**2)


def test_delongs_variance_agrees_with_the_definition_in_pairs(rng):
    labels, scores = sample(rng, 24)
    better = (scores[labels == 1][:, None] > scores[labels == 0][None]) + 0.5 * (
        scores[labels == 1][:, None] == scores[labels == 0][None]
    )
    variance = np.var(better.mean(axis=1), ddof=1) / 12 + np.var(better.mean(axis=0), ddof=1) / 12
    estimate = auc(labels, scores)
    assert estimate.value - estimate.low == pytest.approx(1.959964 * math.sqrt(variance))


def test_the_interval_agrees_with_the_package_confidenceinterval(rng):
    oracle = pytest.importorskip("confidenceinterval.delong", reason="confidenceinterval is not installed")
    labels, scores = sample(rng, 80)
    area, variance = oracle.delong_roc_variance(labels, scores.astype(float))
    ours = auc(labels, scores)
    assert ours.value == pytest.approx(area)
    assert (ours.high - ours.low) / 2 == pytest.approx(1.959964 * math.sqrt(float(variance)))


def test_curves_and_areas_agree_with_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    labels, scores = sample(rng)
    false, found, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    ours = roc_curve(labels, scores)
    assert np.allclose(ours.false_positive_rate, false) and np.allclose(ours.sensitivity, found)
    assert np.allclose(ours.thresholds, thresholds)
    assert auc(labels, scores).value == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert average_precision_score(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))


def test_precision_and_recall_by_hand():
    recall, precision = precision_recall_curve([1, 0, 1], [0.9, 0.8, 0.7])
    assert recall.tolist() == [0.5, 0.5, 1.0] and np.allclose(precision, [1, 1 / 2, 2 / 3])
    assert average_precision_score([1, 0, 1], [0.9, 0.8, 0.7]) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_one_row_per_patient_is_delong_and_repeated_rows_do_not_pretend_to_be_new_patients(rng):
    labels, scores = sample(rng)
    plain, alone = auc(labels, scores), auc(labels, scores, patients=np.arange(60))
    assert (plain.low, plain.high) == pytest.approx((alone.low, alone.high))
    tripled = auc(np.repeat(labels, 3), np.repeat(scores, 3), patients=np.repeat(np.arange(60), 3))
    naive = auc(np.repeat(labels, 3), np.repeat(scores, 3))
    assert (tripled.low, tripled.high) == pytest.approx((plain.low, plain.high))
    assert naive.high - naive.low < 0.65 * (plain.high - plain.low)


def test_the_clustered_variance_agrees_with_the_jackknife_where_a_patient_has_both_classes(rng):
    patients = np.repeat(np.arange(200), 4)
    labels = np.tile([0, 1], 400)
    scores = rng.normal(size=800) + labels + 1.5 * rng.normal(size=200)[patients]
    estimate = auc(labels, scores, patients=patients)
    left_out = [auc(labels[patients != p], scores[patients != p]).value for p in range(200)]
    jackknife = math.sqrt(199**2 / 200 * np.var(left_out, ddof=0) * 200 / 199)
    assert (estimate.high - estimate.low) / 2 / 1.959964 == pytest.approx(jackknife, rel=0.02)


def test_perfect_separation_still_has_an_interval_with_width():
    perfect = auc([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.9])
    assert perfect.value == 1 and perfect.low == pytest.approx(wilson(2, 2).low) and perfect.high == 1
    assert auc([1, 0], [0.1, 0.9]).value == 0


def test_scores_that_are_all_alike_have_an_area_of_a_half_and_no_interval():
    for patients in (None, ["a", "a", "b", "c", "d", "e"]):
        same = auc([1, 1, 1, 0, 0, 0], [0.0] * 6, patients=patients)
        assert same.value == 0.5 and math.isnan(same.low) and math.isnan(same.high) and same.text() == "0.500"
        assert same.method.endswith("variance 0")


def test_one_class_has_no_auc_and_no_roc():
    assert math.isnan(auc([1, 1], [0.1, 0.2]).value) and auc([1, 1], [0.1, 0.2]).n == 2
    assert math.isnan(auc([], []).value)
    with pytest.raises(ValueError, match="both classes; 2 of 2"):
        roc_curve([1, 1], [0.1, 0.2])


@pytest.mark.parametrize("scale", ["plain", "logit"])
def test_delongs_interval_covers_the_truth_about_19_times_in_20(scale):
    rng = np.random.default_rng(5)
    truth = stats.norm.cdf(1.2 / math.sqrt(2))
    covered = 0
    for _ in range(1000):
        estimate = auc(*sample(rng, 80, ties=False), scale=scale)
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_paired_test_agrees_with_the_difference_of_components_by_hand(rng):
    labels, first = sample(rng, 50)
    second = first + rng.normal(0, 0.5, 50)
    result = compare_aucs(labels, first, second)
    parts = []
    for scores in (first, second):
        wins = np.sign(scores[labels == 1][:, None] - scores[labels == 0][None]) / 2 + 0.5
        parts.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = sum(np.var(parts[0][n] - parts[1][n], ddof=1) / 25 for n in (0, 1))
    z = result.estimate.value / math.sqrt(variance)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert result.estimate.value == pytest.approx(auc(labels, first).value - auc(labels, second).value)


def test_the_paired_test_rejects_equals_1_time_in_20_and_reports_1_for_the_same_ranking():
    rng = np.random.default_rng(8)
    rejected = 0
    for _ in range(600):
        labels = np.arange(80) % 2
        signal = labels + rng.normal(size=80)
        rejected += compare_aucs(labels, signal + rng.normal(size=80), signal + rng.normal(size=80)).p_value < 0.05
    assert 0.03 <= rejected / 600 <= 0.075
    same = compare_aucs([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4])
    assert same.p_value == 1.0 and same.estimate.value == 0
    assert math.isnan(same.estimate.low) and math.isnan(same.estimate.high)
    # Perfect against all alike: .5 apart, but no variance to say how surely.
    apart = compare_aucs([1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2], [0.5] * 4)
    assert apart.estimate.value == 0.5 and math.isnan(apart.estimate.low) and math.isnan(apart.p_value)
    assert math.isnan(compare_aucs([1, 1], [0.1, 0.2], [0.3, 0.4]).p_value)


def test_youdens_threshold_lies_between_two_scores():
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.4, 0.6, 0.9]) == pytest.approx(0.5)
    assert youden_threshold([1, 0], [0.2, 0.8]) == pytest.approx(0.2)  # worse than chance: everybody is called


def test_decisions_counted_by_hand_keep_the_undecided_in_the_denominators():
    labels = [1, 1, 1, 1, 0, 0, 0, 1, 0]
    scores = [0.9, 0.5, 0.4, 0.8, 0.6, 0.1, 0.2, math.nan, math.nan]
    decisions = decide(labels, scores, 0.5)
    assert decisions == Decisions(3, 1, 1, 2, 1, 1)
    metrics = decisions.metrics()
    assert {name: (m.value, m.n) for name, m in metrics.items()} == {
        "sensitivity": (3 / 5, 5),
        "specificity": (2 / 4, 4),
        "accuracy": (5 / 9, 9),
        "ppv": (3 / 4, 4),
        "npv": (2 / 3, 3),
    }
    assert metrics["sensitivity"] == wilson(3, 5)
    assert decisions.metrics(clopper_pearson)["sensitivity"] == clopper_pearson(3, 5)


def test_a_class_that_is_absent_leaves_its_metric_undefined():
    metrics = decide([1, 1], [0.9, 0.1], 0.5).metrics()
    assert math.isnan(metrics["specificity"].value) and metrics["specificity"].n == 0
    assert metrics["sensitivity"].value == 0.5


def test_clustered_metrics_have_the_values_of_independent_ones_and_wider_intervals(rng):
    patients = np.repeat(np.arange(30), 6)
    labels = np.repeat(np.arange(30) % 2, 6)
    scores = np.clip(np.repeat(rng.normal(0.4, 0.3, 30), 6) + 0.2 * labels, 0, 1)
    scores[::17] = math.nan
    clustered = clustered_metrics(labels, scores, 0.5, patients, rng=rng, resamples=300)
    independent = decide(labels, scores, 0.5).metrics(unit="lesions")
    for name, estimate in independent.items():
        assert clustered[name].value == pytest.approx(estimate.value) and clustered[name].n == estimate.n
    width = {n: (clustered[n].high - clustered[n].low) / (e.high - e.low) for n, e in independent.items()}
    assert width["accuracy"] > 1.7


def test_mcnemar_is_a_coin_toss_on_the_rows_that_differ():
    first = [True] * 6 + [False] * 1 + [True] * 5
    second = [False] * 6 + [True] * 1 + [True] * 5
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (6, 1)
    assert result.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar([True], [True]).p_value == 1.0
    with pytest.raises(ValueError, match="not the same rows"):
        mcnemar([True], [True, False])


def test_mcnemar_agrees_with_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables", reason="statsmodels is not installed")
    ours = mcnemar([True] * 9 + [False] * 3, [False] * 9 + [True] * 3)
    assert ours.p_value == pytest.approx(tables.mcnemar([[0, 9], [3, 0]], exact=True).pvalue)


def test_the_roc_band_holds_the_curve_and_narrows_with_patients(rng):
    at = np.array([0.1, 0.3, 0.6])
    widths = []
    for n in (60, 600):
        labels, scores = sample(rng, n, ties=False)
        low, high = roc_band(labels, scores, rng=rng, at=at, resamples=200)
        curve = roc_curve(labels, scores).sensitivity_at(at)
        assert ((low <= curve) & (curve <= high)).all()
        widths.append((high - low).mean())
    assert widths[1] < 0.5 * widths[0]
    labels, scores = sample(rng, 40)
    low, _ = roc_band(labels, scores, rng=rng, at=at, patients=np.arange(40) // 4, resamples=100)
    assert np.isfinite(low).all()


def test_a_roc_read_at_a_step_gives_the_upper_end_and_between_corners_the_line():
    curve = roc_curve([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6])
    assert curve.sensitivity_at([0.0, 0.25, 0.5, 1.0]).tolist() == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [([0, 2], [0.1, 0.2], "0 or 1"), ([0, 1], [0.1, math.nan], "NaN"), ([0, 1], [0.1], "same length")],
)
def test_rows_that_cannot_be_scored_are_refused(labels, scores, words):
    with pytest.raises(ValueError, match=words):
        auc(labels, scores)
