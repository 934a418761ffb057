"""Numbers as they come from a file -> numbers the house works with, or a refusal. Knows no file format.

int16 where that is exact (half the memory of float32), otherwise float32; NaN, Inf and constant images are refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError

# Twice a whole-body CT at 0.5 mm; as int16 about 2 GB. A header that claims more is refused before memory is taken.
LARGEST_VOXELS = 1_000_000_000
SLAB = 1 << 24
_SHORT = np.iinfo(np.int16)


def _slabs(flat: NDArray) -> list[NDArray]:
    return [flat[i : i + SLAB] for i in range(0, flat.size, SLAB)]


def value_range(voxels: NDArray) -> tuple[float, float]:
    """(smallest, largest) value."""
    return float(voxels.min()), float(voxels.max())


def check_finite(voxels: NDArray, where: str) -> None:
    """Refuse NaN and Inf with their counts (`voxels-not-finite`): one NaN spreads over 16 voxels when resampled."""
    if voxels.dtype.kind != "f":
        return
    nan = inf = 0
    for slab in _slabs(voxels.ravel(order="K")):
        if not np.isfinite(slab).all():
            nan += int(np.isnan(slab).sum())
            inf += int(np.isinf(slab).sum())
    if nan or inf:
        raise InputError(
            "voxels-not-finite",
            f"{where}: {nan} NaN and {inf} Inf voxels of {voxels.size}; fill them (air is -1024 HU) and export again",
        )


def check_not_constant(voxels: NDArray, where: str) -> None:
    """Refuse an image that holds one single value (`voxels-constant`)."""
    low, high = value_range(voxels)
    if low == high:
        raise InputError("voxels-constant", f"{where}: every voxel is {low:g}; there is no image in this file")


def compact(stored: NDArray, slope: float = 1.0, intercept: float = 0.0) -> NDArray:
    """Stored values -> slope * stored + intercept, as int16 where exact, otherwise float32. Keeps the memory order."""
    plain = slope == 1.0 and intercept == 0.0
    if plain and stored.dtype.kind == "u" and stored.dtype.itemsize == 1:
        return stored
    if stored.dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer():
        ends = [slope * float(v) + intercept for v in value_range(stored)]
        if min(ends) >= _SHORT.min and max(ends) <= _SHORT.max:
            if plain:
                return stored.astype(np.int16, order="K", copy=False)
            out = np.empty_like(stored, dtype=np.int16)
            wide = np.int64 if stored.dtype.itemsize > 2 else np.int32
            for source, target in zip(_slabs(stored.ravel("K")), _slabs(out.ravel("K")), strict=True):
                target[:] = source.astype(wide) * int(slope) + int(intercept)
            return out
    if plain:
        return stored.astype(np.float32, order="K", copy=False)
    scaled = np.empty_like(stored, dtype=np.float32)
    for source, target in zip(_slabs(stored.ravel("K")), _slabs(scaled.ravel("K")), strict=True):
        target[:] = source.astype(np.float64) * slope + intercept
    return scaled


def ct_notes(voxels: NDArray) -> tuple[str, ...]:
    """What looks unlike CT in Hounsfield units, in words; empty when nothing does."""
    low, high = value_range(voxels)
    if low >= 0 and high <= 255:
        return (f"values {low:g}..{high:g} look windowed to 8 bits, not Hounsfield units; results will be poor",)
    if low >= 0:
        return (f"smallest value {low:g}: no air at -1000, the -1024 offset may be missing; results will be poor",)
    return ()
