"""CT comes to RAS+ and 1 mm in one invertible step, keeps its left and right, and brings its bone along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd, Orientation, Spacing

from volseg.geometry import axis_codes, ras_mm_to_voxel, shear, to_ras, voxel_to_ras_mm
from volseg.transforms import ct
from volseg.transforms.bone import bone_mask, without_padding
from volseg.transforms.ct import BoneMaskd, CropPaddingd, HounsfieldWindowd, RasIsotropic, RasIsotropicd, ras_grid
from volseg.transforms.invert import SCAN, to_source_grid
from volseg.transforms.metatensor import to_metatensor
from volseg.transforms.resample import spacing_grid
from volseg.types import Volume

DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def scanner_affine(kind: str, spacing: tuple[float, float, float] = (0.8, 1.1, 2.0)) -> np.ndarray:
    """LAS, LPS, PIR..., or `oblique` (LPS turned by 13 and -21 degrees), or `tilted` (LPS, gantry at 14 degrees)."""
    codes = {"oblique": "LPS", "tilted": "LPS"}.get(kind, kind)
    affine = np.eye(4)
    affine[:3, :3] = np.array([DIRECTIONS[c] for c in codes]).T * np.array(spacing)
    if kind == "oblique":
        x, z = np.radians([13, -21])
        turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        affine[:3, :3] = turn_x @ turn_z @ affine[:3, :3]
    if kind == "tilted":
        a = np.radians(14)
        affine[:3, 1] = spacing[1] * np.array([0, -np.cos(a), np.sin(a)])
    affine[:3, 3] = (40, -60, 900)
    return affine


def lopsided_patient(kind: str) -> tuple[Volume, np.ndarray]:
    """Air with one ball, 6 mm in radius, 8 mm right, 6 mm anterior and 7 mm superior of the field's middle (RAS mm)."""
    shape, affine = (50, 44, 26), scanner_affine(kind)
    points = voxel_to_ras_mm(affine, np.argwhere(np.ones(shape)))
    ball_ras_mm = points.mean(axis=0) + np.array([8, 6, 7])
    inside = np.linalg.norm(points - ball_ras_mm, axis=1) < 6
    return Volume(np.where(inside, 500, -1000).reshape(shape).astype(np.int16), affine), ball_ras_mm


def center_of_ball_ras_mm(tensor: MetaTensor) -> np.ndarray:
    return voxel_to_ras_mm(tensor.affine.numpy(), np.argwhere(tensor[0].numpy() > -250)).mean(axis=0)


@pytest.mark.parametrize("kind", ["LAS", "LPS", "PIR", "SRP", "oblique"])
def test_ras_isotropic_is_monai_orientation_and_spacing(kind, rng):
    voxels = rng.uniform(-1000, 3000, (13, 10, 9)).astype(np.float32)
    tensor = to_metatensor(Volume(voxels, scanner_affine(kind)))
    ours, theirs = RasIsotropic(1.0)(tensor), Spacing((1.0, 1.0, 1.0))(Orientation("RAS", labels=None)(tensor))
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.affine, theirs.affine, atol=1e-10)
    assert (ours - theirs).abs().max() < 0.4


@pytest.mark.parametrize("kind", ["LAS", "LPS", "PIR", "oblique", "tilted"])
def test_left_is_left_after_the_round_trip(kind):
    volume, ball_ras_mm = lopsided_patient(kind)
    source = to_metatensor(volume)
    working = RasIsotropic(1.0)(source)
    assert axis_codes(working.affine.numpy()) == "RAS"
    assert shear(working.affine.numpy()) < 1e-9
    assert np.allclose(np.linalg.norm(working.affine.numpy()[:3, :3], axis=0), 1)
    assert np.abs(center_of_ball_ras_mm(working) - ball_ras_mm).max() < 0.25
    middle = (np.array(working.shape[1:]) - 1) / 2
    assert (ras_mm_to_voxel(working.affine.numpy(), ball_ras_mm) > middle + 2).all()
    back = to_source_grid(working)
    assert back.shape == source.shape and np.array_equal(back.affine.numpy(), volume.affine)
    a, b = back[0].numpy() > -250, volume.voxels > -250
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.93


@pytest.mark.parametrize("kind", ["LAS", "PIR", "oblique", "tilted"])
def test_the_ras_grid_is_that_of_turned_voxels(kind):
    voxels = np.zeros((5, 6, 7))
    affine, shape = ras_grid(scanner_affine(kind), voxels.shape)
    turned, turned_affine = to_ras(voxels, scanner_affine(kind))
    assert shape == turned.shape
    assert np.allclose(affine, turned_affine)


