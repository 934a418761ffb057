"""Numbers of a lesion, by hand: balls and blocks on anisotropic, turned and sheared grids."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.errors import InputError
from volseg.measure import measure_lesions
from volseg.origin.features import (
    CLINICAL_NAMES,
    LESION_NAMES,
    LesionTable,
    clinical_features,
    deep_names,
    lesion_features,
)
from volseg.origin.neighbourhood import distance_mm, neighbourhoods, surface_mm2
from volseg.origin.position import body_positions

ANISOTROPIC = np.diag([1.0, 1.5, 3.0, 1.0])
TILTED = np.array([[1.0, 0, 0, 3], [0, 1.2, 0.6, 0], [0, 0, 2.5, -4], [0, 0, 0, 1]])  # a sheared grid
HAND_MADE = LESION_NAMES[:-3]


def ball(radius_mm: float, affine: np.ndarray, size_mm: float = 40.0) -> np.ndarray:
    """A ball in the middle of a cube, true in mm on any grid: bool (X, Y, Z)."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.ceil(size_mm / steps).astype(int)
    mm = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T
    middle = (np.asarray(shape) - 1) / 2 @ affine[:3, :3].T
    return ((mm - middle) ** 2).sum(-1) <= radius_mm**2


def values_of(table: LesionTable, row: int = 0) -> dict[str, float]:
    return dict(zip(table.names, table.values[row], strict=True))


def test_a_block_has_the_extents_and_hu_worked_out_on_paper():
    mask = np.zeros((24, 24, 16), np.uint16)
    mask[8:14, 8:12, 6:10] = 7  # 6 x 6 x 12 mm
    hu = np.where(mask > 0, 40, 200).astype(np.int16)
    hu[8:11, 8:12, 6:10] = 60
    table = lesion_features(hu, mask, ANISOTROPIC, marrow_hu=(200.0, 60.0))
    seen = values_of(table)
    assert table.ids == (7,)
    assert seen["log_volume"] == pytest.approx(math.log(6 * 6 * 12))
    # A uniform edge L has variance L²/12; the ellipsoid's axis with that variance is 2 sqrt(5 L²/12).
    assert [seen[n] for n in ("longest_mm", "middle_mm", "shortest_mm")] == pytest.approx(
        [2 * math.sqrt(5 / 12) * edge for edge in (12, 6, 6)]
    )
    assert (seen["hu_mean"], seen["hu_sd"], seen["hu_p50"]) == pytest.approx((50, 10, 50))
    assert (seen["ring_hu_mean"], seen["ring_hu_sd"], seen["contrast_hu"]) == pytest.approx((200, 0, -150))
    assert (seen["lytic_fraction"], seen["sclerotic_fraction"]) == (1, 0)


@pytest.mark.parametrize("affine", [np.eye(4), ANISOTROPIC, TILTED])
def test_a_ball_is_a_ball_on_any_grid(affine):
    mask = ball(12.0, affine).astype(np.uint16)
    (lesion,) = neighbourhoods(np.zeros(mask.shape), mask, affine)
    assert lesion.extents_mm == pytest.approx([24, 24, 24], rel=0.06)
    assert surface_mm2(mask > 0, affine) == pytest.approx(4 * math.pi * 12**2, rel=0.04)
    assert lesion.sphericity > 0.96


def test_a_rod_is_no_ball():
    """6 x 6 x 30 mm has a sphericity of .643 on paper; the crossings of 13 directions see its faces 7 to 15 % small."""
    mask = np.zeros((12, 12, 36), np.uint16)
    mask[3:9, 3:9, 3:33] = 1
    (lesion,) = neighbourhoods(np.zeros(mask.shape), mask, np.eye(4))
    assert 0.643 < lesion.sphericity < 0.643 / 0.85


@pytest.mark.parametrize("affine", [np.eye(4), ANISOTROPIC, np.diag([0.8, 0.8, 5.0, 1.0])])
def test_the_ring_reaches_as_far_in_millimetres_along_every_axis(affine):
    mask = ball(9.0, affine).astype(np.uint16)
    (lesion,) = neighbourhoods(np.zeros(mask.shape), mask, affine, ring_mm=(2.0, 6.0))
    assert not (lesion.ring & lesion.inside).any()
    steps = np.diag(affine)[:3]
    ring, inside = (np.argwhere(m) * steps for m in (lesion.ring, lesion.inside))
    beyond = ring.max(axis=0) - inside.max(axis=0)
    assert np.all(beyond <= 6.0) and np.all(beyond > 6.0 - steps)


