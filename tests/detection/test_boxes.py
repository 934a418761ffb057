"""Boxes are checked in words, clipped, coded, and taken to millimetres by all eight corners."""

import numpy as np
import pytest
import torch

from volseg.detection.boxes import ROI_CODE, check_boxes, clip_boxes, decode, encode, finite_rows, large_enough
from volseg.errors import InputError
from volseg.geometry import box_to_ras_mm

SHAPE = (20, 24, 28)


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ([5, 5, 5, 4, 9, 9], "boxes-reversed", "box 1"),
        ([5, 5, 5, 5, 9, 9], "boxes-reversed", "half-open"),
        ([5, 5, 5, float("nan"), 9, 9], "boxes-not-finite", "NaN"),
        ([20, 5, 5, 25, 9, 9], "boxes-outside", "(20, 24, 28)"),
        ([-9, 5, 5, 0, 9, 9], "boxes-outside", "box 1"),
    ],
)
def test_a_wrong_box_is_named_with_its_numbers(row, code, says):
    boxes = torch.tensor([[1, 1, 1, 2, 2, 2], row], dtype=torch.float32)
    with pytest.raises(InputError) as error:
        check_boxes(boxes, SHAPE, where="case 7")
    assert error.value.code == code
    assert "case 7" in str(error.value) and says in str(error.value)


def test_no_box_is_no_error_and_keeps_six_columns():
    assert check_boxes(torch.zeros(0), SHAPE).shape == (0, 6)
    assert check_boxes([], SHAPE).shape == (0, 6)


def test_four_columns_are_refused():
    with pytest.raises(InputError, match="xyzxyz"):
        check_boxes(torch.ones(2, 4), SHAPE)


def test_clipping_ends_at_the_border_and_a_sliver_is_too_small():
    clipped = clip_boxes(torch.tensor([[-3.0, 2, 2, 5, 30, 27.5], [19.5, 0, 0, 40, 5, 5]]), SHAPE)
    assert clipped.tolist() == [[0, 2, 2, 5, 24, 27.5], [19.5, 0, 0, 20, 5, 5]]
    assert large_enough(clipped).tolist() == [True, False]


def test_decoding_undoes_encoding():
    rng = torch.Generator().manual_seed(1)
    low = torch.rand(50, 3, generator=rng) * 10
    anchors = torch.cat([low, low + 1 + torch.rand(50, 3, generator=rng) * 9], dim=1)
    boxes = anchors + torch.cat([torch.rand(50, 3, generator=rng), 1 + torch.rand(50, 3, generator=rng)], dim=1)
    assert torch.allclose(decode(encode(boxes, anchors, ROI_CODE), anchors, ROI_CODE), boxes, atol=1e-4)


def test_a_box_on_an_anisotropic_grid_reaches_half_a_voxel_beyond_the_centers():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [10, 20, 30]
    # Voxels 1..2, 0..0, 5..5: centres at 12..14, 20, 50 mm.
    assert box_to_ras_mm([1, 0, 5, 3, 1, 6], affine) == pytest.approx([11, 18.5, 48, 15, 21.5, 52])


def test_an_oblique_box_holds_all_eight_corners():
    angle = np.pi / 4
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    box = box_to_ras_mm([0, 0, 0, 2, 2, 1], affine)
    # A square of 2 voxels turned by 45 degrees is 2 * sqrt(2) wide; two corners alone would give a width of 0.
    assert box[3] - box[0] == pytest.approx(2 * np.sqrt(2))
    assert box[4] - box[1] == pytest.approx(2 * np.sqrt(2))
    assert box[5] - box[2] == pytest.approx(1)


def test_a_row_is_finite_if_neither_its_scores_nor_its_codes_hold_nan_or_inf():
    scores, codes = torch.zeros(5, 1), torch.zeros(5, 6)
    scores[1] = float("nan")
    codes[2, 5], codes[3, 0] = float("inf"), float("nan")
    assert finite_rows(scores, codes).tolist() == [True, False, False, False, True]
    assert finite_rows(scores[:0], codes[:0]).shape == (0,)
