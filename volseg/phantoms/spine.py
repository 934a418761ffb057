"""Vertebrae, discs, cord and ribs, drawn along a bent spine. Sizes are adult averages, rounded (mm)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.phantoms.canvas import Canvas, Point, Solid, capsule, ellipsoid, tube


@dataclass(frozen=True)
class Level:
    """One vertebra: where its body's center lies, how it leans, and its sizes in mm."""

    center: Point
    lean_rad: float
    half_width: float
    half_depth: float
    height: float
    disc: float
    thoracic: bool


def plan_spine(region: str, z_range: tuple[float, float], back_y: float, rng: np.random.Generator) -> list[Level]:
    """Levels from below upwards, through the whole z range, on a curve (lordosis below, kyphosis in the thorax)."""
    thoracic = region == "thorax"
    size = rng.uniform(0.95, 1.08)
    half_width, half_depth = (16.0, 13.5) if thoracic else (23.0, 16.5)
    height, disc = (20.0, 5.0) if thoracic else (26.0, 9.5)
    bend = (-1 if thoracic else 1) * rng.uniform(5, 9) / 80.0**2
    sideways, phase = rng.uniform(1.5, 4), rng.uniform(0, 6.28)
    levels = []
    # The pelvis has lumbar vertebrae only above the sacrum, whose upper endplate lies 22 mm above the middle.
    z = 22.0 + disc + height / 2 if region == "pelvis" else z_range[0] - rng.uniform(0, 20)
    while z < z_range[1] + 20:
        grow = size * (1 - 0.0012 * (z - z_range[0]))
        y = back_y + bend * z**2 * -1 + (bend * 80**2 * 0.5)
        levels.append(
            Level(
                center=(float(sideways * np.sin(z / 60 + phase)), float(y), float(z)),
                lean_rad=float(2 * bend * z),
                half_width=half_width * grow,
                half_depth=half_depth * grow,
                height=height * size,
                disc=disc * size,
                thoracic=thoracic,
            )
        )
        z += (height + disc) * size
    return levels


