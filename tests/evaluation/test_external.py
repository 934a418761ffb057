"""Train at one site, test at another: the threshold stays frozen, leaks are refused, the undecided stay in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from volseg.evaluation.classification import auc, youden_threshold
from volseg.evaluation.external import Predictions, compare, freeze, performance, subgroups, validate


@pytest.fixture
def patients(rng) -> Predictions:
    """60 patients of site B, 40 of site A, where every score is .1 lower: the frozen threshold is wrong there."""
    labels = np.arange(100) % 2
    sites = np.array(["B"] * 60 + ["A"] * 40)
    scores = np.clip(0.35 + 0.3 * labels + rng.normal(0, 0.15, 100) - 0.1 * (sites == "A"), 0.01, 0.99)
    scanners = np.array(["one", "two"])[np.arange(100) // 2 % 2]
    return Predictions(np.array([f"p{n}" for n in range(100)]), labels, scores, sites, groups={"scanner": scanners})


def test_the_threshold_comes_from_the_training_site_alone(patients):
    rule = freeze(patients, site="B", weights_sha256="ab")
    b = patients.sites == "B"
    assert rule.threshold == youden_threshold(patients.labels[b], patients.scores[b])
    assert (rule.n_rows, rule.n_positive, rule.site) == (60, 30, "B")
    shifted = replace(patients, scores=np.where(b, patients.scores, 0.99))
    assert freeze(shifted, site="B", weights_sha256="ab").sha256 == rule.sha256


def test_any_change_of_rule_or_weights_changes_the_hash(patients):
    rule = freeze(patients, site="B", weights_sha256="ab")
    assert len({rule.sha256, replace(rule, threshold=0.6).sha256, replace(rule, weights_sha256="cd").sha256}) == 3


def test_the_test_site_is_judged_at_the_frozen_threshold(patients, rng):
    result = validate(patients, freeze(patients, site="B"), test_site="A", rng=rng)
    at_a = patients.at_site("A")
    called = at_a.scores >= result.rule.threshold
    assert result.test.metrics["sensitivity"].value == called[at_a.labels == 1].mean()
    assert result.test.metrics["auc"].value == pytest.approx(auc(at_a.labels, at_a.scores).value)
    assert (result.training.n_patients, result.test.n_patients, result.test.n_positive) == (60, 40, 20)
    # The shift costs sensitivity and is seen in the calibration, while the ranking suffers little.
    assert result.test.metrics["sensitivity"].value < result.training.metrics["sensitivity"].value
    assert result.test.calibration is not None and result.training.calibration is not None
    assert result.test.calibration.in_the_large.value > result.training.calibration.in_the_large.value


def test_subgroups_split_the_test_site_and_sites_split_everything(patients, rng):
    result = validate(patients, freeze(patients, site="B"), test_site="A", rng=rng)
    assert [(s.variable, s.value, s.performance.n_rows) for s in result.subgroups] == [
        ("scanner", "one", 20),
        ("scanner", "two", 20),
    ]
    sites = subgroups(patients, 0.5, ["site"], rng=rng)
    assert [(s.value, s.performance.n_rows) for s in sites] == [("A", 40), ("B", 60)]


def test_a_patient_at_both_sites_is_a_leak(patients, rng):
    lesions = replace(patients, level="lesion", patients=np.where(patients.patients == "p99", "p0", patients.patients))
    with pytest.raises(ValueError, match="1 patients are at both sites, among them p0"):
        validate(lesions, freeze(lesions, site="B"), test_site="A", rng=rng)


def test_what_is_no_external_validation_is_refused(patients, rng):
    rule = freeze(patients, site="B")
    with pytest.raises(ValueError, match="is the training site"):
        validate(patients, rule, test_site="B", rng=rng)
    with pytest.raises(ValueError, match="no patient of site C; there are: A, B"):
        validate(patients, rule, test_site="C", rng=rng)
    with pytest.raises(ValueError, match="frozen at patient level"):
        validate(replace(patients, level="lesion"), rule, test_site="A", rng=rng)


def test_patients_without_an_answer_stay_in_the_table(patients, rng):
    silent = patients.scores.copy()
    silent[[61, 62]] = math.nan  # one of each class, at site A
    result = validate(replace(patients, scores=silent), freeze(patients, site="B"), test_site="A", rng=rng).test
    assert result.n_undecided == 2 and result.metrics["sensitivity"].n == 20 and result.metrics["accuracy"].n == 40
    assert result.metrics["auc"].n == 38 and result.decisions.undecided_positive == 1


def test_lesions_get_intervals_over_patients(rng):
    who = np.repeat([f"p{n}" for n in range(20)], 10)
    labels = np.repeat(np.arange(20) % 2, 10)
    scores = np.repeat(np.clip(rng.normal(0.4, 0.2, 20), 0.01, 0.89), 10) + 0.1 * labels
    lesions = Predictions(who, labels, scores, np.full(200, "A"), level="lesion")
    independent = replace(lesions, patients=np.array([f"q{n}" for n in range(200)]), level="patient")
    ours, naive = (performance(p, 0.5, rng=rng, resamples=200) for p in (lesions, independent))
    assert ours.n_patients == 20 and ours.metrics["sensitivity"].unit == "lesions"
    for name in ("auc", "sensitivity", "accuracy"):
        assert ours.metrics[name].value == pytest.approx(naive.metrics[name].value)
        width, naive_width = (m.metrics[name].high - m.metrics[name].low for m in (ours, naive))
        assert width > 1.8 * naive_width
    assert ours.calibration is not None and naive.calibration is not None
    for one, other in (
        (ours.calibration.slope, naive.calibration.slope),
        (ours.calibration.in_the_large, naive.calibration.in_the_large),
    ):
        assert one.value == other.value and one.high - one.low > 1.8 * (other.high - other.low)
        assert "over 20 patients" in one.method and "patients" not in other.method


def test_logits_have_no_calibration_but_everything_else(patients, rng):
    result = performance(replace(patients, scores=patients.scores * 10 - 5), 0.0, rng=rng)
    assert result.calibration is None and 0.5 < result.metrics["auc"].value < 1


def test_scores_that_are_called_no_probabilities_have_no_calibration_whatever_their_range(patients, rng):
    ranks = replace(patients, probabilities=False)
    assert performance(patients, 0.5, rng=rng).calibration is not None
    some = ranks.at_site("A").joined(patients.at_site("B"))
    assert not some.probabilities and patients.at_site("A").probabilities
    result = performance(some, 0.5, rng=rng)
    assert result.calibration is None and 0.5 < result.metrics["auc"].value < 1


def test_two_models_are_compared_on_the_same_patients(patients, rng):
    worse = replace(patients, scores=np.clip(patients.scores + rng.normal(0, 0.4, 100), 0, 1))
    result = compare(patients, worse, (0.5, 0.5), rng=rng, resamples=500)
    assert result.auc.estimate.value > 0 and result.auc.p_value < 0.01
    assert result.accuracy.estimate.low > 0
    assert result.mcnemar is not None and result.mcnemar.only_first > result.mcnemar.only_second
    assert compare(replace(patients, level="lesion"), replace(worse, level="lesion"), (0.5, 0.5), rng=rng, resamples=50
                   ).mcnemar is None  # fmt: skip
    with pytest.raises(ValueError, match="same rows"):
        compare(patients, worse.where(np.arange(100) < 99), (0.5, 0.5), rng=rng)


def test_rows_that_do_not_fit_together_are_refused():
    one = np.array(["p"])
    with pytest.raises(ValueError, match="2 scores for 1 rows"):
        Predictions(one, np.array([1]), np.array([0.1, 0.2]), one)
    with pytest.raises(ValueError, match="patient p has more than one row"):
        Predictions(np.array(["p", "p"]), np.array([1, 1]), np.array([0.1, 0.2]), np.array(["A", "A"]))
