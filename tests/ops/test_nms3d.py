"""Box overlap, suppression and clustering: against numbers made by hand, MONAI's loop and the plain twin."""

from __future__ import annotations

import pytest
import torch
from monai.data.box_utils import box_iou as monai_box_iou
from monai.data.box_utils import non_max_suppression

from volseg.ops import nms3d as module
from volseg.ops.nms3d import (
    box_intersection,
    box_iou,
    box_volume,
    nms3d,
    nms3d_reference,
    weighted_box_clustering,
)

# 4 x 4 x 4, the same one moved by half its length along x, one inside the first, and one far away.
FOUR = torch.tensor([[0, 0, 0, 4, 4, 4], [2, 0, 0, 6, 4, 4], [1, 1, 1, 2, 3, 4], [9, 9, 9, 11, 10, 10]]).float()


def proposals(n: int, lesions: int, seed: int, *, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """n boxes jittered around a few lesions in 96 x 80 x 64 voxels; scores of two digits, so that many are equal."""
    g = torch.Generator().manual_seed(seed)
    centers = torch.rand(lesions, 3, generator=g) * torch.tensor([96.0, 80.0, 64.0])
    sizes = 4 + 20 * torch.rand(lesions, 3, generator=g)
    which = torch.randint(lesions, (n,), generator=g)
    center = centers[which] + 3 * torch.randn(n, 3, generator=g)
    half = sizes[which] * (0.7 + 0.6 * torch.rand(n, 3, generator=g)) / 2
    boxes = torch.cat([center - half, center + half], 1)
    return boxes.round() if whole else boxes, (torch.rand(n, generator=g) * 100).round() / 100


# ---- overlap


def test_volumes_and_overlaps_are_those_counted_by_hand():
    assert box_volume(FOUR).tolist() == [64, 64, 6, 2]
    assert box_intersection(FOUR[:1], FOUR).tolist() == [[64, 32, 6, 0]]
    assert box_iou(FOUR[:1], FOUR)[0].tolist() == pytest.approx([1, 32 / 96, 6 / 64, 0])


def test_touching_empty_and_reversed_boxes_overlap_nothing():
    boxes = torch.tensor([[4, 0, 0, 8, 4, 4], [1, 1, 1, 1, 3, 3], [3, 3, 3, 1, 1, 1]]).float()
    assert box_volume(boxes).tolist() == [64, 0, 0]
    assert box_intersection(FOUR[:1], boxes).tolist() == [[0, 0, 0]]
    assert box_iou(boxes[1:], boxes[1:]).tolist() == [[0, 0], [0, 0]]


def test_overlap_is_monais():
    boxes, _ = proposals(80, 7, 0)
    torch.testing.assert_close(box_iou(boxes, boxes[:30]), monai_box_iou(boxes, boxes[:30]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.float64])
def test_short_and_whole_numbers_are_computed_in_float32_and_float64_stays(dtype):
    large = torch.tensor([[0, 0, 0, 512, 512, 512]]).to(dtype)  # 1.3e8 voxels: infinite in float16
    assert box_volume(large).tolist() == [512**3]
    assert box_iou(large, large).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert nms3d(large.repeat(2, 1), torch.ones(2), 0.5).tolist() == [0]


def test_no_boxes_overlap_nothing():
    none = torch.zeros(0, 6)
    assert box_volume(none).shape == (0,)
    assert box_iou(none, FOUR).shape == (0, 4) and box_iou(FOUR, none).shape == (4, 0)


# ---- suppression


def test_a_suppressed_box_suppresses_nothing():
    # A chain of three, neighbours with IoU 1/3: the middle one falls to the first, so the last one stays.
    chain = torch.tensor([[0, 0, 0, 4, 4, 4], [2, 0, 0, 6, 4, 4], [4, 0, 0, 8, 4, 4]]).float()
    assert nms3d(chain, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]
    assert nms3d(chain, torch.tensor([0.8, 0.9, 0.7]), 0.3).tolist() == [1]


def test_an_overlap_equal_to_the_threshold_is_kept():
    pair = torch.tensor([[0, 0, 0, 4, 4, 4], [0, 0, 0, 4, 4, 2]]).float()
    assert nms3d(pair, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1, 0]
    assert nms3d(pair, torch.tensor([0.5, 0.9]), 0.499).tolist() == [1]


def test_of_equal_scores_the_lower_index_comes_first():
    same = FOUR[:1].repeat(5, 1)
    assert nms3d(same, torch.full((5,), 0.4), 0.5).tolist() == [0]
    apart = same + 10 * torch.arange(5.0)[:, None]
    assert nms3d(apart, torch.full((5,), 0.4), 0.5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("block", [7, 256])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("n", "lesions", "whole"), [(1, 1, False), (90, 1, True), (300, 12, False), (300, 300, True)])
def test_indices_are_monais_and_the_twins(n, lesions, whole, threshold, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "MOST_KEPT", 50)
    boxes, scores = proposals(n, lesions, n + block, whole=whole)
    kept = nms3d(boxes, scores, threshold)
    assert kept.dtype == torch.long
    assert kept.tolist() == non_max_suppression(boxes, scores, threshold).tolist()
    assert kept.tolist() == nms3d_reference(boxes, scores, threshold).tolist()


@pytest.mark.parametrize("max_keep", [0, 1, 9, 10_000])
def test_the_first_of_them_are_kept_where_fewer_are_asked_for(max_keep, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    boxes, scores = proposals(120, 30, 3)
    expected = nms3d_reference(boxes, scores, 0.2)[:max_keep]
    assert nms3d(boxes, scores, 0.2, max_keep=max_keep).tolist() == expected.tolist()
    assert nms3d_reference(boxes, scores, 0.2, max_keep=max_keep).tolist() == expected.tolist()


def test_autocast_changes_nothing():
    boxes, scores = proposals(300, 20, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nms3d(boxes, scores, 0.3), nms3d_reference(boxes, scores, 0.3))


def test_ten_thousand_boxes_need_little_memory(monkeypatch):
    boxes, scores = proposals(10_000, 1_500, 6)
    largest, original = [], module.box_iou

    def watched(a, b):
        largest.append(len(a) * len(b))
        return original(a, b)

    monkeypatch.setattr(module, "box_iou", watched)
    kept = nms3d(boxes, scores, 0.1)
    assert len(kept) > 2 * module.BLOCK
    assert max(largest) <= module.BLOCK * module.MOST_KEPT


def test_no_boxes_give_no_index():
    for function in (nms3d, nms3d_reference):
        kept = function(torch.zeros(0, 6), torch.zeros(0), 0.5)
        assert kept.shape == (0,) and kept.dtype == torch.long


@pytest.mark.parametrize(
    ("boxes", "scores", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(3), r"boxes must be \(N, 6\) xyzxyz, got shape \(3, 4\)"),
        (torch.zeros(0), torch.zeros(0), r"no box is \(0, 6\)"),
        (FOUR, torch.zeros(3), r"scores must have shape \(4,\) beside 4 boxes, got \(3,\)"),
        (FOUR, torch.tensor([0, float("nan"), 0, 0]), "scores of 1 of 4 boxes are NaN"),
        (FOUR.flip(1), torch.zeros(4), r"4 of 4 boxes are reversed; the first is box 0, \[4.0, 4.0, 4.0, 0.0"),
        (torch.cat([FOUR, FOUR[:1] / 0]), torch.zeros(5), "1 of 5 boxes are not finite; the first is box 4"),
    ],
)
def test_what_is_no_box_or_no_score_is_refused_in_words(boxes, scores, words):
    for function in (nms3d, nms3d_reference):
        with pytest.raises(ValueError, match=words):
            function(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=words):
        weighted_box_clustering(boxes, scores, torch.ones(len(boxes)))


def test_a_negative_number_of_boxes_is_refused():
    with pytest.raises(ValueError, match="max_keep must be None or at least 0, got -1"):
        nms3d(FOUR, torch.ones(4), 0.5, max_keep=-1)


# ---- clustering


def test_a_merged_box_is_the_mean_by_score_and_weight():
    boxes = torch.tensor([[0, 0, 0, 8, 8, 8], [2, 0, 0, 10, 8, 8]]).float()
    merged, scores, cluster = weighted_box_clustering(boxes, torch.tensor([0.9, 0.6]), torch.tensor([1.0, 0.5]))
    # shares .9 and .3: three quarters and one quarter
    torch.testing.assert_close(merged, torch.tensor([[0.5, 0, 0, 8.5, 8, 8]]))
    assert scores.tolist() == pytest.approx([(0.9 + 0.3) / 1.5])
    assert cluster.tolist() == [0, 0]


def test_pieces_of_a_cut_lesion_join_the_window_that_saw_it_whole():
    # 40 long, cut by two windows at 20; the middle window has all of it. A piece has IoU 20/40 or 10/40 with it.
    whole, half, quarter = [0, 0, 0, 40, 10, 10], [0, 0, 0, 20, 10, 10], [30, 0, 0, 40, 10, 10]
    boxes = torch.tensor([half, whole, quarter, [60, 0, 0, 70, 10, 10]]).float()
    scores, weights = torch.tensor([0.5, 0.9, 0.4, 0.3]), torch.tensor([0.1, 1, 0.1, 1])
    merged, merged_scores, cluster = weighted_box_clustering(boxes, scores, weights)
    assert cluster.tolist() == [0, 0, 0, 1]
    assert (merged[0] - boxes[1]).abs().max() < 2, "the trusted box decides"
    assert merged[1].tolist() == boxes[3].tolist() and merged_scores[1].item() == pytest.approx(0.3)
    _, _, strict = weighted_box_clustering(boxes, scores, weights, ios_threshold=1.0)
    assert strict.tolist() == [0, 0, 1, 2], "without the second reason a quarter is a lesion of its own"


def test_neighbours_stay_apart():
    boxes = torch.tensor([[0, 0, 0, 10, 10, 10], [8, 0, 0, 18, 10, 10]]).float()  # IoU 1/9, a fifth in common
    assert weighted_box_clustering(boxes, torch.tensor([0.9, 0.8]), torch.ones(2))[2].tolist() == [0, 1]


def test_a_lesion_that_fewer_windows_found_than_looked_loses_score():
    boxes, scores, weights = FOUR[:1].repeat(2, 1), torch.tensor([0.8, 0.6]), torch.tensor([1.0, 3.0])
    mean = (0.8 + 1.8) / 4
    for views, expected in ((2, mean), (1, mean), (4, 2.6 / (4 + 2 * 2)), (3, 2.6 / (4 + 2))):
        _, merged, _ = weighted_box_clustering(boxes, scores, weights, expected_views=torch.full((2,), views))
        assert merged.item() == pytest.approx(expected)


def test_clusters_come_by_descending_merged_score():
    boxes = torch.cat([FOUR[:1], FOUR[:1], FOUR[3:]])
    _, scores, cluster = weighted_box_clustering(boxes, torch.tensor([0.9, 0.1, 0.7]), torch.ones(3))
    assert scores.tolist() == pytest.approx([0.7, 0.5])
    assert cluster.tolist() == [1, 1, 0]


@pytest.mark.parametrize("whole", [True, False])
def test_the_order_of_the_boxes_changes_no_bit(whole):
    boxes, scores = proposals(120, 9, 11, whole=whole)
    g = torch.Generator().manual_seed(1)
    weights, views = torch.rand(120, generator=g), torch.randint(1, 9, (120,), generator=g)
    boxes, scores = torch.cat([boxes, boxes[:20]]), torch.cat([scores, scores[:20]])  # equal in box and score
    weights, views = torch.cat([weights, weights[:10], 1 - weights[10:20]]), torch.cat([views, views[:20]])
    first = weighted_box_clustering(boxes, scores, weights, expected_views=views)
    assert 3 < len(first[0]) < 100
    for _ in range(20):
        p = torch.randperm(140, generator=g)
        again = weighted_box_clustering(boxes[p], scores[p], weights[p], expected_views=views[p])
        assert torch.equal(again[0], first[0]) and torch.equal(again[1], first[1])
        assert torch.equal(again[2], first[2][p])


def test_every_merged_box_lies_within_its_members():
    boxes, scores = proposals(200, 15, 2)
    merged, _, cluster = weighted_box_clustering(boxes, scores, torch.ones(200))
    assert cluster.unique().tolist() == list(range(len(merged)))
    for k in range(len(merged)):
        low, high = boxes[cluster == k].min(0).values, boxes[cluster == k].max(0).values
        assert (merged[k] >= low - 1e-3).all() and (merged[k] <= high + 1e-3).all()


def test_scores_and_weights_of_nothing_give_the_plain_mean():
    boxes = torch.tensor([[0, 0, 0, 8, 8, 8], [2, 0, 0, 10, 8, 8]]).float()
    for scores, weights in ((torch.zeros(2), torch.ones(2)), (torch.ones(2), torch.zeros(2))):
        merged, merged_scores, _ = weighted_box_clustering(boxes, scores, weights)
        assert merged[0].tolist() == [1, 0, 0, 9, 8, 8] and merged_scores.tolist() == [scores[0].item()]


def test_boxes_without_volume_stay_alone():
    flat = torch.tensor([[1, 1, 1, 1, 3, 3], [1, 1, 1, 1, 3, 3]]).float()
    merged, _, cluster = weighted_box_clustering(flat, torch.ones(2), torch.ones(2))
    assert merged.tolist() == flat.tolist() and sorted(cluster.tolist()) == [0, 1]


def test_no_detections_give_no_lesion():
    for views in (None, torch.zeros(0)):
        boxes, scores, cluster = weighted_box_clustering(
            torch.zeros(0, 6), torch.zeros(0), torch.zeros(0), expected_views=views
        )
        assert (boxes.shape, scores.shape, cluster.shape) == ((0, 6), (0,), (0,)) and cluster.dtype == torch.long


@pytest.mark.parametrize("name", ["scores", "weights"])
def test_negative_trust_is_refused(name):
    given = {"scores": torch.ones(4), "weights": torch.ones(4), name: torch.tensor([1.0, -0.5, 1, 1])}
    with pytest.raises(ValueError, match=f"{name} must be finite and at least 0, got -0.5 to 1"):
        weighted_box_clustering(FOUR, **given)