def leaning(level: Level, local: Solid) -> Solid:
    """A solid given in the vertebra's own frame (u right, v anterior, w up), placed in the patient."""
    c, s = np.cos(level.lean_rad), np.sin(level.lean_rad)
    x0, y0, z0 = level.center

    def depth(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        v, w = y - y0, z - z0
        return local(x - x0, c * v + s * w, -s * v + c * w)

    return depth


def _body(level: Level, waist: float, dent_mm: float) -> Solid:
    a, b, half = level.half_width, level.half_depth, level.height / 2

    def depth(u: NDArray, v: NDArray, w: NDArray) -> NDArray:
        narrow = 1 - waist * np.clip(1 - (w / half) ** 2, 0, 1)
        behind = np.where(v < 0, 0.85, 1.0)
        gauge = (np.abs(u / a) ** 2.5 + np.abs(v / (b * behind)) ** 2.5) ** (1 / 2.5) / narrow
        top = half - dent_mm * np.clip(1 - gauge**2, 0, 1) - np.abs(w)
        return np.minimum((1 - gauge) * b * 0.95, top)

    return depth


def _disc(level: Level) -> Solid:
    a, b = level.half_width * 0.98, level.half_depth * 0.98
    middle, half = (level.height + level.disc) / 2, level.disc / 2 + 1.5

    def depth(u: NDArray, v: NDArray, w: NDArray) -> NDArray:
        gauge = (np.abs(u / a) ** 2.4 + np.abs(v / b) ** 2.4) ** (1 / 2.4)
        return np.minimum((1 - gauge) * b, half - np.abs(w - middle))

    return depth


def canal(level: Level, grow_mm: float = 0.0) -> Solid:
    """The spinal canal at one level as a column of oval section."""
    rx, ry = 11.0 + grow_mm, 8.0 + grow_mm
    y = -0.85 * level.half_depth - 8.5

    def depth(u: NDArray, v: NDArray, w: NDArray) -> NDArray:
        return (1 - np.sqrt((u / rx) ** 2 + ((v - y) / ry) ** 2)) * ry + 0 * w

    return leaning(level, depth)


def draw_vertebra(canvas: Canvas, level: Level, marrow_hu: float, rng: np.random.Generator) -> None:
    """Body, pedicles, laminae, processes and the dense articular facets of one vertebra."""
    a, b, h = level.half_width, 0.85 * level.half_depth, level.height
    reach = level.half_width + 45
    tunnel = canal(level)

    def part(local: Solid, *, hu: float = marrow_hu, dense: float = 0.0, thin: float = 1.0, cut: bool = True) -> None:
        canvas.bone(
            leaning(level, local),
            level.center,
            reach,
            marrow_hu=hu,
            dense=dense,
            thin=thin,
            cut=tunnel if cut else None,
        )

    part(_body(level, rng.uniform(0.06, 0.13), rng.uniform(0.8, 2.0)), cut=False)
    back = -b - 17.0
    for side in (-1.0, 1.0):
        jitter = rng.uniform(0.92, 1.08)
        pedicle_u, radius = side * (0.62 * a if not level.thoracic else 0.7 * a), 3.9 * jitter
        hinge = (side * 13.0, back + 4.0, 0.06 * h)
        part(capsule((pedicle_u, -0.6 * b, 0.2 * h), hinge, radius, (1.0, 1.0, 0.72)), thin=1.2)
        part(capsule(hinge, (side * 1.5, back - 7.0, -0.18 * h), 3.4, (1.0, 1.0, 0.5)), thin=1.2)
        if level.thoracic:
            tip = (side * (a + 13) * jitter, back - 8.0, 0.1 * h)
        else:
            tip = (side * (a + 17) * jitter, back + 2.0, 0.12 * h)
        part(capsule(hinge, tip, 3.6, (1.0, 1.0, 0.85)), thin=1.2)
        upper = (side * 15.5, back + 1.5, h / 2 + level.disc * 0.55)
        part(capsule((side * 14.5, back + 3.0, 0), upper, 4.0 * jitter), dense=0.75)
        lower = (side * 11.0, back - 5.5, -h / 2 - level.disc * 0.35)
        part(capsule((side * 11.0, back - 5.0, -0.15 * h), lower, 3.9 * jitter), dense=0.75)
    drop = 18.0 if level.thoracic else 5.0
    spinous = ((0.0, back - 7.0, -0.2 * h), (rng.uniform(-1.5, 1.5), back - 25.0, -0.25 * h - drop))
    part(capsule(spinous[0], spinous[1], 3.6, (1.0, 1.0, 0.45 if not level.thoracic else 0.8)), thin=1.2)


def draw_discs_and_cord(canvas: Canvas, levels: list[Level], rng: np.random.Generator) -> None:
    """Soft parts of the spine: discs, fat of the canal, sac, cord."""
    for level in levels:
        reach = level.half_width + 25
        canvas.soft(leaning(level, _disc(level)), level.center, reach, rng.uniform(75, 95), 5.0)
        slab = _slab(level)
        for solid, hu in ((canal(level), -70.0), (canal(level, -2.0), 15.0), (canal(level, -4.0), 38.0)):
            canvas.soft(_both(solid, slab), level.center, reach, hu)


def _slab(level: Level) -> Solid:
    half = (level.height + level.disc) / 2 + 1.5
    return leaning(level, lambda u, v, w: half - np.abs(w) + 0 * u + 0 * v)


def _both(one: Solid, other: Solid) -> Solid:
    return lambda x, y, z: np.minimum(one(x, y, z), other(x, y, z))


def draw_ribs(canvas: Canvas, levels: list[Level], chest: tuple[float, float], marrow_hu: float) -> None:
    """A pair of ribs for each level: back from the joint, around the chest (half axes in mm), forward and down."""
    half_x, half_y = chest
    for level in levels:
        x0, y0, z0 = level.center
        b = 0.85 * level.half_depth
        for side in (-1.0, 1.0):
            head = np.asarray([x0 + side * level.half_width * 0.95, y0 - b + 1, z0 + level.height * 0.42])
            tubercle = np.asarray([x0 + side * (level.half_width + 14), y0 - b - 19, z0 + level.height * 0.2])
            start = np.arctan2(tubercle[1] / half_y, side * tubercle[0] / half_x)
            angles = np.linspace(start + 0.12, 1.15, 22)
            share = (angles - start) / (1.15 - start)
            around = np.stack(
                [side * half_x * np.cos(angles), half_y * np.sin(angles), tubercle[2] - 8 * share - 42 * share**1.4], 1
            )
            for solid, middle, reach in tube(np.concatenate([[head, tubercle], around]), 3.1, (1.0, 1.0, 0.55)):
                canvas.bone(solid, middle, reach, marrow_hu=marrow_hu, thin=1.5)


def draw_sternum(canvas: Canvas, front_y: float, marrow_hu: float) -> None:
    """A flat bone at the front of the chest."""
    plate = ellipsoid((0.0, front_y, 10.0), (17.0, 6.0, 75.0), 3.5)
    canvas.bone(plate, (0.0, front_y, 10.0), (22.0, 10.0, 80.0), marrow_hu=marrow_hu)
