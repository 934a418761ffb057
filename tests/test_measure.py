"""The measuring room, by hand: blocks whose volume and diameter fit on a sheet of paper."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from volseg import measure
from volseg.errors import InputError
from volseg.measure import (
    kind_limits_hu,
    label_lesions,
    lesion_kind,
    longest_axial_diameter_mm,
    measure_lesions,
    normal_marrow_hu,
)

NAN = math.nan
ANISOTROPIC = np.diag([1.0, 2.0, 3.0, 1.0])  # 1 x 2 x 3 mm, axes R, A, S


def block(shape=(12, 14, 16), start=(2, 3, 4), size=(3, 4, 5)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def turned(array: np.ndarray, affine: np.ndarray, order, flips) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels at the same places in the world, stored in another order."""
    out = affine.copy()
    out[:3, :3] = affine[:3, list(order)]
    array = array.transpose(order)
    for axis in flips:
        out[:3, 3] += out[:3, axis] * (array.shape[axis] - 1)
        out[:3, axis] *= -1
        array = np.flip(array, axis)
    return array, out


def rotated(affine: np.ndarray, degrees: float, axis: int = 0) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = (i for i in range(3) if i != axis)
    turn = np.eye(4)
    turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return turn @ affine


def test_a_block_has_the_volume_diameter_and_center_worked_out_on_paper():
    mask = block()
    hu = np.where(mask, 40.0, 200.0)
    hu[2, 3, 4], hu[4, 6, 8] = 10.0, 100.0
    affine = ANISOTROPIC.copy()
    affine[:3, 3] = -10, 5, 100
    (lesion,) = measure_lesions(
        mask.astype(np.uint16), hu, affine, probability=np.where(mask, 0.75, 0.0), marrow_hu=(200.0, 60.0)
    )
    assert lesion.volume_mm3 == pytest.approx(3 * 4 * 5 * 1 * 2 * 3)
    # Centers of opposite corners of a slice are 2 x 1 mm and 3 x 2 mm apart; three steps along y, so one step more.
    assert lesion.longest_axial_diameter_mm == pytest.approx(math.sqrt(2**2 + 6**2) * 4 / 3)
    assert lesion.center_ras_mm == pytest.approx((-10 + 3, 5 + 2 * 4.5, 100 + 3 * 6))
    assert lesion.box == (2, 3, 4, 5, 7, 9)
    assert (lesion.min_hu, lesion.max_hu) == (10, 100)
    assert lesion.mean_hu == pytest.approx((58 * 40 + 110) / 60)
    assert lesion.score == pytest.approx(0.75)
    assert lesion.kind == "lytic"
    assert lesion.id == 1


@pytest.mark.parametrize(
    ("size", "diameter_mm"),
    [((1, 1, 1), 2.0), ((1, 1, 9), 2.0), ((5, 1, 1), 5.0), ((1, 5, 2), 10.0), ((2, 2, 1), 2 * math.sqrt(5))],
)
def test_thin_lesions_have_the_diameter_of_their_voxels(size, diameter_mm):
    assert longest_axial_diameter_mm(block(size=size), ANISOTROPIC) == pytest.approx(diameter_mm)


def test_an_empty_mask_has_no_diameter():
    assert longest_axial_diameter_mm(np.zeros((3, 3, 3), bool), ANISOTROPIC) == 0


def test_diameter_is_the_true_maximum_on_ragged_shapes(rng):
    for _ in range(20):
        mask = rng.random((7, 6, 4)) > 0.7
        longest = 0.0
        for k in range(4):
            points = np.argwhere(mask[:, :, k])
            for p, q in itertools.product(points, points):
                steps = np.abs(p - q)
                length = math.hypot(steps[0] * 1.0, steps[1] * 2.0)
                longest = max(longest, length * (1 + 1 / steps.max()) if steps.any() else 2.0)
        # On paper the longest line per slice is by centers; the extension can reorder lines by less than one voxel.
        assert longest - 2.0 <= longest_axial_diameter_mm(mask, ANISOTROPIC) <= longest + 1e-9


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_the_same_lesion_in_another_axis_order_measures_the_same(order, flips, rng):
    shape = (20, 16, 12)
    probability = np.zeros(shape)
    probability[3:12, 4:9, 2:9] = 0.8
    probability[12:15, 4:6, 2:5] = 0.6
    hu = rng.normal(150, 90, shape)
    affine = rotated(ANISOTROPIC, 12.0)
    affine[0, 2] += 0.4  # sheared too

    def measured(probability, hu, affine):
        instances = label_lesions(probability, affine)
        return measure_lesions(instances, hu, affine, probability=probability, marrow_hu=(150.0, 40.0))

    (expected,) = measured(probability, hu, affine)
    turned_probability, turned_affine = turned(probability, affine, order, flips)
    turned_hu, _ = turned(hu, affine, order, flips)
    (lesion,) = measured(turned_probability, turned_hu, turned_affine)
    for name in ("volume_mm3", "longest_axial_diameter_mm", "mean_hu", "min_hu", "max_hu", "score", "center_ras_mm"):
        assert getattr(lesion, name) == pytest.approx(getattr(expected, name)), name
    assert lesion.kind == expected.kind


