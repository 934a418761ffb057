"""The dense branch's proposals: whole pieces, nested thresholds, best first."""

import pytest
import torch

from volseg.detection.semantic_proposals import semantic_proposals


def two_pieces() -> torch.Tensor:
    """A strong block, a weak one, and a strong speck of one voxel."""
    probability = torch.zeros(16, 16, 16)
    probability[2:6, 3:6, 4:9] = 0.9
    probability[9:13, 8:12, 1:5] = 0.3
    probability[15, 15, 15] = 1.0
    return probability


def test_every_piece_gets_its_box_at_every_threshold_it_reaches():
    boxes, scores = semantic_proposals(two_pieces(), thresholds=(0.25, 0.75))
    strong, weak = [2.0, 3, 4, 6, 6, 9], [9.0, 8, 1, 13, 12, 5]
    assert boxes.tolist() == [strong, strong, weak]
    assert scores.tolist() == pytest.approx([0.9, 0.9, 0.3])


def test_lesions_joined_at_a_low_threshold_come_apart_at_a_high_one():
    probability = torch.zeros(16, 16, 16)
    probability[2:14, 4:8, 4:8] = 0.4
    probability[2:6, 4:8, 4:8] = probability[10:14, 4:8, 4:8] = 0.9
    boxes, _ = semantic_proposals(probability, thresholds=(0.25, 0.75))
    assert sorted(boxes.tolist()) == [[2, 4, 4, 6, 8, 8], [2, 4, 4, 14, 8, 8], [10, 4, 4, 14, 8, 8]]


def test_voxels_that_touch_by_a_corner_are_one_piece():
    probability = torch.zeros(8, 8, 8)
    for i in range(5):
        probability[i, i, i] = 1.0
    assert semantic_proposals(probability, thresholds=(0.5,))[0].tolist() == [[0, 0, 0, 5, 5, 5]]


def test_the_best_are_kept_and_nothing_gives_nothing():
    boxes, scores = semantic_proposals(two_pieces(), thresholds=(0.25,), most=1)
    assert boxes.tolist() == [[2, 3, 4, 6, 6, 9]] and scores.tolist() == pytest.approx([0.9])
    boxes, scores = semantic_proposals(torch.zeros(8, 8, 8))
    assert boxes.shape == (0, 6) and scores.shape == (0,)
    assert semantic_proposals(two_pieces(), thresholds=())[0].shape == (0, 6)
