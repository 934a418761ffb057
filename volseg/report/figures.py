"""PatientResult -> pictures for people: the preview, the overview of all lesions, three planes through one lesion."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from volseg.geometry import spacing_mm
from volseg.labels import LESION_KINDS
from volseg.report import drawing
from volseg.report.drawing import FAINT_INK, INK, KIND_COLOURS, Sheet, Window
from volseg.report.files import write_whole
from volseg.report.projections import GAP_PX, arrange, draw_projections, project
from volseg.report.summary import INTENDED_USE, MOST_PICTURED, by_size, summarise, volume_in_words
from volseg.report.views import LOOKS_ALONG, PLANES, Plane, Upright, upright
from volseg.types import Lesion, PatientResult

BONE_WINDOW_HU = (-500.0, 1300.0)  # level 400, width 1800
LESION_VIEW_MM = 100.0
AROUND_A_LESION_MM = 30.0
MOST_SLICES = 6


def write_preview(result: PatientResult, path: Path | str) -> Path:
    """One PNG, 1600 x 1000: coronal and sagittal projections with all lesions, slices through the six largest."""
    return write_whole(path, preview(result))


def preview(result: PatientResult) -> bytes:
    """What `write_preview` writes."""
    grid, summary = upright(result), summarise(result)
    lesions = by_size(result)[:MOST_SLICES]
    projections = project(grid, result)
    left_width, top = (1000, 92) if lesions else (1128, 92)
    arrangement = arrange(projections, left_width, lowest=500, highest=860)
    height = arrangement.height
    sheet = Sheet(1600, top + height + 48)
    sheet.text(24, 14, shortened(result.study.name, 70), size_px=26, fontweight="bold")
    kinds = f": {summary.kinds_in_words}" if summary.kinds_in_words else ""
    sheet.text(24, 54, summary.headline + kinds, size_px=20, colour=FAINT_INK)
    sheet.text(1576, 14, "volseg", size_px=26, ha="right", fontweight="bold", colour=FAINT_INK)
    _draw_legend(sheet, 24, top + height + 24, result)
    sheet.text(1576, top + height + 24, INTENDED_USE, size_px=14, ha="right", va="center", colour=FAINT_INK)
    draw_projections(sheet, grid, result, projections, arrangement, left=24, top=top, width=left_width)
    if lesions:
        _draw_slices(sheet, grid, result, lesions, left=1032, top=top, width=544, height=height)
    else:
        middle = top + height / 2
        sheet.text(1180, middle - 60, "No lesion found", size_px=38, fontweight="bold")
        sheet.text(1180, middle + 6, "The program marked nothing in this study.", size_px=18, colour=FAINT_INK)
        sheet.text(1180, middle + 34, "That does not rule out metastases.", size_px=18, colour=FAINT_INK)
    return sheet.png()


def overview(result: PatientResult) -> bytes:
    """PNG: coronal and sagittal projections in true proportions, every lesion coloured, the 20 largest numbered."""
    grid = upright(result)
    projections = project(grid, result)
    width = 1224
    arrangement = arrange(projections, width, lowest=300, highest=780)
    sheet = Sheet(width, arrangement.height + (34 if result.lesions else 0))
    draw_projections(sheet, grid, result, projections, arrangement, left=0, top=0, width=width)
    _draw_legend(sheet, 10, arrangement.height + 18, result)
    return sheet.png()


def lesion_views(result: PatientResult, lesion: Lesion) -> bytes:
    """PNG: axial, coronal and sagittal planes through one lesion's center, bone window, contours on the voxel edges.

    All three show the same length in mm: 100, more for a large lesion, less for a small image.
    """
    grid, side = upright(result), 400
    sheet = Sheet(3 * side + 2 * GAP_PX, side)
    for n, plane in enumerate(PLANES):
        axes = sheet.panel(n * (side + GAP_PX), 0, side, side)
        _draw_plane(axes, grid, result, lesion, plane)
        drawing.caption(axes, plane)
    return sheet.png()


def field_of_view_mm(grid: Upright, lesion: Lesion) -> float:
    """Side of the square shown around a lesion, one for its three planes."""
    pictures = [grid.cut(plane, grid.slice_of(plane, lesion)) for plane in PLANES]
    extent = max(max(p.extent_mm(lesion.id)) for p in pictures)
    largest = max(max(x1 - x0, y1 - y0) for x0, x1, y0, y1 in (p.bounds_mm for p in pictures))
    return min(max(LESION_VIEW_MM, extent + AROUND_A_LESION_MM), largest)


def shortened(words: str, most: int) -> str:
    """At most `most` characters, the middle left out."""
    if len(words) <= most:
        return words
    head = most // 2
    return f"{words[:head]}…{words[len(words) - (most - head - 1) :]}"


def _draw_slices(
    sheet: Sheet,
    grid: Upright,
    result: PatientResult,
    lesions: list[Lesion],
    *,
    left: float,
    top: float,
    width: float,
    height: float,
) -> None:
    """Slices (axial; MRI: as scanned) through the centers of lesions, in as many columns as make the panels largest."""
    title = 24
    count = len(lesions)

    def panel_size(columns: int) -> tuple[float, float]:
        rows = math.ceil(count / columns)
        return (width - GAP_PX * (columns - 1)) / columns, (height - GAP_PX * (rows - 1)) / rows - title

    columns = max(range(1, count + 1), key=lambda n: min(panel_size(n)))
    panel_width, panel_height = panel_size(columns)
    for n, lesion in enumerate(lesions):
        row, column = divmod(n, columns)
        x, y = left + column * (panel_width + GAP_PX), top + row * (panel_height + title + GAP_PX)
        axes = sheet.panel(x, y + title, panel_width, panel_height)
        _draw_plane(axes, grid, result, lesion, _finest_plane(grid, result))
        colour = KIND_COLOURS[lesion.kind]
        sheet.text(x, y + 2, f"{lesion.id}", size_px=16, colour=colour, fontweight="bold")
        words = volume_in_words(lesion.volume_mm3)
        if result.in_hounsfield:
            words = f"{lesion.kind}, {words}"
        sheet.text(x + 12 + 10 * len(str(lesion.id)), y + 3, words, size_px=14, colour=colour)


def _finest_plane(grid: Upright, result: PatientResult) -> Plane:
    """Axial in CT; elsewhere the plane of the slices, sagittal where voxels are cubes."""
    steps = spacing_mm(grid.affine)
    if result.in_hounsfield:
        return "axial"
    if steps.max() < 1.2 * steps.min():
        return "sagittal"
    return next(plane for plane in PLANES if LOOKS_ALONG[plane] == int(steps.argmax()))


def _draw_plane(axes: Axes, grid: Upright, result: PatientResult, lesion: Lesion, plane: Plane) -> None:
    picture, field_mm = grid.cut(plane, grid.slice_of(plane, lesion)), field_of_view_mm(grid, lesion)
    x0, x1, y0, y1 = picture.bounds_mm
    x, y = picture.middle_mm(lesion.id)
    window = Window(_kept_inside(x, field_mm, x0, x1), _kept_inside(y, field_mm, y0, y1), field_mm, field_mm)
    darkest, brightest = _grey_range(grid, result.image.channel)
    drawing.show(axes, picture, window, darkest=darkest, brightest=brightest)
    drawing.draw_contours(axes, picture, {le.id: KIND_COLOURS[le.kind] for le in result.lesions}, main=lesion.id)
    drawing.mark_directions(axes, picture)
    drawing.mark_scale(axes)


def _kept_inside(center: float, size: float, low: float, high: float) -> float:
    """Where a window of `size` around `center` has to sit to show no emptiness it could avoid."""
    if high - low <= size:
        return (low + high) / 2
    return min(max(center, low + size / 2), high - size / 2)


def _grey_range(grid: Upright, channel: str) -> tuple[float, float]:
    if channel == "CT":
        return BONE_WINDOW_HU
    sample = grid.values[::4, ::4, ::4]
    low, high = (float(v) for v in np.percentile(sample[np.isfinite(sample)], (1, 99.5)))
    return low, max(high, low + 1e-6)


def _draw_legend(sheet: Sheet, left: float, middle: float, result: PatientResult) -> None:
    """What the colours mean, or which image it is where they mean nothing; how many lesions carry a number."""
    count = len(result.lesions)
    if not result.in_hounsfield:
        sheet.text(left, middle, f"on {result.image.channel}", size_px=15, colour=FAINT_INK, va="center")
        left += 60
    if count == 0:
        return
    for kind, colour in KIND_COLOURS.items() if result.in_hounsfield else ():
        if kind not in LESION_KINDS:
            continue
        sheet.text(left, middle, "■", size_px=18, colour=colour, va="center")
        sheet.text(left + 20, middle, kind, size_px=15, colour=INK, va="center")
        left += 34 + 9 * len(kind)
    if count > MOST_PICTURED:
        words = f"{MOST_PICTURED} largest of {count} numbered"
        sheet.text(left + 10, middle, words, size_px=15, colour=FAINT_INK, va="center")