def test_gantry_tilt_changes_the_volume_by_its_determinant_and_not_the_axial_diameter():
    tilted = ANISOTROPIC.copy()
    tilted[1, 2] = 3 * math.tan(math.radians(15))
    mask = block()
    (straight,), (sheared,) = (
        measure_lesions(mask.astype(np.uint16), mask * 100.0, a, probability=mask * 1.0, marrow_hu=(NAN, NAN))
        for a in (ANISOTROPIC, tilted)
    )
    assert sheared.volume_mm3 == pytest.approx(straight.volume_mm3)
    assert sheared.longest_axial_diameter_mm == pytest.approx(straight.longest_axial_diameter_mm)


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    probability = np.zeros((6, 6, 6))
    probability[1, 1, 1] = probability[2, 2, 2] = 1.0
    probability[4, 4, 5] = 1.0  # two steps away: another one
    instances = label_lesions(probability, ANISOTROPIC, min_volume_mm3=0.0)
    assert instances.dtype == np.uint16
    assert instances.max() == 2
    assert instances[1, 1, 1] == instances[2, 2, 2] == 1
    assert instances[4, 4, 5] == 2


def test_ids_run_from_the_largest_and_small_ones_are_dropped_by_their_mm3():
    probability = np.zeros((10, 10, 10))
    probability[0, 0, 0] = 1.0  # 6 mm³
    probability[3:5, 3, 3] = 1.0  # 12 mm³
    probability[7:10, 7:10, 7:10] = 1.0  # 162 mm³
    instances = label_lesions(probability, ANISOTROPIC, min_volume_mm3=12.0)
    assert [int((instances == n).sum()) for n in (1, 2)] == [27, 2]
    assert instances.max() == 2


def test_hysteresis_keeps_a_whole_lesion_that_peaks_and_drops_one_that_never_does():
    probability = np.zeros((12, 6, 6))
    probability[0:4, 1:4, 1:4] = 0.4
    probability[1, 2, 2] = 0.9
    probability[7:11, 1:4, 1:4] = 0.6
    instances = label_lesions(probability, ANISOTROPIC, threshold=0.3, seed_threshold=0.8)
    assert int((instances == 1).sum()) == 4 * 3 * 3
    assert instances.max() == 1


def test_a_component_outside_bone_is_dropped_and_one_that_leaves_bone_is_kept_whole():
    probability = np.zeros((12, 6, 6))
    probability[0:4, 1:4, 1:4] = 0.9
    probability[7:11, 1:4, 1:4] = 0.9
    bone = np.zeros(probability.shape, dtype=bool)
    bone[0:2] = True
    instances = label_lesions(probability, ANISOTROPIC, bone=bone)
    assert instances.max() == 1
    assert int((instances == 1).sum()) == 36


def test_nothing_above_the_threshold_is_no_lesion():
    for empty in (np.zeros((4, 5, 6)), np.full((4, 5, 6), NAN)):
        instances = label_lesions(empty, ANISOTROPIC)
        assert not instances.any()
        assert measure_lesions(instances, empty, ANISOTROPIC, probability=empty, marrow_hu=(NAN, NAN)) == ()


def test_more_lesions_than_uint16_can_number_are_refused(monkeypatch):
    monkeypatch.setattr(measure, "MOST_LESIONS", 7)
    probability = np.zeros((8, 4, 4))
    probability[::2, ::2, ::2] = 1.0
    with pytest.raises(InputError, match="16 separate lesions") as refusal:
        label_lesions(probability, ANISOTROPIC, min_volume_mm3=0.0)
    assert refusal.value.code == "too-many-lesions"


