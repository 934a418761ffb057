"""Masks are pasted inside their own boxes only, at the voxel's centre."""

import pytest
import torch

from volseg.inference.paste import paste, paste_mask
from volseg.inference.window_detections import MergedDetections, WindowDetections


def one(box, mask, score=0.8):
    boxes = torch.tensor([box], dtype=torch.float32)
    none = torch.zeros(1, 6, dtype=torch.bool)
    found = WindowDetections(boxes, torch.tensor([score]), mask[None], none, torch.ones(1))
    return MergedDetections(boxes, torch.tensor([score]), (torch.tensor([0]),)), found


def test_a_full_mask_fills_exactly_its_box():
    pasted = paste_mask(torch.ones(4, 4, 4), torch.tensor([2.0, 3, 4, 6, 8, 10]), (0, 0, 0), (12, 12, 12))
    truth = torch.zeros(12, 12, 12)
    truth[2:6, 3:8, 4:10] = 1
    assert torch.equal(pasted, truth)


def test_a_mask_of_the_boxs_own_size_is_copied():
    mask = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(0))
    pasted = paste_mask(mask, torch.tensor([1.0, 2, 3, 6, 7, 8]), (1, 2, 3), (6, 7, 8))
    assert torch.allclose(pasted, mask, atol=1e-6)


def test_axes_are_not_mixed_up():
    mask = torch.zeros(4, 4, 4)
    mask[0] = 1  # low x only
    pasted = paste_mask(mask, torch.tensor([0.0, 0, 0, 4, 4, 4]), (0, 0, 0), (4, 4, 4))
    assert pasted[0].min() == 1 and pasted[1:].max() == 0


def test_the_outline_is_half_masks_and_half_semantic():
    semantic = torch.zeros(10, 10, 10)
    semantic[2:4] = 1.0
    merged, found = one([2, 2, 2, 6, 6, 6], torch.full((4, 4, 4), 0.6))
    pasted = paste(merged, found, semantic)
    assert pasted.probability[3, 3, 3] == pytest.approx(0.8)
    assert pasted.probability[5, 3, 3] == pytest.approx(0.3)
    assert pasted.owner[3, 3, 3] == 1 and pasted.owner[8, 8, 8] == 0
    assert float(pasted.probability[6:].max()) == 0, "nothing outside the box"


def test_a_lesion_without_a_sure_voxel_is_outlined_at_half_its_maximum():
    mask = torch.full((4, 4, 4), 0.1)
    mask[1:3, 1:3, 1:3] = 0.4
    merged, found = one([2, 2, 2, 6, 6, 6], mask)
    pasted = paste(merged, found, torch.zeros(10, 10, 10))
    assert int((pasted.probability >= 0.5).sum()) == 8


def two_overlapping(scores):
    boxes = torch.tensor([[0.0, 0, 0, 6, 4, 4], [4.0, 0, 0, 10, 4, 4]])
    masks = torch.stack([torch.full((4, 4, 4), 0.9), torch.full((4, 4, 4), 0.6)])
    found = WindowDetections(boxes, torch.tensor(scores), masks, torch.zeros(2, 6).bool(), torch.ones(2))
    return MergedDetections(boxes, torch.tensor(scores), (torch.tensor([0]), torch.tensor([1]))), found


def test_where_boxes_overlap_the_better_score_keeps_its_outline():
    merged, found = two_overlapping([0.7, 0.9])
    pasted = paste(merged, found, torch.ones(10, 4, 4))
    assert pasted.owner[:, 0, 0].tolist() == [1] * 4 + [2] * 6, "though the first is more probable there"
    # The score is the detection's times the mean semantic probability inside the outline.
    assert pasted.score[5, 0, 0] == pytest.approx(0.9) and pasted.score[3, 0, 0] == pytest.approx(0.7)


def test_outside_the_outlines_the_more_probable_lesion_owns_the_voxel():
    merged, found = two_overlapping([0.7, 0.9])
    semantic = torch.ones(10, 4, 4)
    semantic[4:6] = 0.0  # .30 of the better score against .45 of the other
    pasted = paste(merged, found, semantic)
    assert pasted.owner[:, 0, 0].tolist() == [1] * 6 + [2] * 4


def test_a_weak_detection_kept_or_not_changes_no_strong_one():
    merged, found = two_overlapping([0.2, 0.9])
    loose, strict = (paste(merged, found, torch.ones(10, 4, 4), least_score=least) for least in (0.0, 0.5))
    kept = strict.owner == 2
    assert torch.equal(loose.owner == 2, kept) and torch.equal(loose.probability[kept], strict.probability[kept])


def test_a_box_that_leaves_the_volume_is_cut_and_one_outside_leaves_nothing():
    merged, found = one([-3, -3, -3, 3, 3, 3], torch.ones(4, 4, 4))
    assert int((paste(merged, found, torch.ones(8, 8, 8)).owner > 0).sum()) == 27
    merged, found = one([9, 9, 9, 12, 12, 12], torch.ones(4, 4, 4))
    assert int((paste(merged, found, torch.ones(8, 8, 8)).owner > 0).sum()) == 0


def test_what_the_dense_branch_does_not_see_scores_low_and_the_least_score_drops_it():
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [6.0, 0, 0, 10, 4, 4]])
    masks = torch.stack([torch.full((4, 4, 4), 1.0), torch.full((4, 4, 4), 0.9)])
    found = WindowDetections(boxes, torch.tensor([0.5, 0.9]), masks, torch.zeros(2, 6).bool(), torch.ones(2))
    merged = MergedDetections(boxes, torch.tensor([0.5, 0.9]), (torch.tensor([0]), torch.tensor([1])))
    semantic = torch.cat([torch.ones(5, 4, 4), torch.full((5, 4, 4), 0.2)])
    pasted = paste(merged, found, semantic)
    assert pasted.score[1, 1, 1] == pytest.approx(0.5) and pasted.score[8, 1, 1] == pytest.approx(0.9 * 0.2)
    assert paste(merged, found, semantic, least_score=0.3).owner.unique().tolist() == [0, 1]
