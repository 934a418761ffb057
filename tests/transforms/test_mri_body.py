"""The patient in an MR image: no lesion is lost to the mask, and what is marked in air is no finding."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.inference.postprocess import LesionProbabilityd
from volseg.phantoms.mri import MriOptions, mri_phantom
from volseg.transforms.mri_body import MrBodyMaskd, mr_body_mask


def ball_in_air(scale=1.0, fluid=1.0):
    """A ball of tissue with a dark hole and a bright rod inside noise of 2 %; (X, Y, Z) and where the ball is."""
    at = np.indices((60, 60, 40)) - np.array([30, 30, 20]).reshape(3, 1, 1, 1)
    ball = np.linalg.norm(at, axis=0) < 18
    field = np.where(ball, 100.0, 0.0)
    field[np.linalg.norm(at, axis=0) < 5] = 0
    field[(np.abs(at[0]) < 3) & (at[1] > 8) & (at[1] < 15) & ball] = 100 * fluid
    noise = np.random.default_rng(2).normal(0, 2.0, (2, *field.shape))
    return scale * np.hypot(field + noise[0], noise[1]), ball


@pytest.mark.parametrize("scale", [1e-3, 1.0, 5e3])
@pytest.mark.parametrize("fluid", [1.0, 12.0])
def test_it_is_the_tissue_with_its_holes_on_any_scale_and_beside_bright_fluid(scale, fluid):
    image, ball = ball_in_air(scale, fluid)
    mask = mr_body_mask(image, np.diag([1.5, 1.5, 1.5, 1]))
    assert (mask & ball).sum() / ball.sum() > 0.97
    assert (mask & ~ball).sum() / ball.sum() < 0.25  # blocks of 3 mm are coarser than the surface


@pytest.mark.parametrize("channel", ["T1", "T2", "STIR"])
def test_lesions_of_the_phantom_lie_inside(channel):
    for seed in range(3):
        phantom = mri_phantom(
            np.random.default_rng(seed), MriOptions(channels=(channel,), size_mm=(80.0, 130.0, 120.0))
        )
        volume = phantom.volumes[channel]
        mask = mr_body_mask(volume.voxels.astype(np.float32), volume.affine)
        lesions = phantom.instances > 0
        assert lesions.any() and (mask & lesions).sum() / lesions.sum() > 0.98


def test_the_body_axis_is_told_by_direction_not_by_the_millimetres_of_a_thick_slice():
    """Sagittal slices of 4.4 mm, tilted by 12 degrees: a step across them climbs 0.91 mm, one along the spine 0.68."""
    i, j, _ = np.indices((20, 160, 160))
    image = np.where((abs(i - 9.5) < 9) & (abs(j - 80) < 65), 400.0, 5.0)
    airway = ((i - 10) * 4.4) ** 2 + ((j - 80) * 0.7) ** 2 < 9**2  # open at both ends: closed in axial planes only
    image[airway] = 5.0
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) @ np.diag([4.4, 0.7, 0.7])
    assert abs(affine[2, 0]) > abs(affine[2, 2])
    for grid in (np.diag([4.4, 0.7, 0.7, 1.0]), affine):
        assert mr_body_mask(image, grid)[airway].mean() > 0.95


def test_an_image_that_was_normalised_or_is_empty_is_all_patient():
    image, _ = ball_in_air()
    assert mr_body_mask(image - image.mean(), np.eye(4)).all()
    assert mr_body_mask(np.zeros_like(image), np.eye(4)).all()


def test_a_mark_in_air_is_dropped_and_one_in_the_patient_stays():
    image, _ = ball_in_air()
    tensor = MetaTensor(torch.from_numpy(image[None]).float(), affine=torch.diag(torch.tensor([1.5, 1.5, 1.5, 1.0])))
    data = MrBodyMaskd(("T1", "T2"))({"T2": tensor})
    assert data["body"].shape == tensor.shape
    logits = torch.zeros(2, *tensor.shape[1:])
    logits[1, 2:5, 2:5, 2:5] = logits[1, 38:41, 30:33, 18:21] = 9
    data["pred"] = MetaTensor(logits, affine=tensor.affine)
    found = LesionProbabilityd("pred", bone_key="body")(data)["probability"][0]
    assert found[3, 3, 3] == 0
    assert found[39, 31, 19] > 0.99
