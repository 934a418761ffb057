"""Tensor + voxel map -> tensor on another grid. Plain torch, any device; knows no metadata and no file.

A voxel map is a (4, 4) matrix that takes voxel indices of the target grid to fractional voxel indices of the source
grid, so `numpy.linalg.inv(source_affine) @ target_affine`. Two roads lead from one grid to the other:

- where each target axis runs along one source axis (spacing, flips, permutations and any rotation common to both
  grids), three 1-D interpolations one after the other;
- otherwise (shear, a rotation between the grids) one 3-D interpolation.

Both walk through the volume in slabs, so beyond input and output they need a few megabytes. Both agree with
`torch.nn.functional.grid_sample(..., padding_mode="border", align_corners=False)` in voxel coordinates.

Towards a coarser grid that reads two source voxels of many and keeps all their noise; `antialias` weighs every source
voxel within one target voxel by a triangle instead (linear interpolation as seen from the coarse grid), as
`torch.nn.functional.interpolate(antialias=True)` does in 2-D.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from volseg.errors import UsageError

# Float32 bytes of a slab per thread: 1 to 4 MB are equally fast on an idle machine, and fewer, larger parallel steps
# suffer less from busy neighbours (2026-11).
SLAB_BYTES = 4 << 20
# A map counts as separable if leaving its cross terms out moves no voxel by more than this fraction of a voxel;
# DICOM writes direction cosines with six or more digits, which is below it.
CROSS_TERM_VOXELS = 2e-3
# Source positions this close to a voxel centre are that voxel: rounding in the affines must not cost a pass.
ON_VOXEL = 1e-6
LINEAR, NEAREST = "linear", "nearest"
MODES = {"linear": LINEAR, "bilinear": LINEAR, "trilinear": LINEAR, "nearest": NEAREST}


def interpolation_mode(mode: str) -> str:
    """'linear' or 'nearest'; MONAI's 'bilinear' is linear in as many axes as there are."""
    try:
        return MODES[str(getattr(mode, "value", mode))]
    except KeyError:
        raise UsageError("unknown-interpolation", f"mode {mode!r} is none of {', '.join(MODES)}") from None


def separable_axes(voxel_map: ArrayLike, shape: Sequence[int]) -> tuple[int, int, int] | None:
    """The source axis each target axis runs along, or None if the map mixes axes over a target of this shape."""
    linear = np.asarray(voxel_map, dtype=np.float64)[:3, :3]
    shift_voxels = np.abs(linear) * np.maximum(np.asarray(shape, dtype=np.float64) - 1, 1)
    order = np.argmax(np.abs(linear), axis=0)
    if len(set(order.tolist())) < 3:
        return None
    shift_voxels[order, range(3)] = 0
    if shift_voxels.sum(axis=1).max() > CROSS_TERM_VOXELS:
        return None
    return int(order[0]), int(order[1]), int(order[2])


def interpolate(
    voxels: Tensor,
    voxel_map: ArrayLike,
    shape: Sequence[int],
    *,
    mode: str = LINEAR,
    outside: float | None = None,
    antialias: bool = False,
) -> Tensor:
    """Values of `voxels` (C, X, Y, Z) on a grid of `shape` whose index i lies at source voxel `voxel_map @ i`.

    Returns a contiguous (C, *shape) tensor: float32 for linear; the input's dtype for nearest, where a position midway
    between two voxels takes the upper one. Beyond the outermost voxel centres the border value holds; with `outside`
    given it holds for half a voxel more and `outside` fills the rest. `antialias` changes linear mode alone, and only
    along axes where the target is coarser; between grids that are rotated against each other the source is smoothed
    first, which needs one copy of it in float32.
    """
    mode = interpolation_mode(mode)
    matrix = np.asarray(voxel_map, dtype=np.float64)
    target = tuple(int(n) for n in shape)
    dtype = torch.float32 if mode == LINEAR else voxels.dtype
    axes = separable_axes(matrix, target)
    out = torch.empty((voxels.shape[0], *target), dtype=dtype, device=voxels.device)
    reach = np.ones(3)
    if antialias and mode == LINEAR:
        reach = np.maximum(np.linalg.norm(matrix[:3, :3], axis=1), 1.0)
    if axes is None:
        if (reach > 1).any():
            smooth = torch.empty(voxels.shape, dtype=torch.float32, device=voxels.device)
            _interpolate_separable(voxels, [np.arange(n, dtype=float) for n in voxels.shape[1:]], smooth, mode, reach)
            voxels = smooth
        _interpolate_3d(voxels, matrix, out, mode, outside)
        return out
    # Cross terms are below the tolerance; their mean goes into the offset.
    middle = (np.asarray(target) - 1) / 2
    positions = []
    for t, s in enumerate(axes):
        offset = matrix[s, 3] + matrix[s, :3] @ middle - matrix[s, t] * middle[t]
        positions.append(offset + matrix[s, t] * np.arange(target[t]))
    _interpolate_separable(voxels.permute(0, *(1 + s for s in axes)), positions, out, mode, reach[list(axes)])
    if outside is not None:
        for t, s in enumerate(axes):
            beyond = np.flatnonzero(_beyond(positions[t], voxels.shape[1 + s]))
            if beyond.size:
                out.index_fill_(1 + t, torch.from_numpy(beyond).to(out.device), outside)
    return out


