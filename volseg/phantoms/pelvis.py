"""Sacrum, iliac wings, hip joints and pubis. z = 0 is the middle of the picture, the sacrum's top lies at 22 mm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.canvas import Canvas, Solid, capsule, ellipsoid, tube


def _wing(side: float, back_y: float, thickness_mm: float) -> Solid:
    """A bowl-shaped plate from the sacroiliac joint to the front crest, thicker along the crest and at the hip."""

    def depth(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        along = (y - (back_y - 18)) / 95.0
        middle = side * (47 + 54 * np.clip(along, 0, 1.3) ** 0.9 + 16 * along * (1 - along)) + side * 0.28 * (z - 10)
        crest = 62 - 75 * (along - 0.42) ** 2 - z
        foot = z + 62 - 18 * np.abs(along - 0.45)
        bulk = thickness_mm + 5.0 * np.exp(-(((crest - 6) / 9) ** 2)) + 9.0 * np.exp(-(((along - 0.02) / 0.2) ** 2))
        bulk = bulk + 7.0 * np.exp(-(((z + 50) / 18) ** 2))
        sheet = (bulk / 2 - np.abs(x - middle)) * 0.8
        ends = np.minimum(along * 95 + 12, (1.02 - along) * 95)
        return np.minimum(np.minimum(sheet, 0.8 * np.minimum(crest, foot)), 0.8 * ends)

    return depth


def _sacrum(back_y: float) -> Solid:
    """A wedge that narrows and bends backwards on its way down."""

    def depth(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        down = np.clip(22 - z, -5, 130)
        middle = back_y - 0.42 * down + 0.0016 * down**2
        half_width = 47 - 0.33 * down - 10 * np.exp(-down / 8)
        half_depth = 16.5 - 0.105 * down - 4.5 * (np.abs(x) / 50) ** 2
        gauge = (
            np.abs(x / np.maximum(half_width, 2)) ** 2.6 + np.abs((y - middle) / np.maximum(half_depth, 2)) ** 2.2
        ) ** 0.42
        return np.minimum((1 - gauge) * np.maximum(half_depth, 2), 22 - z + 0.1 * (y - middle))

    return depth


def _foramina(canvas: Canvas, back_y: float) -> None:
    for down in (24.0, 48.0, 70.0):
        y = back_y - 0.42 * down + 0.0016 * down**2
        for side in (-1.0, 1.0):
            x = side * (19.0 - 0.07 * down)
            center = (x, y, 22 - down)
            found = canvas.box(center, 18.0)
            if found is None:
                continue
            slices, grids = found
            hole = capsule((x, y - 14, 22 - down - 3), (x, y + 14, 22 - down + 3), 3.4)(*grids)
            local = canvas.bone_depth_mm[slices]
            np.minimum(local, -hole, out=local)


def draw_pelvis(canvas: Canvas, back_y: float, marrow_hu: float, rng: np.random.Generator) -> None:
    """Everything below the last lumbar disc."""
    center = (0.0, back_y - 20, -30.0)
    canvas.bone(_sacrum(back_y), center, (62.0, 55.0, 85.0), marrow_hu=0.85 * marrow_hu)
    for down in (10.0, 34.0, 58.0):
        y = back_y - 0.42 * down + 0.0016 * down**2
        crest = capsule((0, y - 12, 22 - down), (0, y - 21, 16 - down), 4.0, (1.0, 1.0, 0.5))
        canvas.bone(crest, (0.0, y - 16, 20 - down), 22.0, marrow_hu=0.85 * marrow_hu)
    _foramina(canvas, back_y)
    for side in (-1.0, 1.0):
        thick = rng.uniform(6.0, 7.5)
        wing_center = (side * 90.0, back_y + 30, 0.0)
        canvas.bone(_wing(side, back_y, thick), wing_center, (75.0, 75.0, 85.0), marrow_hu=0.8 * marrow_hu)
        _hip(canvas, side, back_y, marrow_hu)


def _hip(canvas: Canvas, side: float, back_y: float, marrow_hu: float) -> None:
    """Acetabulum, femoral head and neck, greater trochanter, pubic and ischial rami."""
    head = (side * 88.0, back_y + 36.0, -72.0)
    ball = ellipsoid(head, (22.0, 22.0, 22.0))

    def cup(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        radius = np.sqrt((x - head[0]) ** 2 + (y - head[1]) ** 2 + (z - head[2]) ** 2)
        open_side = side * (x - head[0]) * 0.75 - (z - head[2]) * 0.65 - 6
        return np.minimum(5.0 - np.abs(radius - 30.0), -0.8 * open_side)

    canvas.bone(cup, head, 40.0, marrow_hu=marrow_hu)
    symphysis = (side * 8.0, back_y + 78.0, -92.0)
    rami = np.asarray(
        [
            [side * 66, back_y + 52, -74],
            [side * 38, back_y + 72, -76],
            symphysis,
            [side * 30, back_y + 48, -112],
            [side * 58, back_y + 18, -122],
            [side * 66, back_y + 16, -92],
        ]
    )
    for solid, middle, reach in tube(rami, 7.0, (1.0, 1.0, 0.85)):
        canvas.bone(solid, middle, reach, marrow_hu=0.8 * marrow_hu)
    # The joint space stays open: 2.5 mm between head and cup.
    found = canvas.box(head, 30.0)
    if found is not None:
        slices, grids = found
        local = canvas.bone_depth_mm[slices]
        np.minimum(local, -(ball(*grids) + 2.5), out=local)
    canvas.bone(ball, head, 26.0, marrow_hu=1.5 * marrow_hu)
    trochanter = (side * 128.0, back_y + 20.0, -96.0)
    canvas.bone(capsule(head, trochanter, 13.0), (side * 108.0, back_y + 28, -84.0), 46.0, marrow_hu=0.5 * marrow_hu)
    canvas.bone(ellipsoid(trochanter, (16.0, 17.0, 24.0)), trochanter, 28.0, marrow_hu=0.3 * marrow_hu)
