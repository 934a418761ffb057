"""Figures of slices: lesion only against class means, counted on paper; pooled against per patient."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.evaluation.overlap import Overlap
from volseg.evaluation.slices import (
    CLASS_MEANS,
    REGION,
    SliceResult,
    background,
    compare_slice,
    summarise_slices,
)

# 10 x 10 pixels; 6 are lesion, 4 of them found, 2 marked in vain: TP 4, FP 2, FN 2, TN 92.
HAND = Overlap(4, 2, 2, 92, math.nan)


def masks() -> tuple[np.ndarray, np.ndarray]:
    predicted, truth = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    predicted[0, 2:8] = True
    truth[0, 0:6] = True
    return predicted, truth


def test_a_slice_counted_by_hand():
    counted = compare_slice(*masks())
    assert (counted.true_positive, counted.false_positive, counted.false_negative, counted.true_negative) == (
        4,
        2,
        2,
        92,
    )
    assert math.isnan(counted.voxel_mm3)


def test_lesion_figures_by_hand():
    assert REGION["iou"](HAND) == pytest.approx(4 / 8)
    assert REGION["dice"](HAND) == pytest.approx(8 / 12)
    assert REGION["sensitivity"](HAND) == REGION["precision"](HAND) == pytest.approx(4 / 6)


def test_class_means_by_hand():
    assert CLASS_MEANS["miou"](HAND) == pytest.approx((4 / 8 + 92 / 96) / 2)
    assert CLASS_MEANS["mdice"](HAND) == pytest.approx((8 / 12 + 184 / 188) / 2)
    assert CLASS_MEANS["mpa"](HAND) == pytest.approx((4 / 6 + 92 / 94) / 2)
    assert CLASS_MEANS["mprecision"](HAND) == pytest.approx((4 / 6 + 92 / 94) / 2)


def test_mpa_is_over_classes_of_what_was_found_and_mprecision_of_what_was_marked():
    # All 2 lesion pixels found, 3 more marked, 5 left: PA of lesion 2/2, of background 5/8; precision 2/5 and 5/5.
    case = Overlap(2, 3, 0, 5, math.nan)
    assert CLASS_MEANS["mpa"](case) == pytest.approx((1 + 5 / 8) / 2)
    assert CLASS_MEANS["mprecision"](case) == pytest.approx((2 / 5 + 1) / 2)
    # Neither pixel accuracy (7/10) nor a mean over pixels:
    assert CLASS_MEANS["mpa"](case) != pytest.approx(7 / 10)


@pytest.mark.parametrize("counts", [(4, 2, 2, 92), (1, 0, 9, 0), (50, 7, 1, 3), (0, 5, 5, 5), (9, 0, 0, 1)])
def test_dice_is_2_iou_over_1_plus_iou_for_one_class(counts):
    case = Overlap(*counts, math.nan)
    for one in (case, background(case)):
        assert one.dice == pytest.approx(2 * one.iou / (1 + one.iou))


def test_the_identity_fails_for_class_means():
    miou, mdice = CLASS_MEANS["miou"](HAND), CLASS_MEANS["mdice"](HAND)
    assert 2 * miou / (1 + miou) - mdice == pytest.approx(2 * 0.729167 / 1.729167 - 0.822695, abs=1e-5)
    assert abs(2 * miou / (1 + miou) - mdice) > 0.02


def test_the_identity_tells_the_published_families_apart():
    def implied(iou: float) -> float:
        return 2 * iou / (1 + iou / 100)

    assert implied(83.60) == pytest.approx(91.07, abs=0.01)  # BMSMM-Net: lesion only
    assert implied(90.78) == pytest.approx(95.17, abs=0.01)
    assert implied(83.97) - 90.50 > 0.7  # MFP-DeepLabv3+: class means
    # What they imply for the lesion where background is nearly all right (IoU 99.9, Dice 99.95): about 68 and 81.
    lesion_iou, lesion_dice = 2 * 83.97 - 99.9, 2 * 90.50 - 99.95
    assert lesion_iou == pytest.approx(68, abs=0.1) and implied(lesion_iou) == pytest.approx(lesion_dice, abs=0.2)


def test_class_means_are_high_even_for_a_mask_that_finds_nothing():
    missed = Overlap(0, 0, 100, 9900, math.nan)
    assert REGION["iou"](missed) == 0 and CLASS_MEANS["miou"](missed) == pytest.approx(0.495)
    assert CLASS_MEANS["mpa"](missed) == pytest.approx(0.5)


def two_patients() -> list[SliceResult]:
    """Patient a: 90 of 100 found in two slices. Patient b: 1 of 10. Patient c: no lesion, 5 pixels in vain."""
    return [
        SliceResult("a1", "a", Overlap(80, 0, 0, 20, math.nan), Overlap(90, 10, 0, 0, math.nan)),
        SliceResult("a2", "a", Overlap(10, 0, 10, 80, math.nan), Overlap(90, 0, 10, 0, math.nan)),
        SliceResult("b1", "b", Overlap(1, 0, 9, 90, math.nan), Overlap(50, 0, 50, 0, math.nan)),
        SliceResult("c1", "c", Overlap(0, 5, 0, 95, math.nan), Overlap(100, 0, 0, 0, math.nan)),
    ]


def test_pooled_and_per_patient_by_hand(rng):
    summary = summarise_slices(two_patients(), rng=rng, resamples=200)
    assert (summary.n_slices, summary.n_patients, summary.without_lesion) == (4, 3, 1)
    pooled, each = summary.figures["lesion", "pooled"], summary.figures["lesion", "per patient"]
    assert pooled["iou"].value == pytest.approx(91 / (91 + 5 + 19)) and pooled["iou"].n == 3
    assert each["iou"].value == pytest.approx((90 / 100 + 1 / 10) / 2) and each["iou"].n == 2
    assert each["dice"].value == pytest.approx((180 / 190 + 2 / 11) / 2)
    means = summary.figures["class-mean", "pooled"]
    assert means["miou"].value == pytest.approx((91 / 115 + 285 / (285 + 24)) / 2)
    bone = summary.figures["bone", "per patient"]
    assert bone["iou"].value == pytest.approx((180 / 200 + 50 / 100 + 1) / 3)


def test_intervals_draw_patients_and_not_slices(rng):
    # Forty slices of one patient are one observation: nothing can be said about others.
    slices = [SliceResult(f"a{n}", "a", Overlap(n, 1, 1, 50, math.nan)) for n in range(1, 41)]
    alone = summarise_slices(slices, rng=rng).figures["lesion", "pooled"]["dice"]
    assert alone.n == 1 and math.isnan(alone.low)
    two = summarise_slices(two_patients(), rng=rng, resamples=500).figures["lesion", "pooled"]["iou"]
    assert two.low < two.value < two.high and two.high == pytest.approx(90 / 100)


def test_without_patients_there_is_no_interval_and_nothing_per_patient(rng):
    nobody = [SliceResult(r.name, "", r.lesion) for r in two_patients()]
    summary = summarise_slices(nobody, rng=rng)
    pooled = summary.figures["lesion", "pooled"]["iou"]
    assert pooled.value == pytest.approx(91 / 115) and math.isnan(pooled.low) and "unknown" in pooled.method
    assert math.isnan(summary.figures["lesion", "per patient"]["iou"].value)
    assert ("bone", "pooled") not in summary.figures


def test_a_slice_that_comes_twice_is_refused(rng):
    with pytest.raises(ValueError, match="'a1' comes 2 times"):
        summarise_slices([*two_patients(), two_patients()[0]], rng=rng)
    with pytest.raises(ValueError, match="no slice"):
        summarise_slices([], rng=rng)
    with pytest.raises(ValueError, match="differ in shape"):
        compare_slice(np.zeros((2, 3)), np.zeros((3, 2)))
