"""All lesions at a glance: bone projections (MRI: slices) with every lesion's shadow, numbered from the margins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from volseg.report import drawing
from volseg.report.body import body
from volseg.report.drawing import KIND_COLOURS, Sheet, Window
from volseg.report.summary import by_size, pictured
from volseg.report.views import LOOKS_ALONG, Picture, Plane, Upright
from volseg.types import Lesion, PatientResult

PROJECTED: tuple[Plane, ...] = ("coronal", "sagittal")
WORTH_STACKING = 1.3  # side by side is easier to compare
MARGIN_PX = 48  # on either side of a projection: a direction mark and a column of numbers
GAP_PX = 8
MOST_SHADOWS = 1000  # a picture cannot say more; the tables list them all
FLOOR_HU = 100.0
BONE_HU = 200.0
AROUND_BONE_MM = 12.0


@dataclass(frozen=True, eq=False)
class Projection:
    """A maximum projection and the part of it worth showing, (left, right, top, bottom) in picture mm."""

    picture: Picture
    bounds_mm: tuple[float, float, float, float]

    @property
    def width_mm(self) -> float:
        return self.bounds_mm[1] - self.bounds_mm[0]

    @property
    def height_mm(self) -> float:
        return self.bounds_mm[3] - self.bounds_mm[2]


def project(grid: Upright, result: PatientResult) -> tuple[Projection, ...]:
    """Coronal and sagittal maximum projections, cut to bone and lesions, with the same rows on show in both.

    Where bone is not what shines (MRI) it is the slices through the largest lesion, or through the middle.
    """
    if result.in_hounsfield:
        patient = body(grid.values, grid.affine)
        pictures = [grid.brightest(plane, patient) for plane in PROJECTED]
    else:
        pictures = [grid.cut(plane, _telling_slice(grid, plane, result)) for plane in PROJECTED]
    bounds = [_worth_showing(grid, picture, result) for picture in pictures]
    top, bottom = min(b[2] for b in bounds), max(b[3] for b in bounds)
    return tuple(Projection(p, (b[0], b[1], top, bottom)) for p, b in zip(pictures, bounds, strict=True))


def _what(result: PatientResult) -> str:
    if result.in_hounsfield:
        return "projection"
    return "slice, all lesions" if result.lesions else "slice"


def _telling_slice(grid: Upright, plane: Plane, result: PatientResult) -> int:
    largest = by_size(result)[:1]
    return grid.slice_of(plane, largest[0]) if largest else grid.values.shape[LOOKS_ALONG[plane]] // 2


@dataclass(frozen=True)
class Arrangement:
    """How projections share a rectangle: side by side, or stacked where the image is short and wide."""

    stacked: bool
    height: int


def arrange(projections: tuple[Projection, ...], width: float, *, lowest: int, highest: int) -> Arrangement:
    """The better arrangement in `width` pixels, and the height it needs within lowest..highest pixels."""
    side_by_side = _scale(projections, width, highest, stacked=False)
    stacked = _scale(projections, width, highest, stacked=True)
    tallest_mm = max(p.height_mm for p in projections)
    if stacked > WORTH_STACKING * side_by_side:
        needed = stacked * tallest_mm * len(projections) + GAP_PX * (len(projections) - 1)
        return Arrangement(True, round(min(max(needed, lowest), highest)))
    return Arrangement(False, round(min(max(side_by_side * tallest_mm, lowest), highest)))


def draw_projections(
    sheet: Sheet,
    grid: Upright,
    result: PatientResult,
    projections: tuple[Projection, ...],
    arrangement: Arrangement,
    *,
    left: float,
    top: float,
    width: float,
) -> None:
    """Projections at one scale, as large as the arrangement allows, every lesion on them."""
    count, height = len(projections), float(arrangement.height)
    px_per_mm = _scale(projections, width, height, stacked=arrangement.stacked)
    spare = width - GAP_PX * (count - 1) - sum(p.width_mm * px_per_mm + 2 * MARGIN_PX for p in projections)
    for projection in projections:
        picture, (x0, x1, y0, y1) = projection.picture, projection.bounds_mm
        if arrangement.stacked:
            width_px, height_px = width, (height - GAP_PX * (count - 1)) / count
        else:
            width_px, height_px = projection.width_mm * px_per_mm + 2 * MARGIN_PX + spare / count, height
        axes = sheet.panel(left, top, width_px, height_px)
        if arrangement.stacked:
            top += height_px + GAP_PX
        else:
            left += width_px + GAP_PX
        window = Window((x0 + x1) / 2, (y0 + y1) / 2, width_px / px_per_mm, height_px / px_per_mm)
        darkest, brightest = _grey_range(picture, result.image.channel)
        drawing.show(axes, picture, window, darkest=darkest, brightest=brightest)
        _draw_shadows(axes, grid, picture, result)
        drawing.caption(axes, f"{picture.plane} {_what(result)}")
        drawing.mark_directions(axes, picture)
        drawing.mark_scale(axes, fits_in_mm=min(p.width_mm for p in projections))


def _scale(projections: tuple[Projection, ...], width: float, height: float, *, stacked: bool) -> float:
    """Pixels per mm at which all projections and their margins fit."""
    count, gaps = len(projections), GAP_PX * (len(projections) - 1)
    tallest_mm = max(p.height_mm for p in projections)
    if stacked:
        widest_mm = max(p.width_mm for p in projections)
        return min((width - 2 * MARGIN_PX) / widest_mm, (height - gaps) / count / tallest_mm)
    return min((width - gaps - 2 * MARGIN_PX * count) / sum(p.width_mm for p in projections), height / tallest_mm)


def _worth_showing(grid: Upright, picture: Picture, result: PatientResult) -> tuple[float, float, float, float]:
    """Where bone (without specks) and lesions lie, with a margin; the whole picture where there is none."""
    whole = picture.bounds_mm
    bone = np.argwhere(picture.values > BONE_HU)
    if not result.in_hounsfield or len(bone) < 0.01 * picture.values.size:
        return whole
    at = [np.percentile(picture.to_mm(bone[:, ::-1]), (0.5, 99.5), axis=0)]
    for lesion in by_size(result)[:MOST_SHADOWS]:
        mask, row, column = grid.shadow(picture.plane, lesion)
        rows, columns = mask.shape
        at.append(picture.to_mm(np.array([[column, row], [column + columns, row + rows]])))
    points = np.concatenate(at)
    (x0, y0), (x1, y1) = points.min(axis=0) - AROUND_BONE_MM, points.max(axis=0) + AROUND_BONE_MM
    return max(x0, whole[0]), min(x1, whole[1]), max(y0, whole[2]), min(y1, whole[3])


def _grey_range(picture: Picture, channel: str) -> tuple[float, float]:
    """Bone on black for CT: from 100 HU to nearly the densest bone. Other channels by percentiles."""
    finite = picture.values[np.isfinite(picture.values)]
    if finite.size == 0:
        return 0.0, 1.0
    if channel == "CT":
        return FLOOR_HU, float(np.clip(np.percentile(finite, 99.5), 800, 1600))
    low, high = (float(v) for v in np.percentile(finite, (1, 99.5)))
    return low, max(high, low + 1e-6)


def _draw_shadows(axes: Axes, grid: Upright, picture: Picture, result: PatientResult) -> None:
    """Every lesion's shadow tinted and outlined in the colour of its kind, small ones on top of large ones."""
    layer = np.zeros((*picture.values.shape, 4), dtype=np.float32)
    borders: dict[str, list[NDArray]] = {}
    middles: dict[int, NDArray] = {}
    for lesion in by_size(result)[:MOST_SHADOWS]:
        mask, row, column = grid.shadow(picture.plane, lesion)
        if not mask.any():
            continue
        colour = KIND_COLOURS[lesion.kind]
        layer[row : row + mask.shape[0], column : column + mask.shape[1]][mask] = drawing.rgba(colour, 0.4)
        borders.setdefault(colour, []).append(drawing.outline(mask) + np.array([column, row]))
        middles[lesion.id] = picture.to_mm(np.argwhere(mask).mean(axis=0)[::-1] + np.array([column, row]))
    rows, columns = picture.values.shape
    axes.imshow(
        layer,
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        transform=Affine2D(picture.matrix_mm) + axes.transData,
        aspect="auto",
        zorder=3,
    )
    for colour, lines in borders.items():
        drawing.add_lines(axes, picture, np.concatenate(lines), colour, width=1.2)
    _number_from_margins(axes, [(le, middles[le.id]) for le in pictured(result) if le.id in middles])


