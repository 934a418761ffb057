"""The outline of a lesion: millimetre coordinates enter, signed depth in mm leaves (positive inside)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.ops.random_fields import smooth_noise


@dataclass(frozen=True)
class Superellipsoid:
    """|u/a|^e + |v/b|^e + |w/c|^e = 1 in a turned frame; `offset_mm` from the lesion's center, RAS+ mm."""

    offset_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    exponent: float
    rotation: tuple[tuple[float, float, float], ...]

    def depth_mm(self, xyz_mm: NDArray) -> NDArray:
        """Distance to the surface along the ray from the part's center, positive inside; xyz_mm is (3, X, Y, Z)."""
        turned = np.tensordot(np.asarray(self.rotation), xyz_mm - np.reshape(self.offset_mm, (3, 1, 1, 1)), 1)
        length = np.sqrt((turned**2).sum(0)) + 1e-3
        scaled = np.abs(turned / np.reshape(self.radii_mm, (3, 1, 1, 1))) + 1e-6
        gauge = (scaled**self.exponent).sum(0) ** (1 / self.exponent)
        return length / gauge - length


def random_rotation(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """A rotation drawn uniformly (QR of a Gaussian matrix), as nested tuples so that it can be stored."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return tuple((float(row[0]), float(row[1]), float(row[2])) for row in q)


def draw_parts(diameter_mm: float, rng: np.random.Generator) -> tuple[Superellipsoid, ...]:
    """One to three superellipsoids that together span about `diameter_mm`. Small lesions are mostly one."""
    count = int(rng.choice((1, 2, 3), p=(0.7, 0.25, 0.05) if diameter_mm < 12 else (0.35, 0.4, 0.25)))
    parts = []
    for k in range(count):
        radius = diameter_mm / 2 * (1.0 if k == 0 else rng.uniform(0.5, 0.85)) * (1.0 if count == 1 else 0.85)
        radii = radius * np.exp(rng.normal(0, 0.18, 3))
        offset = np.zeros(3)
        if k:
            direction = rng.standard_normal(3)
            offset = direction / np.linalg.norm(direction) * diameter_mm / 2 * rng.uniform(0.4, 0.8)
        parts.append(
            Superellipsoid(
                offset_mm=(float(offset[0]), float(offset[1]), float(offset[2])),
                radii_mm=(float(radii[0]), float(radii[1]), float(radii[2])),
                exponent=float(rng.uniform(1.7, 3.2)),
                rotation=random_rotation(rng),
            )
        )
    return tuple(parts)


def outline_mm(
    parts: tuple[Superellipsoid, ...],
    xyz_mm: NDArray,
    spacing: NDArray,
    roughness: float,
    rng: np.random.Generator,
) -> NDArray:
    """Signed depth (X, Y, Z) in mm of the union of the parts, its radius disturbed by `roughness` (a fraction)."""
    depth = parts[0].depth_mm(xyz_mm)
    for part in parts[1:]:
        depth = np.maximum(depth, part.depth_mm(xyz_mm))
    radius = float(np.mean(parts[0].radii_mm))
    shape = depth.shape
    bumps = 0.8 * smooth_noise(shape, spacing, 0.45 * radius, rng) + 0.6 * smooth_noise(
        shape, spacing, 0.2 * radius, rng
    )
    return depth + roughness * radius * np.clip(bumps, -2, 2)


def depth_in_bone_mm(bone: NDArray[np.bool_], spacing: NDArray) -> NDArray:
    """Signed distance to the bone's surface in mm: positive inside, negative outside, 0 half-way between two voxels."""
    half = float(spacing.min()) / 2
    inside = ndimage.distance_transform_edt(bone, sampling=spacing)
    outside = ndimage.distance_transform_edt(~bone, sampling=spacing)
    return np.where(bone, inside - half, half - outside)


def smooth_step(distance_mm: NDArray, sigma_mm: float) -> NDArray:
    """0 outside, .5 on the surface, 1 inside: a cubic as steep as the Gaussian edge, constant beyond 1.9 sigma."""
    t = np.clip(0.5 + distance_mm / (3.76 * sigma_mm), 0, 1)
    return t * t * (3 - 2 * t)
