"""Who hit whom: boxes and instance maps that can be counted on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.box_utils import box_iou

from volseg.evaluation.matching import box_ious, centers_in_boxes, instance_ious, match_by_score, match_optimally


def test_two_boxes_that_share_half_of_each_have_an_iou_of_a_third():
    assert box_ious([[0, 0, 0, 4, 2, 2]], [[2, 0, 0, 6, 2, 2]]).tolist() == [[8 / 24]]


def test_box_ious_agree_with_monai(rng):
    starts = rng.integers(0, 20, (2, 30, 3))
    boxes = np.concatenate([starts, starts + rng.integers(1, 15, (2, 30, 3))], axis=2).astype(float)
    theirs = box_iou(torch.from_numpy(boxes[1]), torch.from_numpy(boxes[0])).numpy()
    assert np.allclose(box_ious(boxes[0], boxes[1]), theirs)


def test_instance_ious_of_block_masks_are_the_ious_of_their_boxes(rng):
    predicted, truth = np.zeros((30, 9, 9), np.uint16), np.zeros((30, 9, 9), np.uint16)
    predicted[0:10, 1:5, 2:9], predicted[15:22, 0:9, 0:9] = 40, 3
    truth[4:12, 2:7, 0:6], truth[20:30, 3:6, 3:6] = 7, 9
    true_ids, predicted_ids, ious = instance_ious(predicted, truth)
    assert true_ids.tolist() == [7, 9] and predicted_ids.tolist() == [3, 40]
    boxes = box_ious([[15, 0, 0, 22, 9, 9], [0, 1, 2, 10, 5, 9]], [[4, 2, 0, 12, 7, 6], [20, 3, 3, 30, 6, 6]])
    assert np.allclose(ious, boxes)


@pytest.mark.parametrize("bad", [[[4, 0, 0, 2, 2, 2]], [[0, 0, 0, 1, 1, np.nan]], [[0, 0, 0, 1, 1, 0]], [[0, 0, 1, 1]]])
def test_reversed_flat_and_unfinished_boxes_are_refused_by_name(bad):
    with pytest.raises(ValueError, match="true box"):
        box_ious([[0, 0, 0, 1, 1, 1]], bad)


def test_no_boxes_on_either_side_give_an_empty_matrix():
    assert box_ious([], [[0, 0, 0, 1, 1, 1]]).shape == (1, 0)
    assert box_ious([[0, 0, 0, 1, 1, 1]], []).shape == (0, 1)
    assert match_by_score(np.zeros((0, 2)), [0.5, 0.6], 0.1).tolist() == [-1, -1]


def test_a_center_on_the_far_face_lies_outside_a_half_open_box():
    inside = centers_in_boxes([[0, 0, 0], [1.9, 1.9, 1.9], [2, 1, 1]], [[0, 0, 0, 2, 2, 2]])
    assert inside.tolist() == [[1, 1, 0]]


def test_the_higher_score_takes_the_lesion_even_if_the_lower_overlaps_more():
    ious = np.array([[0.3, 0.9]])
    assert match_by_score(ious, [0.8, 0.7], 0.1).tolist() == [0, -1]
    assert match_optimally(ious, 0.1) == [(0, 1)]


def test_each_prediction_takes_the_free_lesion_it_covers_best():
    ious = np.array([[0.6, 0.5], [0.2, 0.3]])
    assert match_by_score(ious, [0.9, 0.8], 0.1).tolist() == [0, 1]
    assert match_by_score(ious, [0.9, 0.8], 0.4).tolist() == [0, -1]


def test_equal_scores_do_not_depend_on_the_order_of_listing():
    ious = np.array([[0.2, 0.7, 0.4]])
    assert match_by_score(ious, [0.5, 0.5, 0.5], 0.1).tolist() == [-1, 0, -1]
    assert match_by_score(ious[:, ::-1], [0.5, 0.5, 0.5], 0.1).tolist() == [-1, 0, -1]


def test_at_iou_0_any_overlap_counts_and_none_does_not():
    assert match_optimally(np.array([[0.001, 0.0]]), 0.0) == [(0, 0)]
    assert match_by_score(np.array([[0.0, 0.001]]), [0.9, 0.1], 0.0).tolist() == [-1, 0]


def test_scores_that_are_nan_or_too_few_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        match_by_score(np.ones((1, 2)), [0.5, np.nan], 0.1)
    with pytest.raises(ValueError, match="1 scores"):
        match_by_score(np.ones((1, 2)), [0.5], 0.1)
