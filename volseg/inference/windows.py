"""Where windows lie: even steps over a volume or over its occupied part, in batches, weighted by a Gaussian."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from monai.data.utils import compute_importance_map
from torch import Tensor

Corner = tuple[int, int, int]


@dataclass(frozen=True)
class WindowPlan:
    """Which windows will be visited. `corners` are sorted along the first axis; `total` counts the skipped ones too."""

    corners: tuple[Corner, ...]
    total: int

    def batches(self, size: int) -> Iterator[tuple[Corner, ...]]:
        """`size` windows at a time, across the borders of rows and planes: only the last batch may be smaller."""
        for i in range(0, len(self.corners), size):
            yield self.corners[i : i + size]


def even_starts(length: int, roi: int, overlap: float, *, first: int = 0) -> list[int]:
    """Window starts that cover [first, first + length) evenly with at least `overlap`.

    >>> even_starts(100, 64, 0.5)
    [0, 18, 36]
    """
    if length <= roi:
        return [first]
    count = int(np.ceil((length - roi) / (roi * (1.0 - overlap)))) + 1
    return [first + round(i * (length - roi) / (count - 1)) for i in range(count)]


def plan_windows(
    shape: Sequence[int], roi_size: Sequence[int], overlap: float, occupancy: np.ndarray | None = None
) -> WindowPlan:
    """Windows over a volume of `shape` (>= roi_size); with `occupancy` (bool, same shape) only those that hold any.

    The windows are laid over the bounding box of the occupancy, not over the air around it.
    """
    first, lengths = [0, 0, 0], list(shape)
    if occupancy is not None:
        filled = [np.flatnonzero(occupancy.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        if filled[0].size == 0:
            return WindowPlan((), 0)
        for axis in range(3):
            begin, extent = int(filled[axis][0]), int(filled[axis][-1] - filled[axis][0]) + 1
            lengths[axis] = max(extent, roi_size[axis])
            # What is shorter than a window sits in its middle, as far as the volume's border allows.
            centered = max(0, begin - (lengths[axis] - extent) // 2)
            first[axis] = min(centered, shape[axis] - lengths[axis])
    starts = [even_starts(lengths[a], roi_size[a], overlap, first=first[a]) for a in range(3)]
    every: list[Corner] = [(x, y, z) for x, y, z in itertools.product(*starts)]
    if occupancy is None:
        return WindowPlan(tuple(every), len(every))
    rx, ry, rz = roi_size
    kept: list[Corner] = [(x, y, z) for x, y, z in every if occupancy[x : x + rx, y : y + ry, z : z + rz].any()]
    return WindowPlan(tuple(kept), len(every))


def gaussian_importance(roi_size: Sequence[int], sigma_scale: float = 0.125) -> Tensor:
    """Gaussian weight (X, Y, Z) of a window, as MONAI makes it: floored at 1e-3, so that borders still count."""
    weight = compute_importance_map(tuple(roi_size), mode="gaussian", sigma_scale=sigma_scale).float()
    return weight.clamp_min(max(float(weight.min()), 1e-3))
