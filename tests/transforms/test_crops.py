"""Patches lie where the weights say, the same ones for the same seed, and whole even in small volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, list_data_collate
from monai.transforms import Compose

from volseg.errors import UsageError
from volseg.transforms.crops import CROP_INDICES, CacheCropIndicesd, RandBoneCropd, crop_indices

SHAPE = (60, 50, 40)
ROI = (12, 10, 8)


@pytest.fixture
def sample() -> dict[str, MetaTensor]:
    """A field of bone with one lesion of 8 voxels and one of 1000; the image holds each voxel's x + 100 y + 10000 z."""
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[0, 10:12, 10:12, 10:12] = 1
    label[0, 40:50, 30:40, 20:30] = 1
    bone = torch.zeros_like(label)
    bone[0, 5:30, 5:20, 5:38] = 1
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    affine = torch.tensor([[-0.8, 0, 0, 5], [0, 1.1, 0, -9], [0, 0, 2.0, 30], [0, 0, 0, 1]], dtype=torch.float64)
    image = (x + 100 * y + 10000 * z).float()[None]
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine), "bone": bone}


def cropper(**options) -> RandBoneCropd:
    return RandBoneCropd(["image", "label"], roi_size=ROI, **options).set_random_state(3)


def test_kinds_come_as_often_as_the_weights_say(sample):
    crops = cropper(weights=(5, 3, 2), num_samples=1000)(CacheCropIndicesd()(sample))
    kinds = [c["image"].meta["crop_kind"] for c in crops]
    # 1000 draws: the standard deviation of a share of .5 is .016.
    assert abs(kinds.count("lesion") / 1000 - 0.5) < 0.05
    assert abs(kinds.count("bone") / 1000 - 0.3) < 0.05
    assert all(c["label"].any() for c, kind in zip(crops, kinds, strict=True) if kind == "lesion")


def test_a_lesion_of_eight_voxels_is_drawn_as_often_as_one_of_a_thousand(sample):
    crops = cropper(weights=(1, 0, 0), num_samples=400)(CacheCropIndicesd()(sample))
    small = sum(int(c["label"].sum()) <= 8 for c in crops)
    assert 150 < small < 250


def test_the_drawn_voxel_is_not_always_in_the_middle(sample):
    still = cropper(weights=(1, 0, 0), num_samples=50, jitter=0.0)(sample)
    moved = cropper(weights=(1, 0, 0), num_samples=50)(sample)
    middle = tuple(n // 2 for n in ROI)
    assert all(c["label"][0][middle] == 1 for c in still)
    assert 0 < sum(int(c["label"][0][middle]) for c in moved) < 50
    assert all(c["label"].any() for c in moved)


@pytest.mark.parametrize(
    ("missing", "weights", "expected"),
    [("label", (1, 1, 0), "bone"), ("bone", (1, 1, 0), "lesion"), ("label", (1, 0, 0), "anywhere")],
)
def test_a_missing_kind_leaves_its_share_to_the_others(sample, missing, weights, expected):
    sample[missing] = torch.zeros_like(sample[missing])
    kinds = {c["image"].meta["crop_kind"] for c in cropper(weights=weights, num_samples=30)(sample)}
    assert kinds == {expected}


def test_image_label_and_affine_move_together(sample):
    for crop in cropper(num_samples=20)(CacheCropIndicesd()(sample)):
        first = int(crop["image"][0, 0, 0, 0])
        i, j, k = first % 100, first // 100 % 100, first // 10000
        window = (slice(None), slice(i, i + 12), slice(j, j + 10), slice(k, k + 8))
        assert torch.equal(crop["image"].as_tensor(), sample["image"].as_tensor()[window])
        assert torch.equal(crop["label"].as_tensor(), sample["label"].as_tensor()[window])
        position = sample["image"].affine @ torch.tensor([i, j, k, 1.0], dtype=torch.float64)
        assert torch.allclose(crop["image"].affine[:, 3], position)
        assert "bone" in crop and CROP_INDICES not in crop


def test_the_same_seed_gives_the_same_crops_with_or_without_the_cache(sample):
    one = cropper(num_samples=5)(CacheCropIndicesd()(sample))
    two = cropper(num_samples=5)(sample)
    other = RandBoneCropd(["image"], roi_size=ROI, num_samples=5).set_random_state(4)(sample)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_a_small_volume_sits_in_the_middle_of_its_padding(sample, dtype):
    small = {k: v[:, 4:14, 4:14, 8:14].to(dtype) for k, v in sample.items()}
    crop = RandBoneCropd(["image", "label"], roi_size=(16, 10, 9), pad_values=[-1024, 0])(small)[0]
    assert crop["image"].shape == crop["label"].shape == (1, 16, 10, 9)
    # 10 of 16 voxels along x: 3 before and 3 after; 6 of 9 along z: 2 before (rounded down from -1.5) and 1 after.
    assert torch.equal(crop["image"][:, 3:13, :, 2:8].as_tensor(), small["image"].as_tensor())
    assert int((crop["image"] == -1024).sum()) == 16 * 10 * 9 - 10 * 10 * 6
    assert crop["image"].dtype == dtype


def test_without_a_pad_value_the_volume_gives_its_own_minimum(sample):
    sample["image"] -= 5000
    crop = RandBoneCropd(["image", "label"], roi_size=(64, 10, 8))(sample)[0]
    assert float(crop["image"][0, 0, 0, 0]) == -5000
    assert int(crop["label"][0, 0, 0, 0]) == 0


def test_indices_are_few_and_always_the_same(sample):
    bone = torch.ones(1, *SHAPE)
    one, two = (crop_indices(sample["label"], bone, max_per_kind=100) for _ in range(2))
    assert len(one["bone"]) == 100 and len(one["lesion"]) == 100
    assert all(np.array_equal(one[k], two[k]) for k in one)
    empty = crop_indices(torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE))
    assert empty["lesion"].shape == empty["bone"].shape == (0, 3)


def test_the_cache_keeps_the_indices_and_the_loader_gets_flat_batches(sample):
    steps = Compose([CacheCropIndicesd(), cropper(num_samples=3)])
    dataset = CacheDataset([sample, sample], steps, progress=False)
    batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=list_data_collate)))
    assert batch["image"].shape == (6, 1, *ROI)


def test_senseless_settings_are_refused(sample):
    with pytest.raises(UsageError, match="weights"):
        cropper(weights=(0, 0, 0))
    with pytest.raises(UsageError, match="jitter"):
        cropper(jitter=0.5)
    sample["label"] = sample["label"][:, 1:]
    with pytest.raises(UsageError, match="different shapes"):
        cropper()(sample)