@pytest.mark.parametrize("affine", [ANISOTROPIC, TILTED])
def test_distances_are_those_to_the_nearest_voxel_by_brute_force(affine):
    inside = np.zeros((7, 8, 6), bool)
    inside[2:5, 3:5, 2:4] = True
    inside[6, 7, 5] = True
    places = np.argwhere(np.ones(inside.shape, bool)) @ affine[:3, :3].T
    own = np.argwhere(inside) @ affine[:3, :3].T
    brute = np.linalg.norm(places[:, None] - own, axis=-1).min(axis=1).reshape(inside.shape)
    assert np.allclose(distance_mm(inside, affine), brute)


@pytest.mark.parametrize(("order", "flips"), [((0, 1, 2), (0, 1)), ((2, 0, 1), ()), ((1, 2, 0), (2,))])
def test_how_voxels_are_stored_changes_no_feature(order, flips, rng):
    shape = (30, 28, 14)
    hu = rng.normal(0, 40, shape).astype(np.float32)
    hu[3:-3, 3:-3] += 150
    mask = np.zeros(shape, np.uint16)
    mask[8:14, 10:13, 4:8], mask[20:23, 18:24, 6:9] = 1, 2
    affine = ANISOTROPIC.copy()
    affine[:3, 3] = -20, 30, 5
    turned = affine.copy()
    turned[:3, :3] = affine[:3, list(order)]
    hu_, mask_ = hu.transpose(order), mask.transpose(order)
    for axis in flips:
        turned[:3, 3] += turned[:3, axis] * (hu_.shape[axis] - 1)
        turned[:3, axis] *= -1
        hu_, mask_ = np.flip(hu_, axis), np.flip(mask_, axis)
    before, after = (
        lesion_features(*args, marrow_hu=(150.0, 40.0)) for args in ((hu, mask, affine), (hu_, mask_, turned))
    )
    kept = [n for n in before.names if n in HAND_MADE]
    assert np.allclose(before.select(kept).values, after.select(kept).values, rtol=1e-5)
    # The body is outlined on a coarse grid whose corner moves with the storage: half a coarse voxel.
    assert np.allclose(before.values[:, -3:], after.values[:, -3:], atol=0.15)


def test_a_neighbour_is_no_ring_and_no_lesion_is_a_table_of_no_rows():
    mask = np.zeros((20, 20, 20), np.uint16)
    mask[5:9, 5:9, 5:9], mask[11:15, 5:9, 5:9] = 1, 2
    hu = np.where(mask == 2, 900, 100).astype(np.int16)
    table = lesion_features(hu, mask, np.eye(4))
    assert values_of(table, 0)["ring_hu_mean"] == 100
    nothing = lesion_features(hu, np.zeros_like(mask), np.eye(4), deep=np.zeros((2, 20, 20, 20), np.float32))
    assert nothing.values.shape == (0, len(LESION_NAMES) + 6)


def test_a_lesion_that_fills_the_picture_has_no_ring_and_says_so_with_nan():
    table = lesion_features(np.full((6, 6, 6), 300.0), np.ones((6, 6, 6), np.uint16), np.eye(4))
    seen = values_of(table)
    assert math.isnan(seen["ring_hu_mean"]) and math.isnan(seen["contrast_hu"])
    assert seen["hu_mean"] == 300


def test_air_metal_and_nan_do_not_rule_a_mean():
    mask = np.zeros((12, 12, 12), np.uint16)
    mask[3:9, 3:9, 3:9] = 1
    hu = np.full(mask.shape, 100.0)
    hu[5, 5, 5], hu[5, 5, 6], hu[5, 6, 5] = math.nan, -1000, 30000
    seen = values_of(lesion_features(hu, mask, np.eye(4)))
    assert seen["hu_mean"] == pytest.approx((100 * 213 - 200 + 1500) / 215)


