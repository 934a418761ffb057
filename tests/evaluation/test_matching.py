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


def test_equal_scores_are_served_together_and_find_as_much_as_can_be_found():
    # The first could take either lesion, the second only the lower one: 0.3 + 0.5 is more than 0.5.
    ious = np.array([[0.5, 0.5], [0.3, 0.0]])
    assert match_by_score(ious, [0.9, 0.9], 0.1).tolist() == [1, 0]
    assert match_by_score(ious[:, ::-1], [0.9, 0.9], 0.1).tolist() == [0, 1]
    assert match_by_score(ious, [0.9, 0.8], 0.1).tolist() == [0, -1]  # COCO's rule between different scores
    # What a higher score took is not free any more.
    assert match_by_score(np.array([[0.2, 0.5, 0.5], [0.0, 0.3, 0.0]]), [0.95, 0.9, 0.9], 0.1).tolist() == [0, 1, -1]


def test_the_order_of_the_list_does_not_decide_how_many_of_one_score_hit(rng):
    # Few different IoUs: ties of every sort, such as one pair of .5 against two of .25.
    for _ in range(100):
        ious = rng.integers(0, 4, (4, 6)) / 4
        hits = [np.count_nonzero(match_by_score(ious[:, rng.permutation(6)], np.ones(6), 0.1) >= 0) for _ in range(5)]
        assert len(set(hits)) == 1


def test_the_order_of_the_list_decides_nothing_where_only_scores_are_equal(rng):
    for _ in range(50):
        ious, scores = rng.random((4, 6)) * (rng.random((4, 6)) < 0.6), rng.integers(0, 3, 6) / 2
        order = rng.permutation(6)
        shuffled = match_by_score(ious[:, order], scores[order], 0.1)
        assert shuffled.tolist() == match_by_score(ious, scores, 0.1)[order].tolist()


def test_of_equal_sums_the_one_of_more_pairs_is_taken():
    ious = np.array([[0.5, 0.25], [0.25, 0.0]])
    for turned in (ious, ious[:, ::-1], ious[::-1], ious[::-1, ::-1]):
        assert len(match_optimally(turned, 0.1)) == 2


def test_one_score_for_all_is_the_optimal_assignment_and_different_ones_are_cocos(rng):
    for _ in range(50):
        ious = rng.random((5, 8)) * (rng.random((5, 8)) < 0.5)
        matched = match_by_score(ious, np.ones(8), 0.1)
        assert sorted((int(t), p) for p, t in enumerate(matched) if t >= 0) == sorted(match_optimally(ious, 0.1))
        scores, free, plain = rng.permutation(8) / 8, ious.copy(), np.full(8, -1)
        for p in np.argsort(-scores):
            t = int(np.argmax(free[:, p]))
            if free[t, p] >= 0.1:
                plain[p], free[t] = t, 0
        assert match_by_score(ious, scores, 0.1).tolist() == plain.tolist()


def test_at_iou_0_any_overlap_counts_and_none_does_not():
    assert match_optimally(np.array([[0.001, 0.0]]), 0.0) == [(0, 0)]
    assert match_by_score(np.array([[0.0, 0.001]]), [0.9, 0.1], 0.0).tolist() == [-1, 0]


def test_scores_that_are_nan_or_too_few_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        match_by_score(np.ones((1, 2)), [0.5, np.nan], 0.1)
    with pytest.raises(ValueError, match="1 scores"):
        match_by_score(np.ones((1, 2)), [0.5], 0.1)
