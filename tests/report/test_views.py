"""Pictures as arrays: left is left, up is up, contours lie on voxel borders. Nothing is drawn here."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from volseg.measure import measure_lesions
from volseg.report.body import body
from volseg.report.projections import spread
from volseg.report.views import PLANES, outline, upright
from volseg.types import PatientResult, Provenance, Study, Volume

PROVENANCE = Provenance(*[""] * 8)
SHAPE = (10, 12, 14)
# One voxel each, far to the patient's right, front and head; the rest of the body is 0 HU.
RIGHT, FRONT, HEAD = (9, 6, 7), (5, 11, 7), (5, 6, 13)


def stored(axes: str, affine_mm=(1.0, 2.0, 3.0)) -> PatientResult:
    """The same little patient, its voxel axes stored as `axes` says ("LPS", "PIR", ...)."""
    values = np.zeros(SHAPE, np.int16)
    values[RIGHT], values[FRONT], values[HEAD] = 100, 200, 300
    instances = np.zeros(SHAPE, np.uint16)
    instances[7:10, 5:7, 6:9] = 1  # a lesion on the patient's right
    affine = np.diag([*affine_mm, 1.0])
    order = ["RAS".find(c) if c in "RAS" else "LPI".find(c) for c in axes]
    out = affine.copy()
    out[:3, :3] = affine[:3, order]
    values, instances = values.transpose(order), instances.transpose(order)
    for axis, letter in enumerate(axes):
        if letter in "LPI":
            out[:3, 3] += out[:3, axis] * (values.shape[axis] - 1)
            out[:3, axis] *= -1
            values, instances = np.flip(values, axis), np.flip(instances, axis)
    probability = instances.astype(np.float32)
    lesions = measure_lesions(instances, values, out, probability=probability, marrow_hu=(np.nan, np.nan))
    return PatientResult(Study("case", {"CT": Volume(values, out)}), instances, probability, lesions, PROVENANCE)


STORED = ["RAS", "LPS", "LAS", "PIR", "ASL", "SRA", "ILP"]


def place(picture, value) -> tuple[str, str]:
    """In which half (left or right, top or bottom) of the picture a value lies; "middle" near the middle."""
    (row, column), (rows, columns) = np.argwhere(picture.values == value)[0], picture.values.shape
    across = "left" if column < columns / 4 else "right" if column >= columns * 3 / 4 else "middle"
    down = "top" if row < rows / 4 else "bottom" if row >= rows * 3 / 4 else "middle"
    return across, down


@pytest.mark.parametrize("axes", STORED)
def test_the_patients_right_is_on_the_viewers_left_and_the_head_is_up(axes):
    grid = upright(stored(axes))
    coronal, axial, sagittal = (grid.brightest(plane) for plane in ("coronal", "axial", "sagittal"))
    assert place(coronal, 100) == ("left", "middle")
    assert place(axial, 100) == ("left", "middle")
    assert place(axial, 200) == ("middle", "top")
    assert place(coronal, 300) == ("middle", "top")
    assert place(sagittal, 300) == ("middle", "top")
    assert place(sagittal, 200) == ("left", "middle")


@pytest.mark.parametrize("axes", STORED)
def test_a_lesion_on_the_right_casts_its_shadow_on_the_left_wherever_its_voxels_are_stored(axes):
    result = stored(axes)
    grid, (lesion,) = upright(result), result.lesions
    mask, row, column = grid.shadow("coronal", lesion)
    assert (column, mask.shape) == (0, (3, 3))
    assert row == 14 - 9
    picture = grid.cut("coronal", grid.slice_of("coronal", lesion))
    assert np.array_equal(np.argwhere(picture.labels == 1), np.argwhere(mask) + np.array([row, column]))


@pytest.mark.parametrize("axes", STORED)
def test_a_lesion_in_two_pieces_is_shown_where_one_of_them_lies(axes):
    """A detector's lesion may be two pieces: the plane through its center holds neither."""
    result = stored(axes)
    instances = np.zeros_like(result.instances)
    box = np.argwhere(result.instances)  # three layers towards the head; the middle one is left out
    up = next(n for n, letter in enumerate(axes) if letter in "SI")
    outer = box[box[:, up] != np.unique(box[:, up])[1]]
    instances[tuple(outer.T)] = 1
    volume = result.study.volumes["CT"]
    lesions = measure_lesions(
        instances, volume.voxels, volume.affine, probability=instances.astype(np.float32), marrow_hu=(np.nan, np.nan)
    )
    grid = upright(replace(result, instances=instances, lesions=lesions))
    picture = grid.cut("axial", grid.slice_of("axial", lesions[0]))
    assert (picture.labels == 1).sum() == 3 * 2


