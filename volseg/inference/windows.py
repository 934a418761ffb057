"""Where windows lie: even steps over the occupied part of a volume, or MONAI's own; which of them can be left out."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

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


def monai_starts(length: int, roi: int, overlap: float) -> list[int]:
    """Window starts as MONAI 1.6.1's SlidingWindowInferer lays them: equal steps, the last window moved back inside.

    >>> monai_starts(100, 64, 0.5)
    [0, 32, 36]
    """
    step = max(1, int(roi * (1.0 - overlap)))
    count = 1 + max(0, -(-(length - roi) // step))
    return [min(i * step, length - roi) for i in range(count)]


def plan_windows(
    shape: Sequence[int],
    roi_size: Sequence[int],
    overlap: float,
    occupancy: np.ndarray | None = None,
    *,
    layout: str = "even",
    spare: float = 0.0,
    weight: np.ndarray | None = None,
) -> WindowPlan:
    """Windows over a volume of `shape` (>= roi_size); with `occupancy` (bool, same shape) only those that hold any.

    layout: "even" lays windows over the bounding box of the occupancy, not over the air around it; "monai" lays them
        over the whole volume at MONAI's places, so that each one shows the network what MONAI would show it.
    spare: share of the blended `weight` (of a window, (X, Y, Z)) that every occupied voxel can spare: windows that
        see bone with their faint rim only are left out, as many as fit. 0 leaves out none that holds any.
    """
    first, lengths = [0, 0, 0], list(shape)
    if layout == "monai":
        starts = [monai_starts(lengths[a], roi_size[a], overlap) for a in range(3)]
    elif occupancy is not None:
        filled = [np.flatnonzero(occupancy.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        if filled[0].size == 0:
            return WindowPlan((), 0)
        for axis in range(3):
            begin, extent = int(filled[axis][0]), int(filled[axis][-1] - filled[axis][0]) + 1
            lengths[axis] = max(extent, roi_size[axis])
            # What is shorter than a window sits in its middle, as far as the volume's border allows.
            centered = max(0, begin - (lengths[axis] - extent) // 2)
            first[axis] = min(centered, shape[axis] - lengths[axis])
    if layout == "even":
        starts = [even_starts(lengths[a], roi_size[a], overlap, first=first[a]) for a in range(3)]
    every: list[Corner] = [(x, y, z) for x, y, z in itertools.product(*starts)]
    if occupancy is None:
        return WindowPlan(tuple(every), len(every))
    kept = [corner for corner in every if occupancy[_window(corner, roi_size)].any()]
    if spare > 0 and weight is not None:
        kept = _needed(kept, occupancy, weight, spare)
    return WindowPlan(tuple(kept), len(every))


def _window(corner: Corner, roi_size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + r) for c, r in zip(corner, roi_size, strict=True))


def _needed(corners: Sequence[Corner], occupancy: np.ndarray, weight: np.ndarray, spare: float) -> list[Corner]:
    """`corners` less those that can go while every occupied voxel keeps 1 - `spare` of its weight; faintest first."""
    total = np.zeros(occupancy.shape, np.float32)
    for corner in corners:
        total[_window(corner, weight.shape)] += weight
    # What each occupied voxel can still lose, as a weight.
    left = np.where(occupancy, spare * total, np.inf).astype(np.float32)
    shares = [float((weight / total[w])[occupancy[w]].max()) for w in (_window(c, weight.shape) for c in corners)]
    gone = set()
    for i in np.argsort(shares, kind="stable"):
        here = left[_window(corners[i], weight.shape)]
        if shares[i] > spare:
            break
        if (here >= weight).all():
            here -= weight
            gone.add(int(i))
    return [corner for i, corner in enumerate(corners) if i not in gone]


def gaussian_importance(roi_size: Sequence[int], sigma_scale: float = 0.125) -> Tensor:
    """Gaussian weight (X, Y, Z) of a window, as MONAI makes it: floored at 1e-3, so that borders still count."""
    weight = compute_importance_map(tuple(roi_size), mode="gaussian", sigma_scale=sigma_scale).float()
    return weight.clamp_min(max(float(weight.min()), 1e-3))


def window_size(roi_size: Sequence[int] | int) -> Corner:
    """One length or three -> three. Raises ValueError for anything else."""
    size: Corner = (roi_size,) * 3 if isinstance(roi_size, int) else tuple(roi_size)  # type: ignore[assignment]
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"roi_size needs three positive lengths, not {roi_size}")
    return size


def volumes_of(inputs: Tensor, occupancy: Tensor | None) -> Iterator[tuple[Tensor, np.ndarray | None]]:
    """(B, C, X, Y, Z) and where to look (B, 1, X, Y, Z) -> plain (C, X, Y, Z) and bool (X, Y, Z), one by one."""
    if inputs.ndim != 5:
        raise ValueError(f"a sliding window over volumes needs (B, C, X, Y, Z), not {tuple(inputs.shape)}")
    for index, image in enumerate(inputs):
        where = None if occupancy is None else (torch.as_tensor(occupancy[index, 0]) > 0).cpu().numpy()
        yield image.as_tensor() if isinstance(image, MetaTensor) else image, where


def padded_to_window(
    image: Tensor, where: np.ndarray | None, roi_size: Sequence[int], value: float
) -> tuple[Tensor, np.ndarray | None, list[int]]:
    """Make a volume (C, X, Y, Z) at least as large as a window; also says how much was put before each axis.

    Padded on both sides, so that a small crop sits in the middle of the window as it did in training.
    """
    padding = [max(0, r - n) for r, n in zip(roi_size, image.shape[1:], strict=True)]
    before = [p // 2 for p in padding]
    if any(padding):
        sides = [(b, p - b) for b, p in zip(before, padding, strict=True)]
        image = functional.pad(image, [v for pair in reversed(sides) for v in pair], value=value)
        where = np.pad(where, sides) if where is not None else None
    return image, where, before


def window_bar(plan: WindowPlan, progress: bool | None) -> tqdm:
    """A bar over the plan's windows on stderr; `progress` None shows it only on a terminal."""
    return tqdm(
        total=len(plan.corners),
        desc=f"windows ({len(plan.corners)} of {plan.total} hold bone)",
        unit="win",
        disable=None if progress is None else not progress,
        file=sys.stderr,
        leave=False,
    )
