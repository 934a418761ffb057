"""Masks on an uneven grid: grown and shrunk in mm, parts picked, holes found. Knows no Hounsfield unit.

Masks are (X, Y, Z) bool; `spacing` is (3,), mm per voxel. "Parts" are 26-connected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import TOUCHING

Mask = NDArray[np.bool_]


def dilate(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    """About a ball of `radius_mm`, by turns of cross and box; an axis of wider voxels takes part in fewer."""
    steps = np.round(radius_mm / spacing).astype(int)
    turns = int(steps.max())
    out = mask
    for turn in range(turns):
        axes = [a for a in range(3) if (turn + 1) * steps[a] // turns > turn * steps[a] // turns]
        source, out = out, out.copy()
        for axis in axes:
            # Cross: every shift starts from `source`. Box: shifts build on one another.
            base = source if turn % 2 == 0 else out.copy()
            low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
            high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
            out[high] |= base[low]
            out[low] |= base[high]
    return out


def erode(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    """Erosion to match `dilate`; bone cut by the image border is not eroded from there."""
    return ~dilate(~mask, radius_mm, spacing)


def close(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    """`mask` and the gaps in it up to twice `radius_mm` wide."""
    return erode(dilate(mask, radius_mm, spacing), radius_mm, spacing) | mask


def with_seed(mask: Mask, seed: Mask) -> Mask:
    """The parts of `mask` that hold a voxel of `seed`."""
    labels, count = ndimage.label(mask, TOUCHING)
    keep = np.zeros(count + 1, dtype=bool)
    keep[labels[seed & mask]] = True
    return keep[labels]


def large_parts(mask: Mask, voxels: float) -> Mask:
    """The parts of `mask` with at least so many voxels."""
    labels, _ = ndimage.label(mask, TOUCHING)
    keep = np.bincount(labels.ravel()) >= voxels
    keep[0] = False
    return keep[labels]


def holes(closed: Mask, axes: list[int]) -> tuple[NDArray, NDArray]:
    """What is not `closed`, in parts of face neighbours along `axes`; (labels, voxels per label).

    Label 0 (`closed` itself) and parts open to the image border along `axes` count 0 voxels.
    """
    structure = np.zeros((3, 3, 3), dtype=bool)
    for axis in axes:
        structure[tuple(slice(None) if a == axis else 1 for a in range(3))] = True
    labels, count = ndimage.label(~closed, structure)
    sizes = np.bincount(labels.ravel())
    sizes[touching_border(labels, count, axes)] = 0
    sizes[0] = 0
    return labels, sizes


def touching_border(labels: NDArray, count: int, axes: list[int]) -> Mask:
    """Which labels reach the image border along `axes`; (count + 1,) bool."""
    touching = np.zeros(count + 1, dtype=bool)
    for axis in axes:
        for face in (0, -1):
            touching[labels.take(face, axis)] = True
    return touching