def _number_from_margins(axes: Axes, places: list[tuple[Lesion, NDArray]]) -> None:
    """Numbers in the nearer margin at their lesion's height, as far apart as they need, with a thin leader."""
    box, (x0, x1), (bottom, top) = axes.get_window_extent(), axes.get_xlim(), axes.get_ylim()
    mm_per_px = (x1 - x0) / box.width
    for side in (-1, 1):
        here = sorted(
            ((le, at) for le, at in places if (at[0] >= (x0 + x1) / 2) == (side > 0)), key=lambda one: one[1][1]
        )
        heights = spread(
            [float(at[1]) for _, at in here], gap=19 * mm_per_px, low=top + 40 * mm_per_px, high=bottom - 50 * mm_per_px
        )
        for (lesion, at), y in zip(here, heights, strict=True):
            colour = KIND_COLOURS[lesion.kind]
            x = (x0 if side < 0 else x1) - side * 34 * mm_per_px
            axes.plot([x - side * 10 * mm_per_px, at[0]], [y, at[1]], color=colour, linewidth=0.8, alpha=0.8, zorder=5)
            drawing.write_number(axes, x, y, lesion.id, colour, centered=True)


def spread(wanted: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions in rising order, near `wanted` (rising), at least `gap` apart and within low..high if that many fit."""
    placed: list[float] = []
    for value in wanted:
        placed.append(max(value, low, placed[-1] + gap if placed else low))
    limit = high
    for n in range(len(placed) - 1, -1, -1):
        placed[n] = min(placed[n], limit)
        limit = placed[n] - gap
    return placed
