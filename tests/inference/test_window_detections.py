"""A lesion that 2, 4 or 8 windows cut is one lesion; what one window's face cut, its neighbours complete."""

import itertools

import pytest
import torch

from volseg.inference.window_detections import WindowDetections, gather, merge
from volseg.inference.windows import plan_windows

ROI = (32, 32, 32)
SHAPE = (64, 64, 64)


def seen_by_windows(lesion: torch.Tensor, *, overlap: float, score=0.9):
    """What a perfect detector returns: each window shows the part of the lesion that lies in it."""
    plan = plan_windows(SHAPE, ROI, overlap).corners
    found = []
    for corner in plan:
        low = torch.tensor(corner, dtype=torch.float32)
        box = torch.cat([(lesion[:3] - low).clamp(0, 32), (lesion[3:] - low).clamp(0, 32)])
        there = bool((box[3:] - box[:3] >= 1).all())
        boxes = box[None] if there else torch.zeros(0, 6)
        n = len(boxes)
        found.append((corner, {"box": boxes, "label_scores": torch.full((n,), score), "mask": torch.ones(n, 4, 4, 4)}))
    return found, plan


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (0, 1, 2)])
def test_a_lesion_across_windows_is_one_lesion_with_its_whole_box(overlap, axes):
    low, high = torch.full((3,), 6.0), torch.full((3,), 16.0)
    for axis in axes:
        low[axis], high[axis] = 22.0, 40.0
    lesion = torch.cat([low, high])
    found, plan = seen_by_windows(lesion, overlap=overlap)
    merged = merge(gather(found, plan, ROI, SHAPE))
    assert len(merged.scores) == 1
    assert merged.boxes[0].tolist() == pytest.approx(lesion.tolist(), abs=0.1)


def test_a_lesion_longer_than_a_window_keeps_its_length():
    lesion = torch.tensor([10.0, 20, 20, 54, 30, 30])
    found, plan = seen_by_windows(lesion, overlap=0.5)
    merged = merge(gather(found, plan, ROI, SHAPE))
    assert len(merged.scores) == 1
    assert merged.boxes[0].tolist() == pytest.approx(lesion.tolist(), abs=0.5)


def test_the_order_of_windows_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    found, plan = [], plan_windows(SHAPE, ROI, 0.5).corners
    for corner in plan:
        low = torch.rand(4, 3, generator=generator) * 20
        boxes = torch.cat([low, low + 3 + torch.rand(4, 3, generator=generator) * 9], dim=1)
        found.append(
            (
                corner,
                {
                    "box": boxes,
                    "label_scores": torch.rand(4, generator=generator),
                    "mask": torch.rand(4, 4, 4, 4, generator=generator),
                },
            )
        )
    forwards = merge(gather(found, plan, ROI, SHAPE))
    backwards = merge(gather(found[::-1], plan, ROI, SHAPE))
    assert torch.equal(forwards.boxes, backwards.boxes)
    assert torch.equal(forwards.scores, backwards.scores)


def test_a_window_that_should_have_seen_it_and_did_not_lowers_the_score():
    lesion = torch.tensor([20.0, 20, 20, 28, 28, 28])
    found, plan = seen_by_windows(lesion, overlap=0.5)
    everyone = merge(gather(found, plan, ROI, SHAPE)).scores[0]
    seers = [i for i, (_, r) in enumerate(found) if len(r["box"])]
    alone = [f if i not in seers[1:] else (f[0], {k: v[:0] for k, v in f[1].items()}) for i, f in enumerate(found)]
    lonely = merge(gather(alone, plan, ROI, SHAPE)).scores[0]
    assert float(everyone) == pytest.approx(0.9, abs=1e-6)
    assert float(lonely) < 0.5 * float(everyone)


def test_two_lesions_apart_stay_two():
    found, plan = [], plan_windows(SHAPE, ROI, 0.5).corners
    for lesion in (torch.tensor([5.0, 5, 5, 12, 12, 12]), torch.tensor([16.0, 5, 5, 22, 12, 12])):
        found += seen_by_windows(lesion, overlap=0.5)[0]
    assert len(merge(gather(found, plan, ROI, SHAPE)).scores) == 2


def test_members_that_contradict_each_other_still_make_a_box():
    # Along y one ends where no window cut it before the other begins; a third, cut at both ends, joins them.
    boxes = torch.tensor([[0.0, 12, 0, 10, 20, 10], [0, 22, 0, 10, 30, 10], [0, 10, 0, 10, 32, 10]])
    cut = torch.zeros(3, 6, dtype=torch.bool)
    cut[0, 1] = cut[1, 4] = cut[2, 1] = cut[2, 4] = True
    detections = WindowDetections(boxes, torch.tensor([0.5, 0.4, 0.9]), torch.ones(3, 4, 4, 4), cut, torch.ones(3))
    merged = merge(detections)
    assert merged.boxes.tolist() == [[0, 10, 0, 10, 32, 10]]


def test_nothing_found_merges_to_nothing():
    plan = list(itertools.islice(plan_windows(SHAPE, ROI, 0.5).corners, 3))
    merged = merge(gather([], plan, ROI, SHAPE))
    assert merged.boxes.shape == (0, 6) and len(merged.scores) == 0 and merged.members == ()
