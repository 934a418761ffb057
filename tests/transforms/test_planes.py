"""Volumes turned into the plane that was drawn, their crop candidates along with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.errors import UsageError
from volseg.networks.slicewise import to_slices
from volseg.transforms.crops import CROP_INDICES, RandBoneCropd, crop_indices
from volseg.transforms.planes import MiddleSliced, RandPlaned


@pytest.fixture
def case() -> dict:
    label = torch.zeros(1, 6, 7, 8, dtype=torch.uint8)
    label[0, 1:3, 4:6, 5] = 1
    image = torch.arange(6 * 7 * 8, dtype=torch.float32).reshape(1, 6, 7, 8)
    return {
        "image": MetaTensor(image), "label": label, CROP_INDICES: crop_indices(label, torch.ones_like(label))
    }  # fmt: skip


@pytest.mark.parametrize("across", [0, 1, 2])
def test_slices_are_those_that_slicewise_cuts(case, across):
    turned = RandPlaned(["image", "label"], [float(axis == across) for axis in range(3)])(case)
    slices = to_slices(case["image"].as_tensor()[None], across)
    assert torch.equal(turned["image"].movedim(3, 0), slices)
    voxels = turned[CROP_INDICES]["lesion"]
    assert len(voxels) and all(turned["label"][0, x, y, z] for x, y, z in voxels)


def test_every_plane_is_drawn_and_the_case_itself_is_not_turned(case):
    turn = RandPlaned(["image", "label"])
    turn.set_random_state(0)
    shapes = {tuple(turn(case)["image"].shape[1:]) for _ in range(40)}
    assert shapes == {(6, 7, 8), (6, 8, 7), (7, 8, 6)}
    assert case["image"].shape == (1, 6, 7, 8) and np.all(case[CROP_INDICES]["lesion"] < (6, 7, 8))


def test_a_lesion_crop_of_one_slice_holds_lesion_in_every_plane(case):
    for across in range(3):
        turned = RandPlaned(["image", "label"], [float(axis == across) for axis in range(3)])(case)
        crop = RandBoneCropd(["image", "label"], roi_size=(6, 6, 1), weights=(1, 0, 0), jitter=0.0)
        crop.set_random_state(1)
        assert crop(turned)[0]["label"].any()


@pytest.mark.parametrize("weights", [(1, 1), (0, 0, 0), (-1, 1, 1)])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(UsageError, match="plane-weights"):
        RandPlaned("image", weights)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_middle_slice_and_its_neighbours_are_those_that_slicewise_cuts(case, across):
    turned = RandPlaned(["image", "label"], [float(axis == across) for axis in range(3)])(case)
    taken = MiddleSliced(["image", "label"], "image", context=2)(turned)
    middle = case["image"].shape[1 + across] // 2
    assert torch.equal(taken["image"], to_slices(case["image"].as_tensor()[None], across, context=2)[middle])
    assert torch.equal(taken["label"], to_slices(case["label"][None], across)[middle])


def test_a_slice_alone_stands_for_its_neighbours():
    picture = torch.rand(1, 4, 5, 1)
    taken = MiddleSliced("image", "image", context=1)({"image": picture})["image"]
    assert torch.equal(taken, picture[..., 0].expand(3, 4, 5))
    assert torch.equal(taken, to_slices(picture[None], 2, context=1)[0])


def test_channels_stay_together_with_their_neighbours():
    slab = torch.arange(2 * 3 * 3 * 4.0).reshape(2, 3, 3, 4)
    taken = MiddleSliced("image", "image", context=1)({"image": slab})["image"]
    assert torch.equal(taken, to_slices(slab[None], 2, context=1)[2]) and taken.shape == (6, 3, 3)


def test_fewer_than_no_neighbours_are_refused():
    with pytest.raises(UsageError, match="context"):
        MiddleSliced("image", "image", context=-1)
