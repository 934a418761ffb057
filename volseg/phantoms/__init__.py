"""Anatomy of exactly known truth: chance enters, a CT with its bone and marrow masks leaves. No patient is in it.

The scene is drawn in RAS+ mm from solids (Hounsfield units from textbooks), thick voxels as means of thin ones; then it
passes a scanner: point spread and correlated noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import UsageError
from volseg.ops.random_fields import smooth_noise
from volseg.phantoms import pelvis, spine, trunk
from volseg.phantoms.canvas import Canvas
from volseg.types import Volume

Region = Literal["abdomen", "thorax", "pelvis"]
CORTEX_MM = 1.5
FINEST_STEP_MM = 1.3


@dataclass(frozen=True)
class _Build:
    """Half axes of the trunk and the default picture, mm."""

    half_x: float
    half_y: float
    size_mm: tuple[float, float, float]


BUILDS: dict[str, _Build] = {
    "abdomen": _Build(118.0, 86.0, (250.0, 200.0, 160.0)),
    "thorax": _Build(128.0, 88.0, (270.0, 204.0, 160.0)),
    "pelvis": _Build(150.0, 92.0, (312.0, 212.0, 190.0)),
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """`volume` in HU (int16), RAS+; `bone` = `marrow` + `cortex`, bool arrays on its grid, exact by construction."""

    volume: Volume
    bone: NDArray[np.bool_]
    marrow: NDArray[np.bool_]
    cortex: NDArray[np.bool_]
    region: str
    marrow_hu: float


def ct_phantom(
    rng: np.random.Generator,
    *,
    region: Region = "abdomen",
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    size_mm: tuple[float, float, float] | None = None,
    noise_hu: float = 14.0,
) -> Phantom:
    """A CT of one region with known bone. No two seeds are alike; left and right differ (aorta, heart, liver, bowel).

    `size_mm` is the picture's extent along R, A, S; smaller ones cut the front and the sides off, the spine stays.
    Raises UsageError for a region that does not exist or a spacing outside 0.3..6 mm.
    """
    if region not in BUILDS:
        raise UsageError("phantom-region", f"no phantom for region {region!r}; there are {', '.join(BUILDS)}")
    if not all(0.3 <= s <= 6 for s in spacing_mm):
        raise UsageError("phantom-spacing", f"phantom spacing {spacing_mm} mm lies outside 0.3..6 mm")
    build = BUILDS[region]
    size = size_mm or build.size_mm
    fine, origin, canvas = _canvas(spacing_mm, size, build, rng)
    marrow_hu = float(rng.uniform(110, 230))
    _draw(canvas, region, build, size, marrow_hu, rng)
    bone, marrow = _mineral(canvas, rng)

    scene, bone, marrow = (_block_mean(a, fine) for a in (canvas.hu, bone, marrow))
    seen = _scan(scene, np.asarray(spacing_mm), noise_hu, rng)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin
    bone_mask = bone > 0.5
    marrow_mask = bone_mask & (marrow > 0.5)
    voxels = np.clip(np.rint(seen), -1024, 3071).astype(np.int16)
    return Phantom(Volume(voxels, affine), bone_mask, marrow_mask, bone_mask & ~marrow_mask, region, marrow_hu)


def _canvas(
    spacing_mm: tuple[float, float, float], size: tuple[float, float, float], build: _Build, rng: np.random.Generator
) -> tuple[tuple[int, ...], NDArray, Canvas]:
    """The drawing grid (thick voxels are cut into `fine` steps) and the center of the first voxel that leaves."""
    fine = tuple(max(1, int(np.ceil(s / FINEST_STEP_MM))) for s in spacing_mm)
    counts = [max(8, round(extent / s)) for extent, s in zip(size, spacing_mm, strict=True)]
    corner = np.asarray([-size[0] / 2, -build.half_y - 16.0, -size[2] / 2])
    axes = [
        (c + (np.arange(n * f) + 0.5) * (s / f)).astype(np.float32)
        for c, n, f, s in zip(corner, counts, fine, spacing_mm, strict=True)
    ]
    return fine, corner + np.asarray(spacing_mm) / 2, Canvas(axes[0], axes[1], axes[2], rng)


def _draw(
    canvas: Canvas,
    region: str,
    build: _Build,
    size: tuple[float, float, float],
    marrow_hu: float,
    rng: np.random.Generator,
) -> None:
    """Soft tissue first, bone last: it displaces whatever was there."""
    half_x, half_y = build.half_x, build.half_y
    back_y = -half_y + (66.0 if region == "thorax" else 74.0)
    levels = spine.plan_spine(region, (-size[2] / 2, size[2] / 2), back_y, rng)
    trunk.draw_body(canvas, half_x, half_y)
    if region == "abdomen":
        trunk.draw_abdomen(canvas, back_y, half_x, half_y, rng)
    elif region == "thorax":
        trunk.draw_chest(canvas, half_x, half_y, rng)
    else:
        trunk.draw_pelvic_organs(canvas, back_y, half_x, rng)
    trunk.draw_back_muscles(canvas, levels, half_y, psoas=region != "thorax")
    trunk.draw_vessels(canvas, levels, float(rng.uniform(180, 300)))
    spine.draw_discs_and_cord(canvas, levels, rng)
    trunk.draw_table(canvas, -half_y - 2.0)
    for level in levels:
        spine.draw_vertebra(canvas, level, marrow_hu * float(rng.uniform(0.92, 1.08)), rng)
    if region == "thorax":
        spine.draw_ribs(canvas, levels, (half_x - 20, half_y - 20), 0.8 * marrow_hu)
        spine.draw_sternum(canvas, half_y - 22, 0.7 * marrow_hu)
    if region == "pelvis":
        pelvis.draw_pelvis(canvas, levels[0].center[1] if levels else back_y, marrow_hu, rng)


def _mineral(canvas: Canvas, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Turn depth in bone into cortex and trabecular marrow; returns the shares of bone and marrow per voxel."""
    depth, spacing = canvas.bone_depth_mm, canvas.spacing_mm
    near = depth > -2
    shape = depth.shape
    thickness = CORTEX_MM * (1 + 0.2 * smooth_noise(shape, spacing, 8.0, rng)[near])
    bone = canvas.cover(depth[near])
    marrow = np.minimum(bone, canvas.cover(depth[near] - thickness))
    cortex_hu = rng.uniform(950, 1250) + 80 * smooth_noise(shape, spacing, 3.2, rng)[near]
    mean = canvas.marrow_hu[near]
    coarse = smooth_noise(shape, spacing, 5.0, rng)[near]
    trabeculae = smooth_noise(shape, spacing, 0.7, rng)[near]
    inside = mean + 0.12 * mean * coarse + (18 + 0.12 * mean) * trabeculae
    inside = inside + canvas.dense[near] * (700 - inside)
    mineral = marrow * inside + (bone - marrow) * cortex_hu
    canvas.hu[near] = (1 - bone) * canvas.hu[near] + mineral
    shares = np.zeros((2, *shape), np.float32)
    shares[0][near], shares[1][near] = bone, marrow
    return shares[0], shares[1]


def _block_mean(fine: NDArray, factors: tuple[int, ...]) -> NDArray:
    if all(f == 1 for f in factors):
        return fine
    split = [v for n, f in zip(fine.shape, factors, strict=True) for v in (n // f, f)]
    return fine.reshape(split).mean(axis=(1, 3, 5))


def _scan(scene: NDArray, spacing: NDArray, noise_hu: float, rng: np.random.Generator) -> NDArray:
    """Point spread (0.55 mm, or half a voxel) and noise with correlated neighbours, equally strong everywhere."""
    seen = ndimage.gaussian_filter(scene, np.maximum(0.55 / spacing, 0.45), truncate=3.0)
    grain = ndimage.gaussian_filter(rng.standard_normal(scene.shape, dtype=np.float32), 0.55, truncate=3.0)
    return seen + grain * (noise_hu / float(grain.std()))
