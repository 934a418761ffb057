"""MR sequences come onto one grid, at the right place, each normalised; what cannot is refused with its millimetres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose
from scipy import ndimage

from volseg.errors import InputError, UsageError
from volseg.geometry import axis_codes, voxel_to_ras_mm
from volseg.io import read_mri_study, read_volume
from volseg.transforms.invert import to_source_grid
from volseg.transforms.metatensor import to_metatensor
from volseg.transforms.mri import (
    CorrectBiasd,
    RegisterRigidd,
    StackSequencesd,
    ZScored,
    grid_overlap,
    stack_sequences,
    study_tensors,
    to_reference_grid,
    z_score,
)
from volseg.transforms.mri_bias import correct_bias
from volseg.transforms.mri_registration import RegistrationLimits, register_rigid
from volseg.types import Volume

SHAPE = (24, 40, 36)


def grid(spacing=(2.0, 1.0, 1.2), position=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = position
    return affine


def patient(affine: np.ndarray, shape=SHAPE, *, inverted: bool = False, channel: str = "T1") -> MetaTensor:
    """Three unlike balls and a rod in a body, the same in RAS mm whatever the grid; grey values may be exchanged."""
    p = voxel_to_ras_mm(affine, np.moveaxis(np.indices(shape), 0, -1)).reshape(-1, 3)
    field = np.where(((p - (23, 20, 21)) ** 2 / np.array([21, 18, 19]) ** 2).sum(1) < 1, 300.0, 0.0)
    for center, radius, value in (((15, 14, 14), 5, 800), ((32, 24, 15), 6, 550), ((22, 27, 31), 4, 950)):
        field[np.linalg.norm(p - center, axis=1) < radius] = value
    field[(np.linalg.norm(p[:, :2] - (25, 11), axis=1) < 3) & (field > 0)] = 700
    if inverted:
        field = np.where(field > 0, 1100 - field, 0)
    noise = np.random.default_rng(5).normal(0, 12, field.shape)
    voxels = ndimage.gaussian_filter((field + np.abs(noise)).reshape(shape), 0.4).astype(np.float32)
    return to_metatensor(Volume(voxels, affine, channel))


def motion(shift, degrees, about=(23, 20, 21)) -> np.ndarray:
    a = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    to = np.eye(4)
    to[:3, 3] = about
    out = to @ turn @ np.linalg.inv(to)
    out[:3, 3] += shift
    return out


def test_the_overlap_of_two_boxes_is_counted_and_their_gap_measured() -> None:
    reference, shape = grid((1, 1, 1)), (24, 24, 24)
    assert grid_overlap(reference, shape, reference, shape).fraction == 1
    assert grid_overlap(grid((1, 1, 1), (12, 0, 0)), shape, reference, shape).fraction == pytest.approx(0.5)
    # Faces at 23.5 and at 30 - 0.5 along x, and 4 mm more along y: 6 and 4 mm apart.
    apart = grid_overlap(grid((1, 1, 1), (30, 28, 0)), shape, reference, shape)
    assert apart.fraction == 0 and apart.gap_mm == pytest.approx(np.hypot(6, 4), abs=1e-6)


def test_the_gap_of_a_turned_box_is_that_of_its_corner() -> None:
    turned = motion((0, 0, 0), 45, about=(0, 0, 0)) @ grid((1, 1, 1), (-5, -5, 0))
    turned[0, 3] += 40
    # An 11 mm square turned by 45 degrees about the middle of voxel (5, 5): its corner lies 7.78 mm before x = 40.
    apart = grid_overlap(turned, (11, 11, 11), grid((1, 1, 1), (-5, -5, 0)), (11, 11, 11))
    assert apart.gap_mm == pytest.approx(40 - 5.5 * np.sqrt(2) - 5.5, abs=0.01)


def test_sequences_that_do_not_meet_are_refused_with_the_millimetres() -> None:
    far = patient(grid(position=(0, 0, 100)), channel="T2")
    with pytest.raises(InputError, match=r"T2 and T1 do not overlap: 57 mm") as refusal:  # 99.4 - (35.5 x 1.2)
        to_reference_grid(far, patient(grid()))
    assert refusal.value.code == "grids-apart"
    little = patient(grid(position=(0, 37, 0)), channel="T2")
    with pytest.raises(InputError, match="% are due") as refusal:
        to_reference_grid(little, patient(grid()))
    assert refusal.value.code == "grids-overlap-little"


def test_resampled_sequences_lie_on_each_other() -> None:
    reference = patient(grid())
    other = patient(grid((1.4, 1.5, 0.9), (1.1, -0.7, 0.4)), (32, 27, 46))
    moved = to_reference_grid(other, reference)
    assert moved.shape == reference.shape and torch.equal(moved.affine, reference.affine)
    assert np.corrcoef(moved.numpy().ravel(), reference.numpy().ravel())[0, 1] > 0.9


def test_where_a_sequence_does_not_reach_it_is_zero() -> None:
    half = patient(grid(), (12, 40, 36), channel="T2")
    moved = to_reference_grid(z_score(half), patient(grid()))
    assert not moved[0, 13:].any() and moved[0, :12].abs().sum() > 0


@pytest.mark.parametrize("scale", [1.0, 37.0])
def test_the_z_score_does_not_know_the_scanners_scale(scale) -> None:
    tensor = patient(grid())
    scaled = MetaTensor(tensor * scale, meta=dict(tensor.meta))
    out = z_score(scaled)
    assert torch.allclose(out, z_score(tensor), atol=1e-3)
    body = tensor.numpy() > 0.1 * np.percentile(tensor.numpy(), 99)
    assert abs(out.numpy()[body].mean()) < 0.02 and out.numpy()[body].std() == pytest.approx(1, abs=0.03)


def test_the_z_score_of_a_constant_is_refused_and_a_spike_is_clipped() -> None:
    with pytest.raises(InputError, match="one single value"):
        z_score(to_metatensor(Volume(np.full((4, 4, 4), 7, np.int16), np.eye(4), "T1")))
    tensor = patient(grid())
    tensor[0, 3, 3, 3] = 1e6
    assert float(z_score(tensor).max()) == 8


def test_n4_takes_the_shading_out() -> None:
    clean = patient(grid())
    z = np.linspace(-1, 1, SHAPE[2])
    shaded = MetaTensor(clean * torch.from_numpy(np.exp(0.5 * z)).float(), meta=dict(clean.meta))
    out, span = correct_bias(shaded)
    body = (clean.numpy() > 250) & (clean.numpy() < 350)

    def slope(t: MetaTensor) -> float:
        return abs(np.polyfit(np.broadcast_to(z, t.shape)[body], np.log(t.numpy()[body]), 1)[0])

    assert slope(shaded) > 0.4 and slope(out) < 0.5 * slope(shaded)
    assert 1.2 < span < 5
    assert torch.equal(correct_bias(shaded)[0], out)
    normalised = z_score(clean)
    assert correct_bias(normalised) == (normalised, 1.0)


def test_registration_finds_a_known_motion_between_unlike_contrasts() -> None:
    fixed = patient(grid())
    moving = patient(grid((1.6, 1.1, 1.0), (0.4, -0.6, 0.2)), (30, 37, 42), inverted=True, channel="T2")
    truth = motion((2.0, -1.5, 1.0), 3)
    moving.affine = torch.from_numpy(truth @ moving.affine.numpy())
    moved, report = register_rigid(moving, fixed)
    points = np.array([[15.0, 14, 14], [32, 24, 15], [22, 27, 31]])
    left = voxel_to_ras_mm(report.matrix @ truth, points) - points
    assert np.linalg.norm(left, axis=1).max() < 0.8
    assert np.allclose(moved.affine.numpy(), report.matrix @ moving.affine.numpy())
    assert torch.equal(moved.as_tensor(), moving.as_tensor())
    assert report.rotation_degrees == pytest.approx(3, abs=1)
    assert "T2 onto T1: moved by" in report.line and report.information[1] > report.information[0]
    with pytest.raises(InputError, match=r"over 1 mm or 10°") as refusal:
        register_rigid(moving, fixed, limits=RegistrationLimits(shift_mm=1))
    assert refusal.value.code == "registration-diverged"


def test_what_finds_nothing_clearly_better_leaves_the_headers_alone() -> None:
    fixed, moving = patient(grid()), patient(grid(), inverted=True, channel="T2")
    moved, report = register_rigid(moving, fixed)
    assert torch.equal(moved.affine, moving.affine) and np.array_equal(report.matrix, np.eye(4))
    assert report.distance_mm == 0 and "left at the headers' positions" in report.line


def test_series_that_do_not_meet_are_not_registered() -> None:
    with pytest.raises(InputError, match="mm lie between them"):
        register_rigid(patient(grid(position=(0, 0, 200)), channel="T2"), patient(grid()))


def test_missing_sequences_are_zero_and_said_to_be_missing() -> None:
    series = {"T2": z_score(patient(grid(), channel="T2")), "STIR": z_score(patient(grid(), channel="STIR"))}
    image, present = stack_sequences(series)
    assert image.shape == (4, *SHAPE) and present.tolist() == [0, 0, 1, 1]
    assert not image[:2].any() and torch.equal(image[2].as_tensor(), series["T2"][0].as_tensor())


@pytest.mark.parametrize(
    ("series", "options", "error"),
    [
        ({}, {}, "mri-no-channel"),
        ({"FLAIR": torch.zeros(1, 2, 2, 2)}, {}, "mri-channel-unknown"),
        ({"T1": torch.zeros(3, 2, 2, 2)}, {}, "not-one-volume"),
        ({"T1": torch.zeros(1, 2, 2, 2)}, {"reference": "T2"}, "mri-channel-unknown"),
    ],
)
def test_what_cannot_be_stacked_is_refused(series, options, error) -> None:
    with pytest.raises((InputError, UsageError)) as refusal:
        stack_sequences({k: MetaTensor(v) for k, v in series.items()}, **options)
    assert refusal.value.code == error


def test_sagittal_slices_stay_thick_and_the_way_back_leads_to_the_reference() -> None:
    pir = np.array([[0, 0, 3.0, 0], [-0.8, 0, 0, 40], [0, -0.8, 0, 38], [0, 0, 0, 1.0]])
    steps = Compose([ZScored(), StackSequencesd(pixdim=(0, 1, 1))])
    t1 = patient(pir, (50, 48, 16))
    label = MetaTensor((t1 > 600).to(torch.uint8), meta=dict(t1.meta))
    done = steps({"T1": t1, "T2": patient(grid(), channel="T2"), "label": label})
    assert set(done) == {"image", "present", "label"}
    image = done["image"]
    assert axis_codes(image.affine.numpy()) == "RAS"
    assert np.allclose(np.diag(image.affine.numpy())[:3], (3, 1, 1)) and image.shape[1] == 16
    assert done["label"].shape[1:] == image.shape[1:] and torch.equal(done["label"].affine, image.affine)
    inside = done["label"][0] > 0
    assert image[0][inside].mean() > image[0][~inside].mean() + 1
    assert np.corrcoef(image[0].ravel(), image[2].ravel())[0, 1] > 0.8
    back = to_source_grid(image)
    assert back.shape[1:] == t1.shape[1:] and torch.equal(back.affine, t1.affine)
    assert list_data_collate([done, done])["present"].shape == (2, 4)


def test_a_label_on_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match="labels belong to the reference") as refusal:
        StackSequencesd()({"T1": patient(grid()), "label": patient(grid(), (24, 40, 30))})
    assert refusal.value.code == "label-grid"


def test_a_bundle_can_name_every_step() -> None:
    module = "volseg.transforms.mri."
    config = {
        "steps": [
            {"_target_": module + "CorrectBiasd", "keys": ["T1", "T2"], "work_mm": 4},
            {"_target_": module + "RegisterRigidd", "keys": ["T1", "T2"]},
            {"_target_": module + "ZScored", "keys": ["T1", "T2"]},
            {"_target_": module + "StackSequencesd", "keys": ["T1", "T2"], "pixdim": [0, 1, 1]},
        ]
    }
    steps = ConfigParser(config).get_parsed_content("steps")
    assert [type(s) for s in steps] == [CorrectBiasd, RegisterRigidd, ZScored, StackSequencesd]


def test_real_sequences_meet_and_the_cord_lies_on_the_cord(shared) -> None:
    """The cord was outlined by hand in both: 1.3 mm apart by the headers, nearer after registration."""
    data = shared / "data" / "sct_spine_mr"
    study = read_mri_study({"T1": data / "t1w.nii.gz", "T2": data / "t2.nii.gz"})
    done = Compose([RegisterRigidd(), ZScored(), StackSequencesd()])(study_tensors(study))
    assert done["image"].shape == (4, 42, 76, 77) and done["present"].tolist() == [1, 0, 1, 0]
    report = done["registration"]["T2"]
    cords = {name: read_volume(data / f"{name}_seg-manual.nii.gz")[0] for name in ("t1w", "t2")}

    def middles(volume: Volume, move: np.ndarray) -> dict[int, np.ndarray]:
        points = voxel_to_ras_mm(move @ volume.affine, np.argwhere(volume.voxels > 0))
        levels = np.rint(points[:, 2]).astype(int)
        return {int(z): points[levels == z, :2].mean(0) for z in np.unique(levels)}

    def apart_mm(move: np.ndarray) -> float:
        a, b = middles(cords["t1w"], np.eye(4)), middles(cords["t2"], move)
        return float(np.linalg.norm(np.mean([b[z] - a[z] for z in a.keys() & b.keys()], axis=0)))

    assert apart_mm(np.eye(4)) == pytest.approx(1.28, abs=0.1)
    assert apart_mm(report.matrix) < 0.8 and 1 < report.distance_mm < 2.5


def test_real_sequences_of_another_place_or_patient_are_refused(shared) -> None:
    data = shared / "data"
    t1 = to_metatensor(read_volume(data / "sct_spine_mr" / "t1w.nii.gz")[0])
    lesion = to_metatensor(read_volume(data / "sct_spine_mr" / "t2_fake_lesion.nii.gz")[0])
    with pytest.raises(InputError, match="106 mm lie between them"):
        to_reference_grid(lesion, t1)
    axial = to_metatensor(read_volume(data / "sct_spine_mr" / "t2s_uncropped.nii.gz")[0])
    assert to_reference_grid(z_score(axial), t1).shape == t1.shape


@pytest.mark.parametrize(
    "path",
    [
        "totalseg_ct/mr/example_mr_sm.nii.gz",
        "tptbox_vertebra/sample_mri/sub-mri_label-6_T2w.nii.gz",
        "sts015_ct_mr_pet/nifti_reference/MR_T1_image.nii.gz",
    ],
)
def test_real_series_alone_pass_the_whole_chain_and_come_back(shared, path) -> None:
    tensor = to_metatensor(read_volume(shared / "data" / path)[0])
    done = Compose([CorrectBiasd(), ZScored(), StackSequencesd(pixdim=(0, 1, 1))])({"T1": tensor})
    assert torch.isfinite(done["image"]).all() and 0.5 < float(done["image"][0].std()) < 2
    back = to_source_grid(done["image"])
    assert back.shape[1:] == tensor.shape[1:] and torch.equal(back.affine, tensor.affine)
