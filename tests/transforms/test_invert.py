"""A prediction lands on the grid the study was read on: MONAI's values, the source's own shape and affine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from volseg.errors import InputError
from volseg.transforms.ct import RasIsotropicd
from volseg.transforms.invert import ToSourceGridd, source_grid, to_source_grid
from volseg.transforms.metatensor import to_metatensor
from volseg.types import Volume

SHAPE = (21, 16, 12)
AFFINES = {
    "LAS": [[-0.8, 0, 0, 5], [0, 1.1, 0, -9], [0, 0, 2.1, 30], [0, 0, 0, 1]],
    "PIR": [[0, 0, 2.1, 5], [-0.8, 0, 0, -9], [0, -1.1, 0, 30], [0, 0, 0, 1]],
    "RAS": [[1.4, 0, 0, 5], [0, 0.7, 0, -9], [0, 0, 1.0, 30], [0, 0, 0, 1]],
    "30 degrees about z": [
        [-0.8 * 0.75**0.5, 0.55, 0, 5],
        [0.4, 1.1 * 0.75**0.5, 0, -9],
        [0, 0, 2.1, 30],
        [0, 0, 0, 1],
    ],
}


@pytest.fixture(params=AFFINES)
def volume(request, rng):
    return Volume(rng.integers(-1000, 2000, SHAPE).astype(np.int16), np.array(AFFINES[request.param], dtype=float))


def test_probabilities_agree_with_monai_invertd(volume):
    image = to_metatensor(volume)
    theirs = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0))])
    working = theirs({"image": image})
    random = torch.rand((3, *working["image"].shape[1:]), generator=torch.Generator().manual_seed(1))
    working["pred"] = MetaTensor(random, meta=working["image"].meta)
    expected = Invertd("pred", theirs, orig_keys="image", nearest_interp=False)(dict(working))["pred"]
    ours = ToSourceGridd("pred")(working)["pred"]
    assert ours.shape == (3, *SHAPE)
    assert np.array_equal(ours.affine.numpy(), volume.affine)
    assert (ours - expected).abs().max() < 1e-4


def test_masks_agree_with_monai_invertd_away_from_ties(volume):
    # Spacing 1.03 mm puts no source voxel exactly midway between two.
    theirs = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.03, 1.03, 1.03))])
    working = theirs({"image": to_metatensor(volume)})
    mask = torch.randint(0, 5, (1, *working["image"].shape[1:]), generator=torch.Generator().manual_seed(1))
    working["pred"] = MetaTensor(mask.to(torch.uint8), meta=working["image"].meta)
    expected = Invertd("pred", theirs, orig_keys="image", nearest_interp=True)(dict(working))["pred"]
    ours = ToSourceGridd("pred", mode="nearest")(working)["pred"]
    assert ours.dtype == torch.uint8
    assert (ours != expected).float().mean() < 1e-3


def test_the_way_back_works_after_a_batch(volume):
    working = RasIsotropicd("image")({"image": to_metatensor(volume)})
    batch = list_data_collate([working])
    item = decollate_batch(batch)[0]
    back = ToSourceGridd("image")(item)["image"]
    assert back.shape == (1, *SHAPE) and np.array_equal(back.affine.numpy(), volume.affine)
    assert back.applied_operations == []


def test_a_bare_prediction_takes_the_metadata_of_its_image(volume):
    working = RasIsotropicd("image")({"image": to_metatensor(volume)})
    working["pred"] = torch.ones(2, *working["image"].shape[1:])
    back = ToSourceGridd("pred", reference_key="image")(working)["pred"]
    assert back.shape == (2, *SHAPE) and bool((back == 1).all())
    working["pred"] = torch.ones(2, 3, 3, 3)
    with pytest.raises(InputError, match=r"\(3, 3, 3\)"):
        ToSourceGridd("pred", reference_key="image")(working)


def test_a_tensor_that_does_not_know_its_source_is_refused():
    with pytest.raises(InputError, match="original_affine and spatial_shape"):
        to_source_grid(MetaTensor(torch.zeros(1, 3, 3, 3)))
    with pytest.raises(InputError, match="decollate"):
        source_grid(
            MetaTensor(torch.zeros(1, 3, 3, 3), meta={"original_affine": np.zeros((2, 4, 4)), "spatial_shape": [3] * 3})
        )
