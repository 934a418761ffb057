"""Pictures as MONAI bundles load them: turned like the volume they were cut from, refused in one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volseg.errors import InputError
from volseg.io.monai_pictures import LoadPicturesd, are_pictures
from volseg.transforms.slices2d import as_rows


def saved(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_picture_comes_back_as_the_slice_it_was_cut_from(tmp_path, rng):
    slice_xy = rng.integers(0, 256, (6, 9)).astype(np.uint8)
    mask_xy = (slice_xy > 200).astype(np.uint8)
    item = {
        "image": saved(tmp_path / "i.png", as_rows(slice_xy)),
        "bone": saved(tmp_path / "b.png", as_rows(mask_xy) * np.uint8(255)),
        "label": saved(tmp_path / "l.png", as_rows(mask_xy) * np.uint8(255)),
    }
    loaded = LoadPicturesd()(item)
    assert loaded["image"].shape == (1, 6, 9, 1)
    assert np.array_equal(loaded["image"][0, ..., 0].numpy(), slice_xy)
    assert np.array_equal(loaded["label"][0, ..., 0].numpy(), mask_xy)


def test_mask_and_image_of_different_size_are_refused_with_both_sizes(tmp_path):
    item = {
        "image": saved(tmp_path / "i.png", np.zeros((8, 10), np.uint8)),
        "label": saved(tmp_path / "l.png", np.zeros((8, 12), np.uint8)),
    }
    with pytest.raises(InputError, match=r"size-differs: .*i\.png 10 x 8, .*l\.png 12 x 8"):
        LoadPicturesd(["image", "label"])(item)


def test_an_rgb_picture_is_refused_unless_its_channels_agree_and_that_is_allowed(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    same = saved(tmp_path / "same.png", np.stack([grey] * 3, -1))
    red = saved(tmp_path / "red.png", np.stack([grey, grey // 4, grey // 4], -1))
    with pytest.raises(InputError, match=r"picture-colour: same\.png: .*one grey channel is due"):
        LoadPicturesd("image")({"image": same})
    assert LoadPicturesd("image", grey_rgb=True)({"image": same})["image"].shape == (1, 8, 8, 1)
    with pytest.raises(InputError, match="channels differ by up to"):
        LoadPicturesd("image", grey_rgb=True)({"image": red})


def test_a_data_set_holds_pictures_or_volumes_but_not_both():
    pictures, volumes = [{"image": "a.JPG"}, {"image": "b.png"}], [{"image": "c.nii.gz"}, {"image": "dicom"}]
    assert are_pictures(pictures) and not are_pictures(volumes) and not are_pictures([])
    with pytest.raises(InputError, match="datalist-mixed"):
        are_pictures([*pictures, *volumes])
