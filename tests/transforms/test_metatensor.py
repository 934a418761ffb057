"""A Volume becomes a MetaTensor and comes back, and nothing of it is lost or shared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import list_data_collate

from volseg.errors import UsageError
from volseg.transforms.metatensor import to_metatensor, to_volume
from volseg.types import Volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0, 2.5, -4], [0, -1.1, 0, 7], [0, 0, 0, 1.0]])


def test_there_and_back():
    volume = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE, "CT", "1.2.3")
    tensor = to_metatensor(volume, name="case_1")
    assert tensor.shape == (1, 3, 4, 5) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.affine.numpy(), AFFINE)
    assert np.array_equal(tensor.meta["original_affine"], AFFINE)
    assert tensor.meta["spatial_shape"].tolist() == [3, 4, 5]
    assert tensor.meta["filename_or_obj"] == "case_1"
    back = to_volume(tensor)
    assert np.array_equal(back.voxels, volume.voxels) and np.array_equal(back.affine, AFFINE)
    assert (back.channel, back.series_uid) == ("CT", "1.2.3")


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64, ">i2"])
def test_any_stored_type_and_any_strides_will_do(dtype):
    voxels = np.arange(60).astype(dtype).reshape(5, 4, 3).transpose(2, 1, 0)[::-1]
    tensor = to_metatensor(Volume(voxels, AFFINE))
    assert np.array_equal(tensor[0].numpy(), voxels)


def test_the_volume_is_not_touched_through_the_tensor():
    volume = Volume(np.zeros((2, 2, 2), np.float32), AFFINE.copy())
    tensor = to_metatensor(volume)
    tensor += 1
    tensor.affine[0, 0] = 99
    assert not volume.voxels.any() and volume.affine[0, 0] == -0.8


def test_volumes_without_a_series_uid_can_be_batched():
    items = [{"image": to_metatensor(Volume(np.zeros((2, 2, 2), np.float32), AFFINE))} for _ in range(2)]
    assert list_data_collate(items)["image"].shape == (2, 1, 2, 2, 2)
    assert to_volume(items[0]["image"]).series_uid is None


def test_two_channels_are_not_one_volume():
    with pytest.raises(UsageError, match=r"\(2, 3, 3, 3\)"):
        to_volume(torch.zeros(2, 3, 3, 3))