def test_normal_marrow_leaves_out_lesions_and_a_margin_in_mm_around_them():
    shape = (30, 30, 30)
    hu = np.full(shape, 999.0)
    instances = np.zeros(shape, dtype=np.uint16)
    instances[15, 15, 15] = 3
    centers_mm = np.stack(np.meshgrid(*(np.arange(30) - 15.0,) * 3, indexing="ij"), -1) * [1, 2, 3]
    distance = np.linalg.norm(centers_mm, axis=-1)
    marrow = np.ones(shape, dtype=bool)
    hu[distance > 6.0] = 180.0
    assert normal_marrow_hu(hu, marrow, instances, ANISOTROPIC, margin_mm=6.0) == (180.0, 0.0)
    hu[:] = np.where(distance <= 6.0, 999.0, np.nan)
    # Nothing but the margin holds a number: none is used, and none is left.
    assert all(math.isnan(v) for v in normal_marrow_hu(hu, marrow, instances, ANISOTROPIC, margin_mm=6.0))


def test_normal_marrow_is_a_median_and_a_robust_sd_and_nan_where_there_is_too_little(rng):
    hu = rng.normal(170, 40, (40, 40, 40))
    hu[:2] = 3000  # a screw
    marrow = np.ones(hu.shape, dtype=bool)
    nothing = np.zeros(hu.shape, dtype=np.uint16)
    median, sd = normal_marrow_hu(hu, marrow, nothing, np.eye(4))
    assert median == pytest.approx(170, abs=4)
    assert sd == pytest.approx(40, abs=4)
    marrow[:] = False
    marrow[:5, :5, :5] = True
    assert all(math.isnan(v) for v in normal_marrow_hu(hu, marrow, nothing, np.eye(4)))


@pytest.mark.parametrize(
    ("fractions", "expected"),  # share of voxels at 50 HU (soft tissue), 170 HU (marrow), 650 HU (sclerosis)
    [
        ((0.9, 0.1, 0.0), "lytic"),
        ((0.0, 0.2, 0.8), "sclerotic"),
        ((0.5, 0.1, 0.4), "mixed"),
        ((0.7, 0.2, 0.1), "lytic"),
        ((0.1, 0.5, 0.4), "sclerotic"),
        ((0.15, 0.85, 0.0), "lytic"),  # neither reaches a fifth; mean 152 HU
    ],
)
@pytest.mark.parametrize("marrow_hu", [(170.0, 60.0), (NAN, NAN)])
def test_kind_follows_the_fractions_of_soft_tissue_and_sclerosis(fractions, expected, marrow_hu):
    hu = np.repeat([50.0, 170.0, 650.0], [round(1000 * f) for f in fractions])
    assert lesion_kind(hu, marrow_hu) == expected


def test_a_soft_tissue_lesion_in_fatty_marrow_is_lytic_though_denser_than_the_marrow(rng):
    assert lesion_kind(rng.normal(55, 25, 500), (-40.0, 30.0)) == "lytic"
    assert lesion_kind(rng.normal(400, 90, 500), (-40.0, 30.0)) == "sclerotic"


def test_kind_limits_are_the_patients_own_or_fixed_anchors():
    assert kind_limits_hu((200.0, 80.0)) == (120.0, 280.0)
    assert kind_limits_hu((0.0, 10.0)) == (-50.0, 150.0)
    assert kind_limits_hu((NAN, NAN)) == measure.FIXED_ANCHORS_HU


def test_sixty_lesions_in_a_chest_ct_are_measured_in_well_under_three_seconds(rng):
    shape = (512, 512, 100)
    instances = np.zeros(shape, dtype=np.uint16)
    for n in range(60):
        x, y, z = (int(rng.integers(0, s - 20)) for s in shape)
        instances[x : x + 20, y : y + 20, z : z + 15] = n + 1
    hu = np.zeros(shape, dtype=np.int16)
    began = time.process_time()  # other work on the machine must not fail this
    lesions = measure_lesions(
        instances, hu, np.diag([0.8, 0.8, 1, 1]), probability=instances.astype(np.float32), marrow_hu=(NAN, NAN)
    )
    assert time.process_time() - began < 3.0
    assert len(lesions) > 50
