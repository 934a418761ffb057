"""The loss of two heads, against values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from volseg.training.regions import RegionLoss


def test_undecided_logits_cost_what_paper_and_pencil_say():
    """Probability 1/2 everywhere, one of four pixels inside: BCE = ln 2, Dice = (2 * 0.5 + 1) / (2 + 1 + 1) = 1/2."""
    logits, masks = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    masks[:, :, 0, 0] = 1
    assert RegionLoss()(logits, masks).item() == pytest.approx(math.log(2) + 0.5)
    assert RegionLoss((0.0, 2.0))(logits, masks).item() == pytest.approx(2 * (math.log(2) + 0.5))


def test_a_right_answer_costs_nothing_and_each_region_its_weight():
    masks = torch.zeros(2, 2, 4, 4)
    masks[0, :, :2] = 1
    right = (masks * 2 - 1) * 40
    assert RegionLoss()(right, masks).item() == pytest.approx(0, abs=1e-5)
    wrong_bone, wrong_lesion = right.clone(), right.clone()
    wrong_bone[:, 0] *= -1
    wrong_lesion[:, 1] *= -1
    bone, lesion = RegionLoss()(wrong_bone, masks), RegionLoss()(wrong_lesion, masks)
    assert lesion.item() / bone.item() == pytest.approx(7 / 3, rel=1e-5)


def test_a_picture_without_lesion_is_no_error_and_other_shapes_are():
    assert torch.isfinite(RegionLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)))
    with pytest.raises(ValueError, match="has 2 regions"):
        RegionLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="one per region"):
        RegionLoss((0.0, 0.0))


def test_a_small_lesion_missed_costs_more_where_areas_are_made_even():
    masks = torch.zeros(1, 2, 16, 16)
    masks[0, 1, 2:4, 2:4] = 1  # 4 pixels
    masks[0, 1, 6:14, 6:14] = 1  # 64 pixels
    right = (masks * 2 - 1) * 8
    missed = right.clone()
    missed[0, 1, 2:4, 2:4] = -8
    plain, even = RegionLoss(), RegionLoss(even_area=64)
    assert even(missed, masks) - even(right, masks) > 3 * (plain(missed, masks) - plain(right, masks)) > 0
    only_large = masks.clone()
    only_large[0, 1, 2:4, 2:4] = 0
    assert even(right, only_large).item() == pytest.approx(plain(right, only_large).item())


def test_bone_is_never_made_even():
    masks = torch.zeros(1, 2, 16, 16)
    masks[0, 0, 2:4, 2:4] = 1
    assert RegionLoss(even_area=64)(-masks, masks).item() == pytest.approx(RegionLoss()(-masks, masks).item())