def test_invertd_undoes_the_one_step(rng):
    steps = Compose([RasIsotropicd(["image", "label"], 1.0, ["bilinear", "nearest"])])
    label = rng.integers(0, 2, (12, 10, 9)).astype(np.int16)
    volume = Volume(label, scanner_affine("PIR"))
    done = steps({"image": to_metatensor(volume), "label": to_metatensor(volume)})
    done["pred"] = done["label"]
    back = Invertd("pred", steps, orig_keys="image")(done)["pred"]
    assert back.shape == (1, *label.shape) and np.allclose(back.affine.numpy(), volume.affine)
    assert torch.equal(back.as_tensor(), to_source_grid(done["label"], mode="nearest").as_tensor())


def test_padding_marks_do_not_bleed_into_the_patient():
    # Every second 2 mm voxel along z is a mark; half-way between -1024 and 40 lies -492, between -3024 and 40 -1492.
    voxels = np.full((3, 3, 4), 40, np.int16)
    voxels[..., 1::2] = -3024
    tensor = to_metatensor(Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert RasIsotropic(1.0)(tensor)[0, 0, 0].tolist() == [40, -492, -1024, -492, 40, -492, -1024]
    assert float(RasIsotropic(1.0, low_hu=None)(tensor).min()) == -3024
    assert float(tensor.min()) == -3024


def test_a_mask_never_passes_for_hu_to_be_clipped():
    values = np.full((3, 3, 3), -5000, np.int16)
    assert float(RasIsotropic(1.0, "nearest")(to_metatensor(Volume(values, np.eye(4)))).min()) == -5000


def test_the_bone_mask_lies_on_the_image(rng):
    hu = rng.normal(40, 10, (70, 80, 60)).astype(np.float32)
    hu[:4] = hu[-4:] = hu[:, :4] = hu[:, -4:] = -1000
    hu[25:45, 30:50, 10:50] = 700  # a block of bone with a shell of 3 mm around its marrow
    hu[28:42, 33:47, 13:47] = 200
    image = to_metatensor(Volume(hu, scanner_affine("LPS", (1.0, 1.0, 1.0))))
    done = BoneMaskd()({"image": RasIsotropic(1.0)(image)})
    bone = done["bone"]
    assert bone.dtype == torch.uint8 and bone.shape == done["image"].shape
    assert torch.equal(bone.affine, done["image"].affine)
    truth = done["image"][0].numpy() > 150
    assert (bone[0].numpy() > 0)[truth].mean() > 0.97
    assert (bone[0].numpy() > 0).sum() < 1.2 * truth.sum()
    # 2 is marrow, deep inside; 1 is cortex, the shell.
    i, j, k = np.argwhere(truth).mean(axis=0).astype(int)
    assert int(bone[0, i, j, k]) == 2
    assert set(torch.unique(bone).tolist()) == {0, 1, 2}
    back = to_source_grid(bone, mode="nearest")
    assert back.shape == image.shape and back.dtype == torch.uint8


def test_on_a_coarse_grid_bone_is_searched_on_a_finer_one(rng, monkeypatch):
    hu = rng.normal(40, 10, (70, 80, 60)).astype(np.float32)
    hu[:4] = hu[-4:] = hu[:, :4] = hu[:, -4:] = -1000
    hu[25:45, 30:50, 10:50] = 700
    hu[28:42, 33:47, 13:47] = 200
    image = RasIsotropic(2.0)(to_metatensor(Volume(hu, scanner_affine("LPS", (1.0, 1.0, 1.0)))))
    seen = []
    monkeypatch.setattr(ct, "bone_mask", lambda voxels, affine: seen.append(voxels.shape) or bone_mask(voxels, affine))
    bone = BoneMaskd()({"image": image})["bone"]
    BoneMaskd(coarsest_mm=2.0)({"image": image})
    patient = [s.stop - s.start for s in without_padding(image[0].numpy())]  # the columns of air are no part of it
    assert patient[2] == image.shape[3] and patient[0] < image.shape[1]
    assert seen[0] == spacing_grid(image.affine.numpy(), patient, (1.5,) * 3)[1] and list(seen[1]) == patient
    assert bone.dtype == torch.uint8 and bone.shape == image.shape and torch.equal(bone.affine, image.affine)
    truth = image[0].numpy() > 150
    assert (bone[0].numpy() > 0)[truth].mean() > 0.95
    assert (bone[0].numpy() > 0).sum() < 1.5 * truth.sum()  # half a voxel of 2 mm around a block of 4 cm


@pytest.mark.parametrize("air", [(0, 0, 1), (16, 5, 7)])
def test_air_put_before_a_scan_moves_no_voxel_of_its_bone(rng, air):
    # 1.5 mm, where bone is sought, divides none of these shifts of a 2 mm grid.
    hu = rng.normal(40, 10, (1, 35, 40, 30)).astype(np.float32)
    hu[:, 12:22, 15:25, 5:25] = 700
    hu[:, 14:20, 17:23, 7:23] = 200
    padded = np.pad(hu, [(0, 0), *((n, 0) for n in air)], constant_values=-1000)
    alone, moved = (
        BoneMaskd()({"image": MetaTensor(torch.from_numpy(x), affine=np.diag([2.0, 2, 2, 1]))})["bone"].as_tensor()
        for x in (hu, padded)
    )
    assert alone.sum() > 1000
    assert torch.equal(moved[:, air[0] :, air[1] :, air[2] :], alone) and moved.sum() == alone.sum()


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (0.8, 1.1, 2.0)])
@pytest.mark.parametrize("kind", ["RAS", "LPS", "PIR", "oblique", "tilted"])
def test_padding_cut_off_leaves_what_an_unpadded_scan_gives(rng, kind, spacing):
    alone = Volume(rng.normal(40, 300, (14, 12, 10)).astype(np.float32), scanner_affine(kind, spacing))
    before, after = (3, 0, 5), (2, 4, 0)
    affine = alone.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    air = np.pad(alone.voxels, list(zip(before, after, strict=True)), constant_values=-1207)
    steps = Compose([CropPaddingd("image"), RasIsotropicd("image", 2.0)])
    given = {"image": to_metatensor(Volume(air, affine))}
    plain, moved = steps({"image": to_metatensor(alone)})["image"], steps(given)["image"]
    assert moved.shape == plain.shape and torch.allclose(moved.affine, plain.affine, atol=1e-9)
    assert (moved.as_tensor() - plain.as_tensor()).abs().max() < 0.01
    assert SCAN not in given["image"].meta and moved.meta["spatial_shape"].tolist() == list(air.shape)
    # On the way back the padding is empty, though the working grid's border ends on something.
    ones = MetaTensor(torch.ones(moved.shape), meta=dict(moved.meta))
    expected = np.pad(np.ones(alone.voxels.shape), list(zip(before, after, strict=True)))
    for item in (ones, decollate_batch(list_data_collate([{"image": ones}]))[0]["image"]):
        back = to_source_grid(item)
        assert np.allclose(back[0].numpy(), expected, atol=1e-5) and np.array_equal(back.affine.numpy(), affine)


