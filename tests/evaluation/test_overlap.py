"""Overlap: counted on paper, against MONAI, and at every kind of emptiness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_confusion_matrix_metric, compute_dice, compute_iou, get_confusion_matrix

from volseg.evaluation.overlap import Overlap, overlap, pooled

AFFINE = np.diag([-1.0, 1.5, 4.0, 1.0])  # 6 mm³


def row(start: int, stop: int) -> np.ndarray:
    out = np.zeros((1, 2, 20), np.uint16)
    out[0, 0, start:stop] = 3
    return out


def test_two_rods_counted_by_hand():
    case = overlap(row(2, 8), row(0, 6), AFFINE)
    assert case == Overlap(4, 2, 2, 32, 6.0)
    assert case.dice == pytest.approx(8 / 12) and case.iou == pytest.approx(4 / 8)
    assert case.sensitivity == pytest.approx(4 / 6) and case.precision == pytest.approx(4 / 6)
    assert case.specificity == pytest.approx(32 / 34)
    assert case.volume_difference_mm3 == 0 and case.false_positive_mm3 == 12
    assert overlap(row(0, 9), row(0, 6), AFFINE).volume_difference_mm3 == 18
    assert overlap(row(0, 9), row(0, 6), AFFINE).relative_volume_difference == pytest.approx(0.5)


def test_overlap_agrees_with_monai_on_random_masks(rng):
    predicted, truth = rng.random((2, 9, 8, 7)) < 0.4
    ours = overlap(predicted, truth, AFFINE)
    p, t = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (predicted, truth))
    assert ours.dice == pytest.approx(compute_dice(p, t).item())
    assert ours.iou == pytest.approx(compute_iou(p, t).item())
    counts = get_confusion_matrix(p, t)
    for name in ("sensitivity", "precision", "specificity"):
        assert getattr(ours, name) == pytest.approx(compute_confusion_matrix_metric(name, counts).item())


def test_what_emptiness_means():
    nothing, something = row(0, 0), row(0, 5)
    both = overlap(nothing, nothing, AFFINE)
    assert both.dice == 1 and both.iou == 1 and both.specificity == 1
    assert math.isnan(both.sensitivity) and math.isnan(both.precision) and math.isnan(both.relative_volume_difference)

    missed = overlap(nothing, something, AFFINE)
    assert missed.dice == 0 and missed.iou == 0 and missed.sensitivity == 0 and missed.precision == 0
    assert missed.relative_volume_difference == -1

    invented = overlap(something, nothing, AFFINE)
    assert invented.dice == 0 and invented.precision == 0 and math.isnan(invented.sensitivity)
    assert invented.false_positive_mm3 == 30 and invented.specificity == 35 / 40

    full = np.ones((2, 2, 2), bool)
    assert math.isnan(overlap(full, full, AFFINE).specificity)


def test_pooling_adds_voxels_so_that_the_large_case_dominates():
    small, large = Overlap(0, 0, 1, 9, 6.0), Overlap(99, 0, 0, 1, 6.0)
    assert pooled([small, large]).dice == pytest.approx(198 / 199)
    assert math.isnan(pooled([small, Overlap(1, 0, 0, 0, 2.0)]).true_mm3)
    with pytest.raises(ValueError, match="no case"):
        pooled([])


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        overlap(row(0, 1), np.zeros((1, 1, 20)), AFFINE)
