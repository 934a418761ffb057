"""Where a phantom is drawn: solids in RAS+ mm become Hounsfield units and a signed depth in bone on one grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from volseg.ops.random_fields import smooth_noise

Point = tuple[float, float, float]
# A solid: open grids x, y, z in mm -> signed depth in mm, positive inside.
Solid = Callable[[NDArray, NDArray, NDArray], NDArray]
FAR_MM = 50.0


def ellipsoid(center: Point, radii: Point, exponent: float = 2.0) -> Solid:
    """Depth is exact along the shortest axis and short by the others: good enough for shells of a few mm."""

    def depth(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        gauge = sum(np.abs((v - c) / r) ** exponent for v, c, r in zip((x, y, z), center, radii, strict=True))
        return (1 - np.asarray(gauge) ** (1 / exponent)) * min(radii)

    return depth


def capsule(start: Point, end: Point, radius: float, flatten: Point = (1.0, 1.0, 1.0)) -> Solid:
    """A rod with round ends; `flatten` scales the axes before measuring (2.0 along x: half as wide)."""
    f = np.asarray(flatten)
    p, q = np.asarray(start) * f, np.asarray(end) * f
    axis = q - p
    length2 = float(axis @ axis) + 1e-9

    def depth(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        dx, dy, dz = x * f[0] - p[0], y * f[1] - p[1], z * f[2] - p[2]
        t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / length2, 0, 1)
        return radius - np.sqrt((dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2)

    return depth


def tube(points: NDArray, radius: float, flatten: Point = (1.0, 1.0, 1.0)) -> list[tuple[Solid, Point, float]]:
    """A bent rod through `points` (n, 3): its pieces, each with the middle and reach of its box."""
    pieces = []
    for a, b in pairwise(points):
        middle = (a + b) / 2
        reach = float(np.linalg.norm(b - a)) / 2 + radius / min(flatten) + 2
        start, end = (float(a[0]), float(a[1]), float(a[2])), (float(b[0]), float(b[1]), float(b[2]))
        pieces.append(
            (capsule(start, end, radius, flatten), (float(middle[0]), float(middle[1]), float(middle[2])), reach)
        )
    return pieces


@dataclass(eq=False)
class Canvas:
    """What is drawn, on one grid whose voxel centers are x, y, z in RAS+ mm.

    `hu` and `bone_depth_mm` (X, Y, Z); `plain_hu` is what was painted last without its texture, which tells the tissue
    to other scanners (`volseg.phantoms.mri`); `marrow_hu` the marrow's mean where bone is; `dense` 0..1 where bone is
    solid.
    """

    x: NDArray
    y: NDArray
    z: NDArray
    rng: np.random.Generator
    hu: NDArray[np.float32] = field(init=False)
    plain_hu: NDArray[np.float32] = field(init=False)
    bone_depth_mm: NDArray[np.float32] = field(init=False)
    marrow_hu: NDArray[np.float32] = field(init=False)
    dense: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.x.size, self.y.size, self.z.size)
        self.hu = np.full(shape, -1000, np.float32)
        self.plain_hu = self.hu.copy()
        self.bone_depth_mm = np.full(shape, -FAR_MM, np.float32)
        self.marrow_hu = np.full(shape, 150, np.float32)
        self.dense = np.zeros(shape, np.float32)

    @property
    def spacing_mm(self) -> NDArray:
        return np.asarray([float(v[1] - v[0]) for v in (self.x, self.y, self.z)])

    def box(self, center: Point, reach_mm: float | Point) -> tuple[tuple[slice, ...], list[NDArray]] | None:
        """Slices and open grids of the part of the grid within reach; None if it lies outside."""
        reach = (reach_mm,) * 3 if isinstance(reach_mm, (int, float)) else reach_mm
        slices = tuple(
            slice(int(np.searchsorted(v, c - r)), int(np.searchsorted(v, c + r)))
            for v, c, r in zip((self.x, self.y, self.z), center, reach, strict=True)
        )
        if any(s.stop <= s.start for s in slices):
            return None
        shapes = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        return slices, [v[s].reshape(d) for v, s, d in zip((self.x, self.y, self.z), slices, shapes, strict=True)]

    def cover(self, depth_mm: NDArray) -> NDArray:
        """Share of a voxel that lies inside: 0..1."""
        return np.clip(depth_mm / float(self.spacing_mm.mean()) + 0.5, 0, 1)

    def soft(self, solid: Solid, center: Point, reach_mm: float | Point, hu: float, texture_hu: float = 0.0) -> None:
        """Paint an organ over what is there."""
        found = self.box(center, reach_mm)
        if found is None:
            return
        slices, grids = found
        cover = self.cover(solid(*grids))
        value: NDArray | float = hu
        if texture_hu:
            value = hu + texture_hu * smooth_noise(cover.shape, self.spacing_mm, 5.0, self.rng)
        self.hu[slices] += (cover * (value - self.hu[slices])).astype(np.float32)
        self.plain_hu[slices][cover > 0.5] = hu

    def bone(
        self,
        solid: Solid,
        center: Point,
        reach_mm: float | Point,
        *,
        marrow_hu: float,
        dense: float = 0.0,
        cut: Solid | None = None,
        thin: float = 1.0,
    ) -> None:
        """Join a solid to the bone. `cut` is taken away from it (the canal); `thin` > 1 makes its cortex thinner."""
        found = self.box(center, reach_mm)
        if found is None:
            return
        slices, grids = found
        depth = solid(*grids) * thin
        if cut is not None:
            depth = np.minimum(depth, -cut(*grids))
        old = self.bone_depth_mm[slices]
        inside = depth > np.maximum(old, -1.5)
        self.marrow_hu[slices][inside] = marrow_hu
        self.dense[slices][inside] = dense
        np.maximum(old, depth, out=old)