def test_what_is_constant_throughout_is_not_cut_away():
    image = to_metatensor(Volume(np.full((5, 6, 7), -1000, np.int16), np.eye(4)))
    cut = CropPaddingd("image")({"image": image})["image"]
    assert cut.shape == image.shape and to_source_grid(cut).shape == image.shape


def test_the_window_runs_from_minus_one_to_one():
    hu = torch.tensor([[[[-1024.0, -200.0, 400.0, 1000.0, 3000.0]]]])
    assert HounsfieldWindowd("image")({"image": hu})["image"].ravel().tolist() == [-1, -1, 0, 1, 1]


def test_a_bundle_can_name_every_step():
    module = "volseg.transforms.ct."
    config = {
        "steps": [
            {"_target_": module + "RasIsotropicd", "keys": ["image", "label"], "mode": ["bilinear", "nearest"]},
            {"_target_": module + "BoneMaskd", "image_key": "image", "mask_key": "bone"},
            {"_target_": module + "HounsfieldWindowd", "keys": "image", "low": -200, "high": 1000},
            {"_target_": "volseg.transforms.invert.ToSourceGridd", "keys": "image", "mode": "linear"},
            {"_target_": "volseg.transforms.resample.AxisAlignedSpacingd", "keys": "image", "pixdim": [1, 1, 2]},
            {"_target_": "volseg.transforms.crops.CacheCropIndicesd", "label_key": "label"},
            {"_target_": "volseg.transforms.crops.RandBoneCropd", "keys": ["image", "label"], "roi_size": 8},
        ]
    }
    steps = ConfigParser(config).get_parsed_content("steps")
    assert [type(s).__name__ for s in steps] == [d["_target_"].rsplit(".", 1)[1] for d in config["steps"]]
