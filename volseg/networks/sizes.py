"""What size of input a network takes, and the words in which it refuses every other. No network lives here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from volseg.ops.conv3d import trains_under_autocast


def check_size(name: str, x: Tensor, strides: Sequence[int], *, two_voxels: bool = False) -> None:
    """Raise ValueError, naming a size that would do, unless `x` is (B, C, *axes) and strides divide the axes.

    two_voxels: refuse a size that leaves a single voxel at the lowest level, which instance norm cannot normalise.
    """
    axes = ("X", "Y", "Z")[: len(strides)]
    if x.ndim != 2 + len(strides):
        raise ValueError(f"{name} takes (batch, channels, {', '.join(axes)}), got shape {tuple(x.shape)}")
    size = tuple(x.shape[2:])
    if any(n == 0 or n % stride for n, stride in zip(size, strides, strict=True)):
        padded = tuple(max(1, -(-n // stride)) * stride for n, stride in zip(size, strides, strict=True))
        multiples = strides[0] if len(set(strides)) == 1 else tuple(strides)
        raise ValueError(f"{name} takes axes that are multiples of {multiples}, got {size}; pad to {padded}")
    if two_voxels and size == tuple(strides):
        raise ValueError(
            f"{name} needs two voxels at its lowest level, {size} leaves one; pad an axis to {2 * strides[-1]}"
        )


def bfloat16_spoils_gradients(x: Tensor, stride: int) -> bool:
    """Whether training meets oneDNN's broken kernel (`trains_under_autocast`) in a network that divides X by `stride`.

    For networks of MONAI's convolutions; `conv3d_3x3x3` looks after itself. A map has 2 voxels along X only if the
    image has no more than twice the stride.
    """
    return x.ndim == 5 and x.shape[2] <= 2 * stride and trains_under_autocast(x)