def test_deep_features_are_weighted_by_the_mask_on_their_own_grid():
    """Feature voxels of 4 mm: the lesion covers one wholly and a quarter of the next."""
    mask = np.zeros((16, 16, 16), np.uint16)
    mask[4:9, 4:8, 4:8] = 1
    hu = np.zeros(mask.shape)
    coarse = np.diag([4.0, 4.0, 4.0, 1.0])
    coarse[:3, 3] = 1.5
    deep = np.zeros((2, 4, 4, 4), np.float32)
    deep[0, 1, 1, 1], deep[0, 2, 1, 1] = 10, 20
    deep[1] = 5
    seen = values_of(lesion_features(hu, mask, np.eye(4), deep=deep, deep_affine=coarse))
    assert seen["deep_inside_000"] == pytest.approx((64 * 10 + 16 * 20) / 80)
    assert seen["deep_max_000"] == 20
    assert seen["deep_ring_001"] == seen["deep_inside_001"] == 5
    # On the CT's own grid the mean is the plain one.
    plain = values_of(
        lesion_features(hu, mask, np.eye(4), deep=np.arange(16.0)[None, :, None, None] * np.ones((1, 16, 16, 16)))
    )
    assert plain["deep_inside_000"] == pytest.approx(6.0)
    away = coarse.copy()
    away[:3, 3] = 500
    assert math.isnan(values_of(lesion_features(hu, mask, np.eye(4), deep=deep, deep_affine=away))["deep_max_001"])
    assert len(deep_names(2)) == 6


def test_a_huge_lesion_is_read_coarser_with_nearly_the_same_numbers(monkeypatch, rng):
    mask = ball(18.0, np.diag([1.0, 1.0, 1.0, 1.0]), size_mm=60).astype(np.uint16)
    hu = rng.normal(100, 30, mask.shape) + 50 * mask
    full = values_of(lesion_features(hu, mask, np.eye(4)))
    monkeypatch.setattr("volseg.origin.neighbourhood.MOST_VOXELS", 30_000)
    coarse = values_of(lesion_features(hu, mask, np.eye(4)))
    assert coarse["log_volume"] == full["log_volume"]
    for name in ("longest_mm", "shortest_mm", "hu_mean", "ring_hu_mean"):
        assert coarse[name] == pytest.approx(full[name], rel=0.05), name


def test_places_in_an_elliptic_body_on_a_table():
    """A body 200 mm wide and 120 mm deep, its middle at R 10; a table 30 mm behind it is not the body."""
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    affine[:3, 3] = 130, 100, -300
    x = 130 - 2.0 * np.arange(130)[:, None, None]
    y = 100 - 2.0 * np.arange(110)[None, :, None]
    hu = np.full((130, 110, 20), -1000, np.int16)
    hu[np.broadcast_to(((x - 10) / 100) ** 2 + (y / 60) ** 2 <= 1, hu.shape)] = 40
    hu[20:110, 95:98] = 300
    centers = np.array([[10.0, 60, -300], [110, 0, -250], [-90, -60, -205], [10, 0, -250]])
    found = body_positions(hu, affine, centers)
    assert found == pytest.approx(np.array([[0, 0, 0], [1, 0.5, 0.53], [1, 1, 1], [0, 0.5, 0.53]]), abs=0.06)
    assert np.isnan(body_positions(np.full_like(hu, -1000), affine, centers)).all()


def test_the_clinical_table_holds_kind_size_count_and_location(rng):
    mask = np.zeros((20, 20, 12), np.uint16)
    mask[3:7, 3:7, 3:6], mask[12:14, 12:17, 6:9] = 1, 2
    hu = np.where(mask == 1, 30, np.where(mask == 2, 900, 200)) + rng.normal(0, 5, mask.shape)
    lesions = measure_lesions(mask, hu, ANISOTROPIC, probability=mask > 0, marrow_hu=(200.0, 40.0))
    table = clinical_features(lesions, lesion_features(hu, mask, ANISOTROPIC))
    assert table.names == CLINICAL_NAMES
    assert [values_of(table, n)[kind] for n in (0, 1) for kind in ("lytic", "sclerotic", "mixed")] == [1, 0, 0, 0, 1, 0]
    assert values_of(table)["log_count"] == pytest.approx(math.log(2))
    assert values_of(table)["log_volume"] == pytest.approx(math.log(lesions[0].volume_mm3))
    with pytest.raises(ValueError, match="not one patient"):
        clinical_features(lesions[:1], lesion_features(hu, mask, ANISOTROPIC))


def test_a_missing_feature_and_a_foreign_grid_are_refused_in_words():
    table = LesionTable(("a", "b"), (1,), np.ones((1, 2)))
    with pytest.raises(InputError, match=r"1 of 2 features .* missing .*deep_max_003"):
        table.select(("a", "deep_max_003"))
    with pytest.raises(ValueError, match="not one grid"):
        lesion_features(np.zeros((3, 3, 3)), np.ones((3, 3, 4), np.uint16), np.eye(4))
    with pytest.raises(ValueError, match="not unique"):
        table.join(("a",), np.ones((1, 1)))
