"""MONAI's LoadImaged through our readers: the same geometry, the same refusals, no silent fallback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged

from volseg.errors import InputError
from volseg.io.monai_reader import LoadStudyd


def test_it_is_a_load_imaged_with_channel_first(ct_nifti) -> None:
    load = LoadStudyd(keys=["image"])
    assert isinstance(load, LoadImaged)
    image = load({"image": str(ct_nifti())})["image"]
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, 8, 7, 6) and image.dtype == torch.float32
    np.testing.assert_allclose(image.affine.numpy(), np.diag([0.8, 0.9, 2.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(image.meta["original_affine"], image.affine.numpy())
    assert list(image.meta["spatial_shape"]) == [8, 7, 6]
    assert image.meta["filename_or_obj"].endswith("ct.nii.gz")


def test_it_agrees_with_monais_reader_on_a_good_file(ct_nifti) -> None:
    path = str(ct_nifti())
    ours, theirs = LoadStudyd(keys="image")({"image": path})["image"], LoadImaged(
        keys="image", reader="NibabelReader", ensure_channel_first=True
    )({"image": path})["image"]  # fmt: skip
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert torch.allclose(ours.affine, theirs.affine)


def test_a_dicom_folder_is_an_image(series) -> None:
    image = LoadStudyd(keys=["image"])({"image": series()})["image"]
    assert image.shape == (1, 5, 6, 4)
    np.testing.assert_allclose(image.affine[:3, 3].numpy(), [10, -20, 100])


def test_label_maps_keep_their_integers(ct_nifti) -> None:
    data = (np.arange(336) % 40000).astype(np.uint16).reshape(8, 7, 6) * 150
    label = LoadStudyd(keys=["label"], dtype=np.int32)({"label": ct_nifti(data=data)})["label"]
    assert label.dtype == torch.int32
    np.testing.assert_array_equal(label[0].numpy(), data)


@pytest.mark.parametrize("broken", ["missing-slice", "nan"])
def test_it_refuses_what_monai_repairs(series, ct_nifti, broken) -> None:
    path = series(ks=[0, 1, 3]) if broken == "missing-slice" else ct_nifti(data=np.full((4, 4, 4), np.nan, np.float32))
    with pytest.raises(InputError):
        LoadStudyd(keys=["image"])({"image": path})


def test_another_modality_than_the_one_asked_for_is_refused(series, ct_nifti) -> None:
    folder = series(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    assert LoadStudyd(keys="image")({"image": folder})["image"].meta["channel"] == "MR"
    with pytest.raises(InputError, match=r"wrong-modality: .*CT is read here; the study holds MR") as refusal:
        LoadStudyd(keys="image", channel="CT")({"image": folder})
    assert "\n" not in refusal.value.message
    ct = LoadStudyd(keys="image")({"image": series(folder="another")})["image"]
    label = ct_nifti(data=np.zeros(ct.shape[1:], np.uint8), affine=ct.affine.numpy())
    case = {"image": series(folder="another"), "label": label}
    assert set(LoadStudyd(keys=["image", "label"], channel="CT")(case)) == {"image", "label"}


@pytest.mark.parametrize("keys", [(["image", "label"],), ("label", "image")], ids=["together", "label first"])
def test_a_label_that_lies_elsewhere_than_its_image_is_refused(ct_nifti, keys) -> None:
    """A mask saved without the scan's affine has its shape, and would be turned another way than the scan."""
    flipped = np.diag([-0.8, -0.9, 2.0, 1.0])
    case = {"image": ct_nifti(affine=flipped), "label": ct_nifti("a.nii.gz", np.zeros((8, 7, 6), np.uint8), flipped)}
    for key in keys:
        case = LoadStudyd(keys=key)(case)
    assert case["label"].shape == (1, 8, 7, 6)
    case = {"image": ct_nifti(affine=flipped), "label": ct_nifti("b.nii.gz", np.zeros((8, 7, 6), np.uint8))}
    with pytest.raises(
        InputError, match=r"label-grid: label b\.nii\.gz does not lie on the grid of its image: .* mm off"
    ):
        for key in keys:
            case = LoadStudyd(keys=key)(case)


def test_images_of_one_grid_become_channels(ct_nifti) -> None:
    paths = [ct_nifti("a.nii.gz"), ct_nifti("b.nii.gz")]
    image = LoadStudyd(keys=["image"])({"image": paths})["image"]
    assert image.shape == (2, 8, 7, 6)


def test_a_bundle_config_can_name_it(ct_nifti) -> None:
    parser = ConfigParser({"load": {"_target_": "volseg.io.monai_reader.LoadStudyd", "keys": ["image"]}})
    load = Compose([parser.get_parsed_content("load")])
    assert load({"image": str(ct_nifti())})["image"].shape == (1, 8, 7, 6)


def test_metadata_can_be_returned_beside_the_image(ct_nifti) -> None:
    out = LoadStudyd(keys=["image"], image_only=False)({"image": str(ct_nifti())})
    assert list(out["image_meta_dict"]["spatial_shape"]) == [8, 7, 6]