@pytest.mark.parametrize("axes", STORED)
def test_pictures_are_true_in_millimetres(axes):
    grid = upright(stored(axes))
    for plane, size_mm in (("axial", (10 * 1, 12 * 2)), ("coronal", (10 * 1, 14 * 3)), ("sagittal", (12 * 2, 14 * 3))):
        left, right, top, bottom = grid.brightest(plane).bounds_mm
        assert (right - left, bottom - top) == pytest.approx(size_mm)


@pytest.mark.parametrize(("turn", "plane"), itertools.product((-25, 10, 25), PLANES))
def test_an_oblique_grid_is_shown_upright_with_its_lengths(turn, plane):
    straight = stored("RAS")
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    for pair in ((0, 1), (1, 2), (0, 2)):
        rotation = np.eye(4)
        rotation[np.ix_(pair, pair)] = [[c, -s], [s, c]]
        affine = rotation @ straight.image.affine
        result = PatientResult(
            Study("o", {"CT": Volume(straight.image.voxels, affine)}),
            straight.instances,
            straight.probability,
            (),
            PROVENANCE,
        )
        picture, expected = upright(result).brightest(plane), upright(straight).brightest(plane)
        assert np.linalg.norm(picture.across_mm) == pytest.approx(np.linalg.norm(expected.across_mm))
        assert np.linalg.norm(picture.down_mm) == pytest.approx(np.linalg.norm(expected.down_mm))
        assert picture.across_mm @ picture.down_mm == pytest.approx(0, abs=1e-9)
        assert picture.across_mm[0] > 0 and picture.down_mm[1] > 0
        # Turned in the plane itself, the picture is turned back; turned out of it, nothing shows.
        in_plane = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane] == pair
        angle = np.degrees(np.arctan2(picture.across_mm[1], picture.across_mm[0]))
        assert abs(angle) == pytest.approx(abs(turn) if in_plane else 0, abs=1e-6)


def test_a_tilted_gantry_shows_sheared_in_the_sagittal_plane_only():
    straight = stored("RAS")
    affine = straight.image.affine.copy()
    affine[1, 2] = 1.0
    result = PatientResult(
        Study("t", {"CT": Volume(straight.image.voxels, affine)}),
        straight.instances,
        straight.probability,
        (),
        PROVENANCE,
    )
    sagittal = upright(result).brightest("sagittal")
    # One slice down is 3 mm down and 1 mm towards the back, which is on the right.
    assert sagittal.down_mm == pytest.approx([1.0, 3.0])
    assert sagittal.across_mm == pytest.approx([2.0, 0.0])
    axial = upright(result).brightest("axial")
    assert axial.across_mm @ axial.down_mm == pytest.approx(0)


def test_an_outline_runs_along_the_voxel_borders_and_runs_are_one_line():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    lines = {tuple(map(tuple, np.sort(line, axis=0))) for line in outline(mask)}
    assert lines == {
        ((1.5, 0.5), (4.5, 0.5)),
        ((1.5, 2.5), (4.5, 2.5)),
        ((1.5, 0.5), (1.5, 2.5)),
        ((4.5, 0.5), (4.5, 2.5)),
    }


def test_an_outline_is_as_long_as_the_borders_it_separates(rng):
    mask = rng.random((20, 30)) > 0.5
    padded = np.pad(mask, 1)
    borders = sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in (0, 1))
    lines = outline(mask)
    assert np.abs(np.diff(lines, axis=1)).sum() == borders
    assert len(outline(np.zeros((4, 4), bool))) == 0


def test_numbers_in_the_margin_keep_their_order_and_distance():
    assert spread([10.0, 11.0, 50.0], gap=5.0, low=0.0, high=100.0) == [10.0, 15.0, 50.0]
    assert spread([98.0, 99.0, 100.0], gap=5.0, low=0.0, high=100.0) == [90.0, 95.0, 100.0]
    assert spread([], gap=5.0, low=0.0, high=1.0) == []


def test_the_table_is_not_the_patient():
    hu = np.full((60, 60, 20), -1000.0)
    hu[10:50, 10:40] = 40.0  # patient, 40 x 30 cm at 10 mm... in voxels of 4 mm
    hu[5:55, 48:49] = 300.0  # a thin shell below
    mask = body(hu, np.diag([4.0, 4.0, 4.0, 1.0]))
    assert mask[10:50, 10:40].mean() > 0.99
    assert not mask[:, 48].any()
    assert body(np.full((4, 4, 4), -1000.0), np.eye(4)).all()
