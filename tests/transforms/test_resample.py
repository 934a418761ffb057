"""Resampling gives MONAI's grid and values where MONAI is right, and straight anatomy where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Invertd, Spacing, SpatialResample

from volseg.geometry import voxel_to_ras_mm
from volseg.transforms.interpolate import interpolate, separable_axes
from volseg.transforms.resample import AxisAlignedSpacing, AxisAlignedSpacingd, resample_to_grid, spacing_grid

HU_RANGE = 4000.0
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def rotation(*, about_x_degrees: float, about_z_degrees: float) -> np.ndarray:
    x, z = np.radians([about_x_degrees, about_z_degrees])
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return turn_x @ turn_z


UPRIGHT, OBLIQUE = np.eye(3), rotation(about_x_degrees=13, about_z_degrees=-21)


def grid(codes: str, spacing: tuple[float, float, float], turn: np.ndarray = UPRIGHT) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world, sign = WORLD[code]
        affine[world, axis] = sign * spacing[axis]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-13.0, 7.0, -100.0)
    return affine


def tilted(degrees: float, spacing: tuple[float, float, float] = (0.8, 0.8, 2.5)) -> np.ndarray:
    """LPS, gantry tilted: the table moves along S, the rows of a slice lean into it."""
    affine = grid("LPS", spacing)
    a = np.radians(degrees)
    affine[:3, 1] = spacing[1] * np.array([0, -np.cos(a), np.sin(a)])
    return affine


def tensor_of(voxels: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine))


@pytest.mark.parametrize("turn", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize("spacing", [(0.7, 1.3, 2.5), (0.78, 0.78, 1.0), (1.0, 3.0, 1.0005)])
@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SRP"])
def test_the_grid_and_the_values_are_those_of_monai_spacing(codes, spacing, turn, rng):
    voxels = rng.uniform(-1000, 3000, (17, 23, 12)).astype(np.float32)
    tensor = tensor_of(voxels, grid(codes, spacing, turn))
    theirs, ours = Spacing((1.0, 1.0, 1.0))(tensor), AxisAlignedSpacing(1.0)(tensor)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.affine, theirs.affine, atol=1e-10)
    assert (ours - theirs).abs().max() < 1e-4 * HU_RANGE


@pytest.mark.parametrize("pixdim", [(0.5, 0.5, 1.0), (3.0, 0.9, 2.0), (-1.0, 1.0, 4.0)])
def test_growing_and_shrinking_axes_mix(pixdim, rng):
    tensor = tensor_of(rng.uniform(-1000, 3000, (11, 9, 14)).astype(np.float32), grid("LPS", (1.1, 0.8, 2.0)))
    theirs, ours = Spacing(pixdim)(tensor), AxisAlignedSpacing(pixdim)(tensor)
    assert ours.shape == theirs.shape and torch.allclose(ours.affine, theirs.affine, atol=1e-10)
    assert (ours - theirs).abs().max() < 1e-4 * HU_RANGE


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_memory_order_type_and_slabs_do_not_change_a_value(order, dtype, rng, monkeypatch):
    voxels = rng.integers(-1000, 3000, (31, 29, 40)).astype(dtype)
    tensor = tensor_of(np.array(voxels, order=order), grid("LAS", (0.7, 1.3, 2.5)))
    whole = AxisAlignedSpacing(1.0)(tensor_of(voxels.astype(np.float32), grid("LAS", (0.7, 1.3, 2.5))))
    monkeypatch.setattr("volseg.transforms.interpolate.SLAB_BYTES", 1)
    slabs = AxisAlignedSpacing(1.0)(tensor)
    assert slabs.dtype == torch.float32
    assert torch.equal(slabs.as_tensor(), whole.as_tensor())


def test_a_ramp_stays_a_ramp():
    # 2 mm voxels hold 0, 20, 40, 60 HU: 10 HU per mm, so 1 mm voxels hold 0, 10, ..., 60.
    voxels = np.broadcast_to(np.arange(0, 80, 20, dtype=np.float32)[:, None, None], (4, 3, 5)).copy()
    ours = AxisAlignedSpacing(1.0)(tensor_of(voxels, np.diag([2.0, 1.0, 1.0, 1.0])))
    assert ours[0, :, 1, 2].tolist() == [0, 10, 20, 30, 40, 50, 60]


def test_a_nan_spoils_only_its_neighbours():
    voxels = np.zeros((9, 8, 7), np.float32)
    voxels[4, 4, 3] = np.nan
    ours = AxisAlignedSpacing((1.0, 1.0, 2.0))(tensor_of(voxels, np.diag([2.0, 2.0, 2.0, 1.0])))
    # Along each refined axis the NaN reaches the voxel itself and the two half-way ones; z is not interpolated.
    assert int(torch.isnan(ours).sum()) == 3 * 3


def test_nearest_keeps_the_dtype_and_makes_no_new_label(rng):
    labels = rng.integers(0, 5, (12, 10, 9)).astype(np.uint8)
    fine = AxisAlignedSpacing(0.7, "nearest")(tensor_of(labels, grid("LPS", (1.0, 1.3, 2.0))))
    assert fine.dtype == torch.uint8
    assert set(torch.unique(fine).tolist()) <= set(range(5))
    back = resample_to_grid(fine, affine=grid("LPS", (1.0, 1.3, 2.0)), shape=labels.shape, mode="nearest")
    assert np.array_equal(back[0].numpy(), labels)


def test_a_label_tie_goes_up_so_that_every_voxel_gets_the_same_share():
    labels = np.arange(4, dtype=np.uint8)[:, None, None]
    # 2 mm -> 1 mm: positions 0, .5, 1, 1.5, ...; rounding half to even would give 0 0 1 2 2 2 3.
    fine = AxisAlignedSpacing(1.0, "nearest")(tensor_of(labels, np.diag([2.0, 1.0, 1.0, 1.0])))
    assert fine[0, :, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 2), (6, 1, 1)])
def test_volumes_one_voxel_thin_are_volumes(size):
    ours = AxisAlignedSpacing(1.0)(tensor_of(np.full(size, 7, np.float32), grid("PIR", (2.0, 0.5, 3.0), OBLIQUE)))
    assert bool((ours == 7).all())


def test_invertd_undoes_it_with_either_interpolation(rng):
    spacing = AxisAlignedSpacingd(["image", "label"], 1.0, ["bilinear", "nearest"])
    steps = Compose([EnsureTyped(["image", "label"]), spacing])
    affine = grid("PIR", (1.4, 2.0, 0.8), OBLIQUE)
    labels = rng.integers(0, 3, (14, 9, 21)).astype(np.float32)
    done = steps({"image": tensor_of(labels * 100, affine), "label": tensor_of(labels, affine)})
    done["pred"] = done["label"].clone()
    back = Invertd("pred", steps, orig_keys="image", nearest_interp=True)(done)["pred"]
    assert back.shape == (1, 14, 9, 21)
    assert np.allclose(back.affine.numpy(), affine)
    nearest = resample_to_grid(done["label"], affine=affine, shape=labels.shape, mode="nearest")
    assert torch.equal(back.as_tensor(), nearest.as_tensor())
    image = steps.inverse({"image": done["image"], "label": done["label"]})["image"]
    assert image.shape == (1, 14, 9, 21) and image.applied_operations == []


def test_grids_turned_against_each_other_agree_with_monai(rng):
    tensor = tensor_of(rng.uniform(-1000, 3000, (15, 18, 11)).astype(np.float32), grid("LPS", (1.1, 0.8, 2.0)))
    target, shape = grid("RSA", (1.3, 1.0, 0.9), OBLIQUE), (13, 16, 20)
    target[:3, 3] = (-26, -10, -95)
    ours = resample_to_grid(tensor, affine=target, shape=shape)
    theirs = SpatialResample()(tensor, dst_affine=torch.from_numpy(target), spatial_size=shape)
    assert (ours - theirs).abs().max() < 1e-4 * HU_RANGE


def test_beyond_the_source_lies_what_was_asked_for():
    tensor = tensor_of(np.ones((4, 4, 4), np.float32), np.eye(4))
    for turn in (UPRIGHT, OBLIQUE):
        target = np.eye(4)
        target[:3, :3] = turn
        target[:3, 3] = -3 * turn.sum(axis=1)
        border = resample_to_grid(tensor, affine=target, shape=(9, 9, 9))
        filled = resample_to_grid(tensor, affine=target, shape=(9, 9, 9), outside=-1024.0)
        assert torch.allclose(border.as_tensor(), torch.ones(1))
        positions = voxel_to_ras_mm(target, np.argwhere(np.ones((9, 9, 9))))
        inside = ((positions > -0.5) & (positions < 3.5)).all(axis=1).reshape(9, 9, 9)
        assert np.array_equal(filled[0].numpy() > 0, inside)
        assert np.array_equal(filled[0].numpy() == -1024, ~inside)


def test_header_rounding_stays_on_the_fast_road_and_a_real_turn_does_not():
    rounded = np.diag([0.78, 0.78, 1.0, 1.0])
    rounded[0, 1] = 1e-6
    assert separable_axes(rounded, (512, 512, 275)) == (0, 1, 2)
    assert separable_axes(OBLIQUE, (512, 512, 275)) is None


def test_rounded_direction_cosines_do_not_move_the_first_voxel():
    affine = grid("LPS", (0.8, 0.8, 5.0), OBLIQUE)
    affine[:3, :3] = np.round(affine[:3, :3] / (0.8, 0.8, 5.0), 6) * (0.8, 0.8, 5.0)
    new, shape = spacing_grid(affine, (40, 50, 9), (1.0, 1.0, 1.0))
    assert np.array_equal(new[:3, 3], affine[:3, 3])
    # (39, 49, 8) steps of (.8, .8, 5) mm: 31.2, 39.2, 40 mm -> 32, 40, 41 voxels of 1 mm.
    assert shape == (32, 40, 41)


# A tilted gantry


def test_a_tilted_volume_lands_upright_and_whole():
    affine, shape = tilted(14), (40, 50, 12)
    new, size = spacing_grid(affine, shape, (1.0, 1.0, 1.0))
    assert np.array_equal(np.abs(new[:3, :3]), np.eye(3))
    # Height: 11 slices of 2.5 mm, and 49 rows of 0.8 mm leaning by sin 14 degrees = 27.5 + 9.48 mm -> 38 voxels.
    assert size == (33, 40, 38)
    corners = voxel_to_ras_mm(affine, [(0, 0, 0), (39, 49, 11), (0, 49, 11), (39, 0, 0)])
    in_new = voxel_to_ras_mm(np.linalg.inv(new), corners)
    assert (in_new > -1e-9).all() and (in_new <= np.array(size) - 1 + 1e-9).all()


def test_a_straight_rod_through_tilted_slices_comes_out_straight_in_mm():
    affine, shape = tilted(14), (40, 60, 16)
    points = voxel_to_ras_mm(affine, np.argwhere(np.ones(shape)))
    # A rod along S, 3 mm wide, in the middle of the field.
    middle = points.mean(axis=0)
    distance = np.linalg.norm((points - middle)[:, :2], axis=1)
    voxels = (1000 * np.exp(-0.5 * (distance / 3.0) ** 2)).reshape(shape).astype(np.float32)
    ours = AxisAlignedSpacing(1.0)(tensor_of(voxels, affine))[0].numpy()
    new, _ = spacing_grid(affine, shape, (1.0, 1.0, 1.0))
    centers = []
    for k in range(12, ours.shape[2] - 12):
        ij = np.argwhere(ours[:, :, k] > 100)
        weight = ours[:, :, k][tuple(ij.T)]
        ij_center = (ij * weight[:, None]).sum(axis=0) / weight.sum()
        centers.append(voxel_to_ras_mm(new, [*ij_center, k])[:2])
    assert len(centers) > 10
    assert np.abs(np.array(centers) - middle[:2]).max() < 0.1


def test_a_tilted_volume_is_surrounded_by_its_own_air_and_labels_by_background():
    affine, shape = tilted(14), (20, 30, 8)
    image = tensor_of(np.full(shape, 40, np.float32), affine)
    image[0, 0, 0, 0] = -1024
    label = tensor_of(np.ones(shape, np.uint8), affine)
    label[0, 0, 0, 0] = 0
    wedge = AxisAlignedSpacing(1.0)(image)[0, 8, :, :]
    assert float(wedge[0, 0]) == 40 or float(wedge[0, -1]) == 40
    assert int((wedge == -1024).sum()) > 50
    assert int((AxisAlignedSpacing(1.0, "nearest")(label) == 0).sum()) > 50


def test_a_tilted_volume_survives_the_round_trip():
    affine, shape = tilted(-14), (30, 40, 14)
    x, y, z = voxel_to_ras_mm(affine, np.argwhere(np.ones(shape))).T
    voxels = (100 * np.sin(x / 6) * np.cos(y / 5) * np.sin(z / 8)).reshape(shape).astype(np.float32)
    there = AxisAlignedSpacing(0.8)(tensor_of(voxels, affine))
    back = resample_to_grid(there, affine=affine, shape=shape)
    inner = (slice(2, -2),) * 3
    assert np.abs(back[0].numpy() - voxels)[inner].max() < 5


def test_interpolating_refuses_an_unknown_mode_by_name():
    with pytest.raises(Exception, match="bicubic"):
        interpolate(torch.zeros(1, 2, 2, 2), np.eye(4), (2, 2, 2), mode="bicubic")


def test_antialias_equals_torch_s_in_a_plane(rng):
    plane = torch.from_numpy(rng.normal(size=(1, 60, 43)).astype(np.float32))
    theirs = torch.nn.functional.interpolate(plane[None], size=(24, 20), mode="bilinear", antialias=True)[0]
    steps = np.array([60 / 24, 43 / 20, 1.0])
    voxel_map = np.diag([*steps, 1.0])
    voxel_map[:3, 3] = (steps - 1) / 2
    ours = interpolate(plane[..., None], voxel_map, (24, 20, 1), antialias=True)[..., 0]
    assert torch.allclose(ours, theirs, atol=1e-5)  # float32 weights on their side


def test_antialias_changes_nothing_towards_a_finer_grid_nor_labels(rng):
    tensor = tensor_of(rng.normal(size=(9, 8, 7)).astype(np.float32), grid("LPS", (3.0, 2.5, 2.0)))
    assert torch.equal(AxisAlignedSpacing(2.0)(tensor), AxisAlignedSpacing(2.0, antialias=True)(tensor))
    fine = tensor_of(rng.integers(0, 5, (20, 20, 20)).astype(np.uint8), grid("LPS", (0.7, 0.7, 1.0)))
    plain, wide = AxisAlignedSpacing(2.0, "nearest"), AxisAlignedSpacing(2.0, "nearest", antialias=True)
    assert torch.equal(plain(fine), wide(fine))


@pytest.mark.parametrize("turn", [UPRIGHT, OBLIQUE], ids=["same axes", "rotated against each other"])
def test_antialias_averages_noise_away_and_keeps_what_is_even(turn, rng):
    noise = tensor_of(rng.normal(100, 20, (64, 64, 40)).astype(np.float32), grid("LPS", (0.7, 0.7, 1.0)))
    affine = grid("RAS", (2.0, 2.0, 2.0), turn)
    affine[:3, 3] = voxel_to_ras_mm(noise.affine.numpy(), [32, 32, 20]) - 8 * affine[:3, :3].sum(axis=1)
    plain, wide = (
        resample_to_grid(noise, affine=affine, shape=(16, 16, 16), antialias=antialias) for antialias in (False, True)
    )
    assert float(wide.std()) < 0.35 * float(plain.std())
    assert float(wide.mean()) == pytest.approx(100, abs=1)
    even = resample_to_grid(torch.full_like(noise, 7.0), affine=affine, shape=(16, 16, 16), antialias=True)
    assert torch.allclose(even.as_tensor(), torch.tensor(7.0), atol=1e-4)


def test_the_way_back_from_an_antialiased_grid_is_the_plain_one(rng):
    smooth = np.add.outer(np.arange(40.0), np.add.outer(2 * np.arange(36.0), 3 * np.arange(30.0))).astype(np.float32)
    tensor = tensor_of(smooth, grid("LPS", (0.7, 0.8, 1.0)))
    step = AxisAlignedSpacing(2.0, antialias=True)
    back = step.inverse(step(tensor))
    assert back.shape == tensor.shape
    inner = (slice(None), *(slice(4, -5),) * 3)
    # A triangle that is sampled off its middle leans by a hundredth of a voxel; the slopes are 1, 2 and 3 a voxel.
    assert torch.allclose(back[inner], tensor[inner], atol=0.1)
