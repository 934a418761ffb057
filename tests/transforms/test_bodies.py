"""A patch in another body: its middle when spared, bent but never folded, masks still masks, lesions still there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from volseg.errors import UsageError
from volseg.transforms.bodies import SOFT_TISSUE_HU, RandBodyd, RandBoneDensityd, bspline_basis

KEYS = ["image", "bone", "label"]
MODES = ["bilinear", "bilinear", "nearest"]
STILL = {"rotate": 0.0, "stretch": 0.0, "bend": 0.0}


@pytest.fixture
def patch() -> dict[str, torch.Tensor]:
    """A ball of lesion (instance 3) in a block of marrow, with metadata on the image as RandBoneCropd leaves them."""
    at = torch.stack(torch.meshgrid(*(torch.arange(40.0),) * 3, indexing="ij"))
    label = ((at - 19.5).square().sum(0) < 36).to(torch.uint8)[None] * 3
    bone = torch.zeros(1, 40, 40, 40)
    bone[:, 6:34, 6:34, 6:34] = 2
    image = torch.where(bone > 0, 200.0, 50.0)
    image[label > 0] = SOFT_TISSUE_HU
    return {"image": MetaTensor(image, meta={"crop_kind": "lesion"}), "bone": bone, "label": label}


def body(**options) -> RandBodyd:
    return RandBodyd(KEYS, spatial_size=32, mode=MODES, **options).set_random_state(5)


def test_a_patch_that_is_spared_is_its_middle(patch):
    for transform in (body(prob=0.0), body(prob=1.0, **STILL)):
        out = transform(dict(patch))
        for key in KEYS:
            middle = torch.as_tensor(patch[key])[:, 4:36, 4:36, 4:36]
            assert out[key].dtype == middle.dtype
            assert torch.allclose(out[key].float(), middle.float(), atol=1e-2), key


def test_everything_moves_together_and_masks_stay_masks(patch):
    for seed in range(10):
        out = body(prob=1.0).set_random_state(seed)(dict(patch))
        assert set(out["label"].unique().tolist()) == {0, 3}
        # The lesion is where the image is soft inside bone, up to voxels that were interpolated.
        soft = (out["image"] < SOFT_TISSUE_HU + 5) & (out["bone"] > 1.99)
        assert float((soft & (out["label"] == 3)).sum()) > 0.95 * float(soft.sum())
        assert (out["label"] == 3).sum() > 0.35 * (patch["label"] == 3).sum()


def test_the_strongest_bend_does_not_fold():
    transform = RandBodyd("image", spatial_size=32, rotate=0.0, stretch=0.0, bend=1.0).set_random_state(0)
    moved = []
    for _ in range(30):
        places = transform.places()
        slopes = [torch.stack(torch.gradient(places[..., i], dim=(0, 1, 2)), dim=-1) for i in range(3)]
        assert torch.linalg.det(torch.stack(slopes, dim=-2)).min() > 0.1
        still = torch.stack(torch.meshgrid(*(torch.arange(32) - 15.5,) * 3, indexing="ij"), dim=-1)
        moved.append(float((places - still).norm(dim=-1).mean()))
    assert np.mean(moved) > 1  # and it does bend: a voxel and more


def test_a_turn_is_a_turn():
    """With bend and stretch 0 distances between voxels stay what they are."""
    places = RandBodyd("image", spatial_size=16, stretch=0.0, bend=0.0).set_random_state(1).places()
    assert torch.allclose((places[1:] - places[:-1]).norm(dim=-1), torch.ones(15, 16, 16), atol=1e-4)
    assert not torch.allclose(places[1, 0, 0] - places[0, 0, 0], torch.tensor([1.0, 0, 0]), atol=1e-2)


@pytest.mark.parametrize("spacing", [3.0, 9.5, 40.0])
def test_bsplines_sum_to_one(spacing):
    basis = bspline_basis(32, spacing)
    assert np.allclose(basis.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(basis, basis[::-1, ::-1], atol=1e-6)


def test_density_moves_marrow_and_leaves_soft_tissue(patch):
    out = RandBoneDensityd(prob=1.0, spread=0.35).set_random_state(2)(dict(patch))["image"]
    before = torch.as_tensor(patch["image"])
    marrow = (patch["bone"] > 0) & (patch["label"] == 0)
    factor = (out[marrow] - SOFT_TISSUE_HU) / (before[marrow] - SOFT_TISSUE_HU)
    assert factor.min() == pytest.approx(float(factor.max()), abs=1e-5)
    assert 0.7 < float(factor[0]) < 1.42
    assert abs(float(factor[0]) - 1) > 0.01
    assert torch.equal(torch.as_tensor(out)[~marrow], before[~marrow])


def test_the_same_seed_gives_the_same_body(patch):
    walk = Compose([RandBodyd(KEYS, spatial_size=32, mode=MODES), RandBoneDensityd()])
    first = walk.set_random_state(9)(dict(patch))
    again = walk.set_random_state(9)(dict(patch))
    other = walk.set_random_state(10)(dict(patch))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


def test_a_bend_that_could_fold_is_refused():
    with pytest.raises(UsageError, match="fold"):
        RandBodyd("image", spatial_size=32, bend=1.5)
