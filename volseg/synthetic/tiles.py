"""Lesions, grown or real -> pictures that differ in nothing but the lesion: one window, one scale, one painter.

A blind reader must not be helped by the frame: padding is cut off before anything is shown, the window stays inside the
volume for both kinds, and no tile carries words, directions or a scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.geometry import closest_axes, ras_mm_to_voxel, to_ras, voxel_to_ras_mm
from volseg.report.drawing import Sheet, Window, add_lines, show
from volseg.report.views import PLANES, Picture, Upright, outline
from volseg.types import Volume

SIDE_PX, GAP_PX = 190, 4
WINDOW_HU = (-160.0, 900.0)
CONTOUR = {"synthetic": "#ff9f1c", "real": "#4cc9f0"}


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One lesion in its volume (RAS order). `mask` (X, Y, Z) bool: the lesion, or the box a reader drew round it.

    `before` are the same voxels without the lesion, None where nobody knows them.
    """

    kind: str
    words: str
    volume: Volume
    mask: NDArray[np.bool_]
    before: NDArray | None = None


def without_padding(volume: Volume) -> tuple[Volume, tuple[slice, slice, slice]]:
    """The volume without outer slices of one value (patches are padded where the scan ended), and where it lay."""
    box = [slice(0, n) for n in volume.voxels.shape]
    for _ in range(3):  # padding of one axis may hide behind that of another
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            part = volume.voxels[box[0], box[1], box[2]]
            varies = np.flatnonzero(part.max(axis=others) > part.min(axis=others))
            if varies.size:
                start = box[axis].start
                box[axis] = slice(start + int(varies[0]), start + int(varies[-1]) + 1)
    where = (box[0], box[1], box[2])
    affine = volume.affine.copy()
    affine[:3, 3] = voxel_to_ras_mm(volume.affine, [s.start for s in where])
    return Volume(volume.voxels[where], affine, channel=volume.channel), where


def box_mask(volume: Volume, corners_ras_mm: NDArray) -> NDArray[np.bool_]:
    """(2, 3) corners -> the voxels whose centers lie inside; at least the one in the middle. Empty where it lies
    outside."""
    ijk = ras_mm_to_voxel(volume.affine, corners_ras_mm)
    low = np.ceil(ijk.min(axis=0)).astype(int)
    high = np.maximum(np.floor(ijk.max(axis=0)).astype(int) + 1, low + 1)
    mask = np.zeros(volume.voxels.shape, bool)
    inside = [slice(max(0, a), max(0, b)) for a, b in zip(low, high, strict=True)]
    mask[inside[0], inside[1], inside[2]] = True
    return mask


def tile(exhibit: Exhibit, size_mm: float, *, contour: bool = False, before: bool = False) -> bytes:
    """PNG: axial, coronal and sagittal planes through the lesion's middle, `size_mm` wide where there is so much."""
    voxels = exhibit.before if before and exhibit.before is not None else exhibit.volume.voxels
    affine = exhibit.volume.affine
    values, upright_affine = to_ras(voxels, affine)
    labels, _ = to_ras(exhibit.mask.astype(np.uint16), affine)
    grid = Upright(values, labels, upright_affine, affine, voxels.shape)
    middle = np.rint(np.argwhere(labels).mean(axis=0)).astype(int)
    sheet = Sheet(3 * SIDE_PX + 2 * GAP_PX, SIDE_PX)
    for n, (plane, axis) in enumerate(zip(PLANES, (2, 1, 0), strict=True)):
        picture = grid.cut(plane, int(middle[axis]))
        axes = sheet.panel(n * (SIDE_PX + GAP_PX), 0, SIDE_PX, SIDE_PX)
        show(axes, picture, _window(picture, size_mm), darkest=WINDOW_HU[0], brightest=WINDOW_HU[1])
        if contour and picture.labels.any():
            add_lines(axes, picture, outline(picture.labels > 0), CONTOUR[exhibit.kind], width=1.4)
    return sheet.png()


def _window(picture: Picture, size_mm: float) -> Window:
    x0, x1, y0, y1 = picture.bounds_mm
    side = min(size_mm, x1 - x0, y1 - y0)
    x, y = picture.middle_mm(1)
    x, y = (min(max(c, a + side / 2), b - side / 2) for c, a, b in ((x, x0, x1), (y, y0, y1)))
    return Window(x, y, side, side)


def upright_exhibit_volume(volume: Volume) -> Volume:
    """The same image with its axes turned to R, A, S."""
    if closest_axes(volume.affine) == ((0, 1, 2), (1, 1, 1)):
        return volume
    voxels, affine = to_ras(volume.voxels, volume.affine)
    return Volume(voxels, affine, channel=volume.channel)
