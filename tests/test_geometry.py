"""Law: millimetres, on grids turned, mirrored and sheared; nibabel is the twin where it knows the answer."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import InputError
from volseg.geometry import (
    axis_codes,
    box_corners_ras_mm,
    box_to_ras_mm,
    check_affine,
    is_axis_aligned,
    lps_to_ras,
    ras_mm_to_voxel,
    shear,
    spacing_mm,
    to_ras,
    voxel_to_ras_mm,
    voxel_volume_mm3,
    voxels_within,
    widened,
)


def turned(degrees: float, spacing=(0.8, 0.8, 2.5), origin=(-30.0, 12.0, 400.0)) -> np.ndarray:
    """A grid turned about the body's long axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def tilted(degrees: float) -> np.ndarray:
    """A gantry leant by `degrees`: the table moves along the body's axis, slices lie aslant."""
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    affine[:3, 1] = 0.7 * np.array([0, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    return affine


GRIDS = {"straight": turned(0), "turned": turned(25), "tilted": tilted(14), "mirrored": lps_to_ras(turned(10))}
each_grid = pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)


@each_grid
def test_voxels_and_millimetres_are_each_other_s_inverse(affine, rng):
    ijk = rng.uniform(-5, 60, (20, 3))
    mm = voxel_to_ras_mm(affine, ijk)
    np.testing.assert_allclose(mm, nib.affines.apply_affine(affine, ijk), atol=1e-9)
    np.testing.assert_allclose(ras_mm_to_voxel(affine, mm), ijk, atol=1e-9)


def test_spacing_volume_and_shear_of_a_tilted_gantry():
    assert spacing_mm(tilted(14)) == pytest.approx([0.7, 0.7, 3.0])
    assert voxel_volume_mm3(tilted(14)) == pytest.approx(0.7 * 0.7 * 3.0 * math.cos(math.radians(14)))
    assert shear(tilted(14)) == pytest.approx(math.sin(math.radians(14)))
    assert shear(turned(25)) == pytest.approx(0)


def test_lps_and_ras_are_two_flips_apart():
    affine = turned(25)
    assert voxel_to_ras_mm(lps_to_ras(affine), [1, 2, 3]) == pytest.approx(
        voxel_to_ras_mm(affine, [1, 2, 3]) * [-1, -1, 1]
    )
    np.testing.assert_array_equal(lps_to_ras(lps_to_ras(affine)), affine)


def test_a_box_reaches_from_face_to_face_of_its_voxels():
    assert box_to_ras_mm([2, 3, 4, 3, 5, 7], np.diag([1.0, 2.0, 3.0, 1.0])) == pytest.approx(
        [1.5, 5.0, 10.5, 2.5, 9.0, 19.5]
    )
    assert box_corners_ras_mm([0, 0, 0, 1, 1, 1], np.eye(4))[1] == pytest.approx([-0.5, -0.5, 0.5])


def test_a_turned_box_is_held_by_all_eight_corners():
    affine = turned(45, spacing=(1, 1, 1), origin=(0, 0, 0))
    box = box_to_ras_mm([0, 0, 0, 10, 10, 1], affine)
    corners = box_corners_ras_mm([0, 0, 0, 10, 10, 1], affine)
    assert corners.shape == (8, 3)
    assert (corners >= box[:3] - 1e-9).all() and (corners <= box[3:] + 1e-9).all()
    assert box[3] - box[0] == pytest.approx(10 * math.sqrt(2))  # two corners alone would give 0


@each_grid
def test_to_ras_moves_no_voxel_in_the_world(affine, rng):
    voxels = rng.integers(0, 100, (4, 5, 6))
    order = rng.permutation(3)
    given = affine.copy()
    given[:3, :3] = affine[:3, order] * [1, -1, 1]
    straight, out = to_ras(voxels, given)
    assert axis_codes(out) == "RAS"
    assert axis_codes(given) == "".join(nib.aff2axcodes(given))
    found = np.argwhere(np.ones(straight.shape))
    back = np.rint(ras_mm_to_voxel(given, voxel_to_ras_mm(out, found))).astype(int)
    np.testing.assert_array_equal(straight.ravel(), voxels[tuple(back.T)])


def test_quarter_turns_are_axis_aligned_others_are_not():
    assert is_axis_aligned(turned(90)) and is_axis_aligned(turned(0))
    assert not is_axis_aligned(turned(5)) and not is_axis_aligned(tilted(14))


@each_grid
def test_nothing_within_reach_lies_beyond_the_voxels_counted(affine, rng):
    directions = rng.standard_normal((2000, 3))
    ends = 12.0 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    steps = np.abs(ras_mm_to_voxel(affine, ends + affine[:3, 3]))
    reach = voxels_within(12.0, affine)
    assert (steps <= reach).all()
    assert (steps.max(axis=0) > reach - 1.1).all(), "and no more are counted than are needed"


def test_a_widened_box_stays_in_the_volume():
    assert widened((slice(2, 5), slice(0, 1), slice(8, 10)), (1, 3, 4), (10, 10, 10)) == (
        slice(1, 6),
        slice(0, 4),
        slice(4, 10),
    )
    with pytest.raises(ValueError, match="zip"):
        widened((slice(0, 1),), (1, 1), (4, 4))


@pytest.mark.parametrize(
    ("affine", "code"),
    [
        (np.full((4, 4), np.nan), "affine-not-finite"),
        (np.eye(3), "affine-not-finite"),
        (np.diag([1.0, 1.0, 0.0, 1.0]), "spacing-impossible"),
        (np.diag([1.0, 1.0, 500.0, 1.0]), "spacing-impossible"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "affine-singular"),
    ],
)
def test_an_affine_that_no_scanner_makes_is_refused_by_name(affine, code):
    with pytest.raises(InputError) as caught:
        check_affine(affine, "a.nii.gz")
    assert caught.value.code == code and "a.nii.gz" in str(caught.value)
