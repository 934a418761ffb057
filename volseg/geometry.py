"""Affines, millimetres and directions. The only file that knows RAS from LPS; imports numpy and nothing else.

An affine is a (4, 4) float64 array that takes voxel indices (i, j, k) to RAS+ millimetres (Right, Anterior, Superior
are positive), NIfTI's convention. DICOM and ITK speak LPS.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.errors import InputError

Affine = NDArray[np.float64]
LPS_TO_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])

# Clinical CT and MR voxels lie well inside these bounds; outside them a header is wrong (bad_inputs.md, 34).
SMALLEST_SPACING_MM = 0.01
LARGEST_SPACING_MM = 100.0

TOUCHING: NDArray[np.bool_] = np.ones((3, 3, 3), dtype=bool)  # 26 neighbours: faces, edges and corners


def spacing_mm(affine: ArrayLike) -> NDArray[np.float64]:
    """Length in mm of one step along each voxel axis, shape (3,)."""
    return np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)


def voxel_volume_mm3(affine: ArrayLike) -> float:
    """Volume of one voxel in mm³; right for sheared (gantry-tilted) grids too."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))


def direction_cosines(affine: ArrayLike) -> NDArray[np.float64]:
    """Unit vectors of the voxel axes in RAS+, as columns, shape (3, 3)."""
    return np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm(affine)


def voxel_to_ras_mm(affine: ArrayLike, ijk: ArrayLike) -> NDArray[np.float64]:
    """Voxel indices (..., 3) -> RAS+ mm (..., 3). Integer indices are voxel centers."""
    a = np.asarray(affine, dtype=np.float64)
    return np.asarray(ijk, dtype=np.float64) @ a[:3, :3].T + a[:3, 3]


def ras_mm_to_voxel(affine: ArrayLike, xyz: ArrayLike) -> NDArray[np.float64]:
    """RAS+ mm (..., 3) -> fractional voxel indices (..., 3)."""
    return voxel_to_ras_mm(np.linalg.inv(np.asarray(affine, dtype=np.float64)), xyz)


def lps_to_ras(affine_lps: ArrayLike) -> Affine:
    """Affine into LPS mm (DICOM, ITK) -> affine into RAS+ mm. Its own inverse."""
    return LPS_TO_RAS @ np.asarray(affine_lps, dtype=np.float64)


def shear(affine: ArrayLike) -> float:
    """Largest |cosine| between two voxel axes: 0 for a rectangular grid, sin(tilt) for a tilted gantry."""
    d = direction_cosines(affine)
    gram = np.abs(d.T @ d)
    return float(max(gram[0, 1], gram[0, 2], gram[1, 2]))


def voxels_within(mm: float, affine: ArrayLike) -> NDArray[np.int64]:
    """Voxels along each axis, shape (3,), beyond which nothing lies within `mm` of a voxel's center.

    One index along axis i changes by at most |row i of the inverse| per mm, sheared grids included.
    """
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64)[:3, :3])
    return np.ceil(mm * np.linalg.norm(inverse, axis=1)).astype(np.int64)


def widened(box: Iterable[slice], reach: Iterable[int], shape: Iterable[int]) -> tuple[slice, ...]:
    """A box of voxels with `reach` more on both sides of every axis, cut at the volume's border."""
    return tuple(
        slice(max(0, int(s.start - r)), min(n, int(s.stop + r))) for s, r, n in zip(box, reach, shape, strict=True)
    )


def box_corners_ras_mm(box: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """The eight corners (8, 3), RAS+ mm, of a half-open voxel box (6,) xyzxyz; the last axis runs fastest.

    The corner of voxel i lies at index i - .5, because integer indices are voxel centres.
    """
    b = np.asarray(box, dtype=np.float64) - 0.5
    corners = np.stack(np.meshgrid(b[[0, 3]], b[[1, 4]], b[[2, 5]], indexing="ij"), axis=-1).reshape(-1, 3)
    return voxel_to_ras_mm(affine, corners)


def box_to_ras_mm(box: ArrayLike, affine: ArrayLike) -> NDArray[np.float64]:
    """The axis-parallel box in RAS+ mm, (6,) xyzxyz, that holds a voxel box (6,) on any grid.

    All eight corners are taken, so that oblique and sheared grids are right. (MONAI 1.6's AffineBoxToWorldCoordinate
    moves two corners and is half a voxel off.)
    """
    mm = box_corners_ras_mm(box, affine)
    return np.concatenate([mm.min(axis=0), mm.max(axis=0)])


def closest_axes(affine: ArrayLike) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which voxel axis runs closest to R, A and S, and in which sense.

    Returns (order, sign): `order[w]` is the voxel axis for world axis w, `sign[w]` is +1 if it runs towards RAS+.
    The assignment maximises the summed |cosine| over all permutations, so oblique grids never use an axis twice.
    """
    d = direction_cosines(affine)
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    order = max(permutations, key=lambda p: sum(abs(d[w, p[w]]) for w in range(3)))
    return order, tuple(1 if d[w, order[w]] >= 0 else -1 for w in range(3))


def axis_codes(affine: ArrayLike) -> str:
    """Where each voxel axis points, as in nibabel: 'LAS' means i runs to the left, j anterior, k superior."""
    order, sign = closest_axes(affine)
    codes = ["", "", ""]
    for world, (axis, s) in enumerate(zip(order, sign, strict=True)):
        codes[axis] = ("LR", "PA", "IS")[world][s > 0]
    return "".join(codes)


def is_axis_aligned(affine: ArrayLike, tolerance: float = 1e-4) -> bool:
    """Whether every voxel axis runs along a world axis (no rotation beyond 90° turns, no shear)."""
    d = np.abs(direction_cosines(affine))
    return bool(np.all((d < tolerance) | (d > 1 - tolerance)))


def to_ras(voxels: NDArray, affine: ArrayLike) -> tuple[NDArray, Affine]:
    """Permute and flip (X, Y, Z) voxels so that axes run closest to R, A, S. A view; world positions are unchanged."""
    order, sign = closest_axes(affine)
    a = np.asarray(affine, dtype=np.float64)
    out = a.copy()
    out[:3, :3] = a[:3, list(order)]
    turned = voxels.transpose(order)
    for axis, s in enumerate(sign):
        if s < 0:
            out[:3, 3] += out[:3, axis] * (turned.shape[axis] - 1)
            out[:3, axis] *= -1
            turned = np.flip(turned, axis)
    return turned, out


def check_affine(affine: ArrayLike, where: str) -> Affine:
    """Return the affine as float64, or refuse it in words: NaN, singular, or spacing no scanner makes."""
    a = np.asarray(affine, dtype=np.float64)
    if a.shape != (4, 4) or not np.isfinite(a).all():
        raise InputError(
            "affine-not-finite", f"{where}: the voxel-to-mm matrix holds NaN or Inf; export the image again"
        )
    sizes = spacing_mm(a)
    if (sizes < SMALLEST_SPACING_MM).any() or (sizes > LARGEST_SPACING_MM).any():
        listed = ", ".join(f"{s:.3g}" for s in sizes)
        raise InputError(
            "spacing-impossible",
            f"{where}: voxel spacing [{listed}] mm lies outside {SMALLEST_SPACING_MM}..{LARGEST_SPACING_MM} mm; "
            "the header is wrong",
        )
    if abs(np.linalg.det(direction_cosines(a))) < 1e-3:
        raise InputError("affine-singular", f"{where}: the voxel axes do not span space (singular affine)")
    return a
