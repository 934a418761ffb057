"""Figures over many volumes: counted by hand; healthy and diseased apart; missed patients stay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.evaluation.cases import CaseResult, compare_case
from volseg.evaluation.detection import froc
from volseg.evaluation.estimate import wilson
from volseg.evaluation.lesion_summary import froc_band, froc_estimates, summarise_lesions
from volseg.evaluation.segmentation import patient_calls, summarise_segmentation

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def case(
    name: str,
    truth: list[tuple[int, int]],
    predicted: list[tuple[int, int, float]],
    *,
    patient: str | None = None,
    kinds: dict[int, str] | None = None,
) -> CaseResult:
    """A volume of rods along x: true (start, stop), predicted (start, stop, score)."""
    t, p = np.zeros((60, 1, 1), np.uint16), np.zeros((60, 1, 1), np.uint16)
    for n, (start, stop) in enumerate(truth, start=1):
        t[start:stop] = n
    for n, (start, stop, _) in enumerate(predicted, start=1):
        p[start:stop] = n
    scores = {n: score for n, (_, _, score) in enumerate(predicted, start=1)}
    return compare_case(p, t, AFFINE, case=name, patient=patient or name, scores=scores, kinds=kinds)


@pytest.fixture
def cohort() -> list[CaseResult]:
    return [
        case("a", [(0, 10), (20, 24)], [(0, 10, 0.9), (40, 44, 0.4)], kinds={1: "lytic", 2: "mixed"}),
        case("b", [(0, 40)], [(30, 40, 0.8)], kinds={1: "lytic"}),
        case("c", [(5, 10)], []),
        case("d", [], [(3, 6, 0.5)]),
        case("e", [], []),
    ]


def test_lesions_are_pooled_over_volumes_and_counted_by_hand(cohort, rng):
    summary = summarise_lesions(cohort, rng=rng, resamples=200)
    assert (summary.n_lesions, summary.n_volumes, summary.n_patients) == (4, 5, 5)
    assert summary.sensitivity[0.1].value == 2 / 4 and summary.sensitivity[0.3].value == 1 / 4
    assert summary.precision[0.1].value == 2 / 4 and summary.f1[0.3].value == 2 * 1 / (4 + 4)
    assert summary.false_positives[0.1].value == 2 / 5 and summary.false_positives[0.3].value == 3 / 5
    assert {name: (e.value, e.n) for name, e in summary.by_kind.items()} == {"lytic": (1.0, 2), "mixed": (0.0, 1)}
    assert {name: e.n for name, e in summary.by_size.items()} == {"< 10 mm": 2, "10 to 30 mm": 1, ">= 30 mm": 1}
    assert summary.by_size["10 to 30 mm"].value == 1.0
    assert summary.sensitivity[0.1].low <= 0.5 <= summary.sensitivity[0.1].high


def test_the_froc_of_the_summary_is_the_froc_of_detection(cohort, rng):
    expected = froc([c.detection() for c in cohort]).at
    estimates, mean = froc_estimates(cohort, rng=rng, resamples=200)
    assert {rate: e.value for rate, e in estimates.items()} == pytest.approx(expected)
    assert mean.value == pytest.approx(np.mean(list(expected.values())))
    assert all(e.low <= e.value <= e.high for e in estimates.values())
    value, low, high = froc_band(cohort, [0.1, 1.0], rng=rng, resamples=200)
    assert value[1] == expected[1.0] and (low <= value).all() and (value <= high).all()


def test_a_froc_that_finds_everything_is_not_certain(rng):
    perfect = [case(name, [(0, 5), (10, 15)], [(0, 5, 0.9), (10, 15, 0.8)]) for name in "abc"]
    estimates, mean = froc_estimates(perfect, rng=rng, resamples=50)
    assert estimates[1.0].value == mean.value == 1 and estimates[1.0].low == wilson(3, 3).low == mean.low


def half_found(name: str) -> CaseResult:
    return case(name, [(0, 5), (10, 15)], [(0, 5, 0.9)])


@pytest.mark.parametrize("false_marks", [[], [(3, 6, 0.95)]])
def test_a_froc_of_one_diseased_patient_has_no_interval(false_marks, rng):
    """The one is in every resample; what healthy patients add says nothing of other lesions."""
    healthy = [case(f"h{n}", [], false_marks if n % 2 else []) for n in range(5)]
    estimates, mean = froc_estimates([half_found("a"), *healthy], rng=rng, resamples=50)
    assert estimates[8.0].value == 0.5 and estimates[8.0].text() == "0.500" and math.isnan(estimates[8.0].high)
    assert math.isnan(mean.low) and math.isnan(mean.high)


def test_a_froc_that_is_the_same_in_all_patients_has_no_interval(rng):
    estimates, mean = froc_estimates([half_found("a"), half_found("b")], rng=rng, resamples=50)
    assert mean.value == 0.5 and math.isnan(mean.low) and math.isnan(estimates[1.0].low)
    value, low, _ = froc_band([half_found("a"), half_found("b")], [1.0], rng=rng, resamples=50)
    assert value[0] == 0.5 and math.isnan(low[0])


def test_a_resample_of_the_froc_is_the_froc_of_the_repeated_volumes(cohort):
    from volseg.evaluation.lesion_summary import _FrocOfRows

    rows = np.array([0, 0, 3, 1, 3])
    expected = froc([cohort[n].detection() for n in rows], rates=(0.2, 0.5, 1.0)).at
    assert _FrocOfRows(cohort, 0.1, np.array([0.2, 0.5, 1.0]))(rows).tolist() == pytest.approx(list(expected.values()))


def test_means_are_over_volumes_with_lesions_and_a_missed_one_counts(cohort, rng):
    summary = summarise_segmentation(cohort, rng=rng, resamples=200)
    assert (summary.n_positive, summary.n_negative) == (3, 2)
    assert summary.positive["dice"].value == pytest.approx((20 / 28 + 20 / 50 + 0) / 3)
    assert summary.positive["missed"].value == pytest.approx(1 / 3)
    assert summary.positive["precision_voxels"].value == pytest.approx((10 / 14 + 1 + 0) / 3)
    assert math.isfinite(summary.positive["hd95_mm"].value) and math.isinf(summary.positive["hd95_mm"].high)
    assert summary.positive["volume_bias_mm3"].value == pytest.approx((0 - 60 - 10) / 3)
    assert summary.negative["specificity"].value == 1 / 2
    assert summary.negative["false_positives"].value == 0.5 and summary.negative["false_positive_mm3"].value == 3.0


def test_when_most_volumes_are_missed_the_median_distance_is_infinite(rng):
    missed = [case(name, [(0, 5)], []) for name in "ab"] + [case("c", [(0, 5)], [(0, 5, 0.9)])]
    assert math.isinf(summarise_segmentation(missed, rng=rng, resamples=50).positive["hd95_mm"].value)
    assert math.isinf(summarise_segmentation(missed[1:], rng=rng, resamples=50).positive["hd95_mm"].value)


def test_a_patient_is_called_by_any_of_its_volumes(cohort):
    two = [case("x1", [(0, 5)], [], patient="x"), case("x2", [], [(8, 9, 0.7)], patient="x"), *cohort]
    names, truth, called, score = patient_calls(two)
    assert names.tolist() == ["a", "b", "c", "d", "e", "x"]
    assert truth.tolist() == [True, True, True, False, False, True]
    assert called.tolist() == [True, True, False, True, False, True]
    assert score.tolist() == [0.9, 0.8, 0, 0.5, 0, 0.7]


def test_patient_level_figures_by_hand(cohort, rng):
    patients = summarise_segmentation(cohort, rng=rng, resamples=50).patients
    assert patients["sensitivity"].value == 2 / 3 and patients["specificity"].value == 1 / 2
    assert patients["accuracy"].value == 3 / 5 and patients["accuracy"].n == 5
    assert patients["auc"].value == pytest.approx((2 + 2 + 0.5) / 6)


def test_a_cohort_without_healthy_or_without_diseased_volumes_says_so(cohort, rng):
    diseased = summarise_segmentation(cohort[:3], rng=rng, resamples=50)
    assert math.isnan(diseased.negative["specificity"].value) and diseased.negative["specificity"].n == 0
    assert math.isnan(diseased.patients["auc"].value)
    healthy = summarise_segmentation(cohort[3:], rng=rng, resamples=50)
    assert math.isnan(healthy.positive["dice"].value) and healthy.n_positive == 0
    lesions = summarise_lesions(cohort[3:], rng=rng, resamples=50)
    assert math.isnan(lesions.sensitivity[0.1].value) and math.isnan(lesions.froc[1.0].value)
    assert lesions.false_positives[0.1].value == 0.5
    with pytest.raises(ValueError, match="no case"):
        summarise_segmentation([], rng=rng)
