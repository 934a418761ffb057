"""HU and bone mask in, channels out: the windows by hand, the mask's levels, metadata kept, bad arguments refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from volseg.errors import UsageError
from volseg.transforms.bone_context import BoneContextd
from volseg.transforms.ct import BoneMaskd, RasIsotropicd


def row(values, dtype=torch.int16) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)


def test_each_window_is_a_channel_and_bone_is_the_last() -> None:
    d = BoneContextd(windows_hu=[(-250, 1050), (-150, 450)])(
        {"image": row([-2000, -150, 150, 400, 3000]), "bone": row([0, 0, 1, 2, 0], torch.uint8)}
    )
    assert d["image"].shape == (3, 5, 1, 1) and d["image"].dtype == torch.float32
    wide, marrow, bone = d["image"][..., 0, 0]
    assert wide.tolist() == pytest.approx([-1, 2 * 100 / 1300 - 1, 2 * 400 / 1300 - 1, 0, 1], abs=1e-6)
    assert marrow.tolist() == pytest.approx([-1, -1, 0, 2 * 550 / 600 - 1, 1], abs=1e-6)
    assert bone.tolist() == [-1, -1, 0, 1, -1]
    assert d["bone"].ravel().tolist() == [0, 0, 1, 2, 0]


def test_a_mask_rotated_with_its_image_keeps_the_values_between() -> None:
    d = BoneContextd()({"image": row([100.0, 100.0], torch.float32), "bone": row([0.5, 1.75], torch.float32)})
    assert d["image"][-1].ravel().tolist() == pytest.approx([-0.5, 0.75])


def test_the_channels_remember_where_they_came_from(bone_block) -> None:
    hu, affine, _ = bone_block
    first = {"image": MetaTensor(torch.from_numpy(hu)[None].float(), affine=torch.from_numpy(affine))}
    walk = Compose([RasIsotropicd("image", spacing_mm=1.5), BoneMaskd(), BoneContextd()])
    d = walk(first)
    assert d["image"].shape[1:] == d["bone"].shape[1:] and len(d["image"]) == 3
    np.testing.assert_allclose(d["image"].affine, d["bone"].affine)
    d["pred"] = d["image"].clone()
    back = Invertd("pred", walk, orig_keys="image", nearest_interp=False)(d)
    assert back["pred"].shape == (3, *hu.shape)


@pytest.mark.parametrize("window", [(100, 100), (200, -200)])
def test_an_empty_or_reversed_window_is_refused(window) -> None:
    with pytest.raises(UsageError, match="from low to high"):
        BoneContextd(windows_hu=[window])


def test_an_image_that_has_its_channels_already_is_refused() -> None:
    with pytest.raises(UsageError, match="3 channels"):
        BoneContextd()({"image": torch.zeros(3, 2, 2, 2), "bone": torch.zeros(1, 2, 2, 2)})
