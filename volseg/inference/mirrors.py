"""Windows shown mirrored as well: which mirrorings there are, and how a mirrored detection is turned back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

Axes = tuple[int, ...]


def mirrorings(axes: Sequence[int]) -> list[Axes]:
    """Every combination of the spatial axes (0, 1, 2) to be flipped together, the empty one first.

    Three axes make eight. Raises ValueError for an axis that an image does not have.
    """
    if not set(axes) <= {0, 1, 2}:
        raise ValueError(f"mirror_axes can hold 0, 1 and 2, not {list(axes)}")
    each = sorted(set(axes))
    return [combination for n in range(len(each) + 1) for combination in itertools.combinations(each, n)]


def flip(values: Tensor, axes: Axes) -> Tensor:
    """(..., X, Y, Z) flipped along these spatial axes; the tensor itself if there are none."""
    return values.flip([a - 3 for a in axes]) if axes else values


def flip_detections(found: dict[str, Tensor], axes: Axes, size: Sequence[int]) -> dict[str, Tensor]:
    """What a detector said of a flipped window of `size`, in the window as it was: boxes (N, 6), masks (N, s, s, s)."""
    if not axes:
        return found
    low, high = found["box"][:, :3], found["box"][:, 3:]
    length = found["box"].new_tensor(list(size))
    flipped = torch.zeros(3, dtype=torch.bool, device=low.device)
    flipped[list(axes)] = True
    box = torch.cat([torch.where(flipped, length - high, low), torch.where(flipped, length - low, high)], dim=1)
    return found | {"box": box, "mask": flip(found["mask"], axes)}
