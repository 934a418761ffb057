"""A fine grid in blocks of voxels and back: what needs no fine grid is found on a coarse one, some ten times faster.

`step` is (3,) int, voxels per block and axis; the last block of an axis may stick out of the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volseg.transforms.bone_morphology import Mask


def block_step(spacing: NDArray, block_mm: float) -> NDArray:
    """The step whose blocks are nearest to `block_mm` wide; `spacing` is (3,), mm per voxel."""
    return np.maximum(1, np.round(block_mm / spacing)).astype(int)


def block_mean(image: NDArray, step: NDArray) -> NDArray:
    """Mean over blocks, float32; of a mask, the share of True. The last block repeats the edge."""
    missing = [(0, int(-n % s)) for n, s in zip(image.shape, step, strict=True)]
    padded = np.pad(image, missing, mode="edge")
    x, y, z = (n // s for n, s in zip(padded.shape, step, strict=True))
    blocks = padded.reshape(x, step[0], y, step[1], z, step[2])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def stretch(coarse: Mask, step: NDArray, shape: tuple[int, ...]) -> Mask:
    """Blocks to voxels of an image of `shape`, each voxel as its block."""
    for axis in range(3):
        coarse = coarse.repeat(step[axis], axis=axis)
    return coarse[tuple(slice(n) for n in shape)]


def interpolate(coarse: NDArray, step: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Blocks to voxels of an image of `shape`, linear between block centers."""
    for axis in range(3):
        if step[axis] == 1:
            continue
        at = (np.arange(shape[axis]) - (step[axis] - 1) / 2) / step[axis]
        at = np.clip(at, 0, coarse.shape[axis] - 1).astype(np.float32)
        low = np.minimum(at.astype(int), max(coarse.shape[axis] - 2, 0))
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(low, axis) * (1 - part) + coarse.take(high, axis) * part
    return coarse
