"""Surface distances: worked by hand on anisotropic grids, against MONAI and DeepMind's surface-distance."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

from volseg.evaluation.surface import surface_distances, surface_points

AFFINE = np.diag([-1.0, 1.5, 4.0, 1.0])


def box(*spans: tuple[int, int], shape=(24, 20, 12)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in spans)] = True
    return mask


def blob(rng: np.random.Generator, shape=(18, 16, 10)) -> np.ndarray:
    return ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0.02


@pytest.fixture
def deepminds(monkeypatch):
    """The package surface-distance from PyPI, with the names that newer numpy and scipy no longer have."""
    package = pytest.importorskip("surface_distance", reason="surface-distance is not installed")
    metrics = importlib.import_module("surface_distance.metrics")
    old_numpy = SimpleNamespace(**{name: getattr(np, name) for name in np.__all__ if hasattr(np, name)}, Inf=np.inf)
    monkeypatch.setattr(metrics, "np", old_numpy)
    monkeypatch.setattr(metrics, "ndimage", SimpleNamespace(filters=ndimage, morphology=ndimage))
    monkeypatch.setattr(
        metrics, "_sort_distances_surfels", lambda d, a: tuple(np.array(sorted(zip(d, a, strict=True))).T)
    )
    return package


def test_a_shift_along_the_long_voxel_axis_is_measured_in_mm():
    shifted = surface_distances(box((5, 15), (5, 15), (3, 7)), box((5, 15), (5, 15), (4, 8)), AFFINE)
    assert shifted.hausdorff_mm(100) == pytest.approx(4.0)
    assert surface_distances(box((5, 15), (5, 15), (3, 7)), box((6, 16), (5, 15), (3, 7)), AFFINE).hausdorff_mm(
        100
    ) == pytest.approx(1.0)


def test_a_slab_against_a_thicker_one_by_hand():
    # Two wide slabs of 8 and 12 mm that share their lower face: apart from the rim, one face of each lies 4 mm off.
    thin, thick = box((0, 60), (0, 40), (2, 4), shape=(60, 40, 8)), box((0, 60), (0, 40), (2, 5), shape=(60, 40, 8))
    distances = surface_distances(thin, thick, AFFINE)
    face, rim_thin, rim_thick = 60 * 60, 240 * 8, 240 * 12  # mm²; 60 x 60 mm
    assert distances.predicted_mm2.sum() == pytest.approx(2 * face + rim_thin, rel=0.03)  # edges are bevelled
    assert distances.true_mm2.sum() == pytest.approx(2 * face + rim_thick, rel=0.03)
    far = 2 * face + 240 * 4 / 2  # both upper faces, and the upper half of the rim's extra 4 mm
    assert distances.nsd(2.0) == pytest.approx(1 - far / (4 * face + rim_thin + rim_thick), abs=0.03)
    assert distances.nsd(4.0) == 1.0 and distances.hd95_mm == pytest.approx(4.0)
    assert 1.4 < distances.assd_mm < 2.0


def test_identical_masks_touch_everywhere(rng):
    mask = blob(rng)
    same = surface_distances(mask, mask, AFFINE)
    assert (same.hd95_mm, same.assd_mm, same.nsd(0.0)) == (0, 0, 1)


def test_the_area_of_a_box_is_nearly_its_faces():
    _, areas = surface_points(box((2, 22), (2, 18), (2, 10)), AFFINE)
    assert areas.sum() == pytest.approx(2 * (20 * 24 + 20 * 32 + 24 * 32), rel=0.05)


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0, 4.0])
def test_nsd_agrees_with_monai(rng, tolerance):
    predicted, truth = blob(rng), blob(rng)
    p, t = (torch.from_numpy(m[None, None].astype(np.uint8)) for m in (predicted, truth))
    theirs = compute_surface_dice(
        p, t, [tolerance], include_background=True, spacing=(1.0, 1.5, 4.0), use_subvoxels=True
    )
    assert surface_distances(predicted, truth, AFFINE).nsd(tolerance) == pytest.approx(theirs.item(), abs=1e-5)


def test_all_numbers_agree_with_surface_distance(rng, deepminds):
    predicted, truth = blob(rng), blob(rng)
    theirs = deepminds.compute_surface_distances(truth, predicted, [1.0, 1.5, 4.0])
    ours = surface_distances(predicted, truth, AFFINE)
    assert ours.hd95_mm == pytest.approx(deepminds.compute_robust_hausdorff(theirs, 95))
    assert ours.nsd(2.0) == pytest.approx(deepminds.compute_surface_dice_at_tolerance(theirs, 2.0))
    there, back = deepminds.compute_average_surface_distance(theirs)
    weights = ours.true_mm2.sum(), ours.predicted_mm2.sum()
    assert ours.assd_mm == pytest.approx(np.average([there, back], weights=weights))


def test_what_emptiness_means():
    nothing, something = box((0, 0), (0, 0), (0, 0)), box((2, 5), (2, 5), (2, 5))
    both = surface_distances(nothing, nothing, AFFINE)
    assert (both.hd95_mm, both.assd_mm, both.nsd()) == (0, 0, 1)
    for predicted, truth in ((nothing, something), (something, nothing)):
        one = surface_distances(predicted, truth, AFFINE)
        assert math.isinf(one.hd95_mm) and math.isinf(one.assd_mm) and one.nsd(1e6) == 0


def test_turning_both_masks_with_their_frame_changes_nothing(rng):
    predicted, truth = blob(rng), blob(rng)
    straight = surface_distances(predicted, truth, AFFINE)
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [100, -200, 300]
    oblique = surface_distances(predicted, truth, turn @ AFFINE)
    assert oblique.hd95_mm == pytest.approx(straight.hd95_mm) and oblique.nsd(1.5) == pytest.approx(straight.nsd(1.5))


def test_a_mask_at_the_border_of_the_grid_is_closed_there():
    inner, outer = box((1, 4), (1, 4), (1, 4), shape=(5, 5, 5)), box((0, 3), (0, 3), (0, 3), shape=(3, 3, 3))
    assert surface_points(inner, AFFINE)[1].sum() == pytest.approx(surface_points(outer, AFFINE)[1].sum())


def test_distant_components_cost_no_more_than_their_surfaces(rng):
    # One lesion missed far away: its whole surface is far, and the 95th percentile says so.
    truth = box((2, 5), (2, 5), (2, 5)) | box((18, 21), (15, 18), (8, 11))
    missed = surface_distances(box((2, 5), (2, 5), (2, 5)), truth, AFFINE)
    assert missed.hd95_mm > 25 and missed.nsd(2.0) == pytest.approx(2 / 3, abs=1e-6)


def test_shapes_and_tolerances_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        surface_distances(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), AFFINE)
    same = surface_distances(np.ones((2, 2, 2)), np.ones((2, 2, 2)), AFFINE)
    with pytest.raises(ValueError, match="tolerance"):
        same.nsd(-1)