def _beyond(position: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """More than half a voxel (and a rounding error) outside the outermost voxel centres."""
    return (position < -0.501) | (position > size - 0.499)


class _Axis:
    """One axis of a separable map: which two source voxels each target voxel lies between, and how far."""

    def __init__(self, position: NDArray[np.float64], size: int, mode: str) -> None:
        p = np.clip(position, 0, size - 1)
        nearest = np.floor(p + 0.5)
        p = np.where((np.abs(p - nearest) < ON_VOXEL) | (mode == NEAREST), nearest, p)
        self.lower = np.floor(p).astype(np.int64)
        self.weight = (p - self.lower).astype(np.float32)
        # Where the weight is 0 the upper voxel must not be read: 0 x NaN is NaN.
        self.upper = np.minimum(self.lower + (self.weight > 0), size - 1)
        self.size = size
        self.on_voxels = not self.weight.any()
        self.identity = self.on_voxels and np.array_equal(self.lower, np.arange(size))

    def part(self, start: int, stop: int) -> tuple[_Axis, slice]:
        """The same axis for target voxels start..stop, and the source range it reads (to which it is now relative)."""
        lower, upper = self.lower[start:stop], self.upper[start:stop]
        first, last = int(lower.min()), int((lower if self.on_voxels else upper).max())
        piece = object.__new__(_Axis)
        piece.lower, piece.upper, piece.weight = lower - first, upper - first, self.weight[start:stop]
        piece.size, piece.on_voxels = last - first + 1, self.on_voxels
        piece.identity = self.on_voxels and np.array_equal(piece.lower, np.arange(piece.size))
        return piece, slice(first, last + 1)

    def along(self, slab: Tensor, dim: int) -> Tensor:
        """The slab interpolated along one of its dimensions."""
        index = (torch.from_numpy(a).to(slab.device) for a in (self.lower, self.upper, self.weight))
        return _along(slab, dim, *index, on_voxels=self.on_voxels)


class _TriangleAxis:
    """One axis towards a coarser grid: each target voxel is the mean of what source there is within `reach` voxels to
    either side, weighted by a triangle."""

    on_voxels = identity = False

    def __init__(self, position: NDArray[np.float64], size: int, reach: float) -> None:
        p = np.clip(position, 0, size - 1)
        taps = np.floor(p).astype(np.int64)[None] + np.arange(1 - int(np.ceil(reach)), int(np.ceil(reach)) + 1)[:, None]
        weight = np.clip(1 - np.abs(taps - p) / reach, 0, None) * ((taps >= 0) & (taps < size))
        self.weight = (weight / weight.sum(axis=0)).astype(np.float32)
        self.taps = np.clip(taps, 0, size - 1)

    def part(self, start: int, stop: int) -> tuple[_TriangleAxis, slice]:
        """As `_Axis.part`."""
        taps = self.taps[:, start:stop]
        first, last = int(taps.min()), int(taps.max())
        piece = object.__new__(_TriangleAxis)
        piece.taps, piece.weight = taps - first, self.weight[:, start:stop]
        return piece, slice(first, last + 1)

    def along(self, slab: Tensor, dim: int) -> Tensor:
        """The slab averaged along one of its dimensions, float32."""
        weights = (
            torch.from_numpy(self.weight).to(slab.device).view(len(self.weight), -1, *(1,) * (slab.ndim - 1 - dim))
        )
        total: Tensor | None = None
        for taps, weight in zip(torch.from_numpy(self.taps).to(slab.device), weights, strict=True):
            picked = slab.index_select(dim, taps).to(torch.float32)
            total = picked.mul_(weight) if total is None else total.addcmul_(picked, weight)
        assert total is not None
        return total


def _interpolate_separable(
    source: Tensor, positions: list[NDArray[np.float64]], out: Tensor, mode: str, reach: NDArray[np.float64]
) -> None:
    """Fill `out`; `source` has its axes in the order of `out` already (any strides). `reach`: of an axis's triangle, in
    source voxels; 1 is linear interpolation."""
    axes: list[_Axis | _TriangleAxis] = [
        _Axis(p, n, mode) if r <= 1 + ON_VOXEL else _TriangleAxis(p, n, float(r))
        for p, n, r in zip(positions, source.shape[1:], reach, strict=True)
    ]
    # Work in the source's memory order, slowest axis first, so that a slab is one run of memory.
    by_stride = sorted(range(3), key=lambda a: -source.stride(1 + a))
    source = source.permute(0, *(1 + a for a in by_stride))
    result = out.permute(0, *(1 + a for a in by_stride))
    axes = [axes[a] for a in by_stride]
    # Shrinking axes go first: they leave less work to the others.
    order = sorted(
        (a for a in range(3) if not axes[a].identity), key=lambda a: result.shape[1 + a] / source.shape[1 + a]
    )
    plane_bytes = 4 * source.shape[0] * max(source[0, 0].numel(), result[0, 0].numel())
    # Where the slab runs along the output's fast axis, 16 planes at once write whole cache lines.
    least = 16 if by_stride[0] == 2 else 1
    thick = max(least, SLAB_BYTES * torch.get_num_threads() // max(plane_bytes, 1))
    for start in range(0, result.shape[1], thick):
        stop = min(start + thick, result.shape[1])
        slow, taken = axes[0].part(start, stop)
        slab = source[:, taken]
        for a in order:
            slab = (slow if a == 0 else axes[a]).along(slab, 1 + a)
        result[:, start:stop].copy_(slab)


def _along(slab: Tensor, dim: int, lower: Tensor, upper: Tensor, weight: Tensor, *, on_voxels: bool) -> Tensor:
    """Linear interpolation along one dimension (plain selection if every position lies on a voxel)."""
    if dim == slab.ndim - 1:
        # index_select along the last dimension is 4x faster on a matrix than on a 4-D tensor (torch 2.13, CPU).
        rows = slab.reshape(-1, slab.shape[-1])
        return _along_rows(rows, 1, lower, upper, weight, on_voxels).view(*slab.shape[:-1], len(lower))
    return _along_rows(slab, dim, lower, upper, weight.view(-1, *(1,) * (slab.ndim - 1 - dim)), on_voxels)


def _along_rows(slab: Tensor, dim: int, lower: Tensor, upper: Tensor, weight: Tensor, on_voxels: bool) -> Tensor:
    below = slab.index_select(dim, lower)
    if on_voxels:
        return below
    # Integers become float only here, after the selection has shrunk them.
    return below.to(torch.float32).lerp_(slab.index_select(dim, upper).to(torch.float32), weight)


def _interpolate_3d(source: Tensor, matrix: NDArray[np.float64], out: Tensor, mode: str, outside: float | None) -> None:
    """Fill `out` by 3-D interpolation, a slab of the target at a time from the part of the source it needs."""
    sizes = np.array(source.shape[1:])
    shape = out.shape[1:]
    # The sampling grid has three numbers per target voxel; it is what costs memory here.
    thick = max(1, 8 * SLAB_BYTES // (20 * max(shape[1] * shape[2], 1)))
    index = [torch.arange(n, dtype=torch.float64, device=out.device) for n in shape]
    for start in range(0, shape[0], thick):
        stop = min(start + thick, shape[0])
        corners = np.array(np.meshgrid([start, stop - 1], [0, shape[1] - 1], [0, shape[2] - 1])).reshape(3, -1)
        reached = matrix[:3, :3] @ corners + matrix[:3, 3:]
        low = np.clip(np.floor(reached.min(axis=1)).astype(int) - 1, 0, sizes - 1)
        high = np.clip(np.ceil(reached.max(axis=1)).astype(int) + 1, 0, sizes - 1)
        needed = source[(slice(None), *(slice(a, b + 1) for a, b in zip(low, high, strict=True)))]
        grid = torch.empty((1, stop - start, shape[1], shape[2], 3), dtype=torch.float32, device=out.device)
        beyond = torch.zeros((stop - start, shape[1], shape[2]), dtype=torch.bool, device=out.device)
        for axis in range(3):
            a, b, c, offset = (float(v) for v in matrix[axis])
            x = a * index[0][start:stop, None, None] + offset
            position = x + b * index[1][:, None] + c * index[2]
            if outside is not None:
                beyond |= (position < -0.501) | (position > float(sizes[axis]) - 0.499)
            n = needed.shape[1 + axis]
            if mode == NEAREST:
                position = torch.floor(position + 0.5)
            # grid_sample counts axes backwards and measures from -1 to 1 between the outer voxel faces.
            grid[0, ..., 2 - axis] = (2 * (position - float(low[axis])) + 1) / n - 1
        sampled = grid_sample(
            needed[None].to(torch.float32),
            grid,
            mode="bilinear" if mode == LINEAR else "nearest",
            padding_mode="border",
            align_corners=False,
        )[0]
        if outside is not None:
            sampled.masked_fill_(beyond, outside)
        out[:, start:stop] = sampled.to(out.dtype)
