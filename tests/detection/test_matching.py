"""Which anchors answer for a lesion, which are background, and which are not asked."""

import pytest
import torch

from volseg.detection.anchors import AnchorGrid, default_sizes_mm
from volseg.detection.matching import BACKGROUND, IGNORE, match, match_atss, sample

LESION = torch.tensor([[0.0, 0, 0, 10, 10, 10]])


def test_thresholds_split_candidates_into_three():
    candidates = torch.tensor(
        [
            [0.0, 0, 0, 10, 10, 10],  # IoU 1
            [0.0, 0, 0, 10, 10, 5],  # IoU .5
            [0.0, 0, 0, 10, 10, 2],  # IoU .2
            [20.0, 20, 20, 30, 30, 30],  # IoU 0
        ]
    )
    assert match(candidates, LESION, foreground=0.5, background=0.1).tolist() == [0, 0, IGNORE, BACKGROUND]


def test_a_lesion_no_anchor_fits_keeps_its_best():
    candidates = torch.tensor([[0.0, 0, 0, 3, 3, 3], [0.0, 0, 0, 2, 2, 2]])
    assert match(candidates, LESION, foreground=0.5, background=0.1).tolist() == [BACKGROUND, BACKGROUND]
    assert match(candidates, LESION, foreground=0.5, background=0.1, keep_best=True).tolist() == [0, BACKGROUND]


def test_without_lesions_everything_is_background():
    candidates = torch.rand(5, 3).repeat(1, 2) + torch.tensor([0.0, 0, 0, 1, 1, 1])
    assert match(candidates, torch.zeros(0, 6), foreground=0.5, background=0.1).tolist() == [BACKGROUND] * 5
    assert match(torch.zeros(0, 6), LESION, foreground=0.5, background=0.1).shape == (0,)


def test_what_lies_in_an_ignored_box_is_neither_lesion_nor_background():
    boxes = torch.cat([LESION, LESION + 20])
    candidates = torch.cat([LESION, LESION + 20, torch.tensor([[22.0, 22, 22, 24, 24, 24], [50, 50, 50, 55, 55, 55]])])
    matches = match(
        candidates, boxes, foreground=0.5, background=0.1, ignore=torch.tensor([False, True]), keep_best=True
    )
    assert matches.tolist() == [0, IGNORE, IGNORE, BACKGROUND]


def test_atss_gives_a_lesion_smaller_than_every_anchor_its_nearest():
    grid = AnchorGrid(default_sizes_mm(2), 1.0)
    shapes, strides = [(8, 8, 8), (4, 4, 4)], [(4.0,) * 3, (8.0,) * 3]
    anchors = torch.cat(grid(shapes, strides))
    lesion = torch.tensor([[9.0, 9, 9, 12, 13, 13]])
    matches = match_atss(anchors, lesion, per_level=[512, 64], per_location=grid.per_location)
    mine = anchors[matches == 0]
    assert len(mine) and bool((((mine[:, :3] + mine[:, 3:]) / 2 - 10.5).abs() < 5).all())
    ignored = match_atss(
        anchors, lesion, per_level=[512, 64], per_location=grid.per_location, ignore=torch.tensor([True])
    )
    assert not bool((ignored >= 0).any()) and bool((ignored == IGNORE).any())


def test_sampling_takes_few_positives_and_the_hardest_negatives():
    matches = torch.full((1000,), BACKGROUND)
    matches[:40] = 0
    matches[40:60] = IGNORE
    scores = torch.linspace(0, 1, 1000)
    torch.manual_seed(0)
    positive, negative = sample(matches, scores, number=32, positive_fraction=0.25, pool=2)
    assert len(positive) == 8 and len(negative) == 24
    assert bool((matches[positive] == 0).all()) and bool((matches[negative] == BACKGROUND).all())
    assert len(set(negative.tolist())) == 24, "no candidate is asked twice"
    assert int((negative >= 1000 - 12 * 2).sum()) >= 12, "half of them come from the highest scores"


def test_sampling_an_image_without_lesions_or_without_candidates_is_fine():
    positive, negative = sample(torch.full((10,), BACKGROUND), torch.rand(10), number=32, positive_fraction=0.5)
    assert len(positive) == 0 and len(negative) == 10
    positive, negative = sample(torch.zeros(0, dtype=torch.long), torch.zeros(0), number=32, positive_fraction=0.5)
    assert len(positive) == len(negative) == 0


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"0\.5 and 0\.1|0\.1 and 0\.5"):
        match(LESION, LESION, foreground=0.1, background=0.5)
