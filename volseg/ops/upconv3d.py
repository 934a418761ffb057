"""Transposed 2x2x2 convolution of stride 2 as one matrix product: nothing overlaps, so nothing needs to be summed."""

from __future__ import annotations

import torch
from torch import Tensor


def upconv3d_2x2x2(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv_transpose3d(x, weight, bias, stride=2)` for a 2x2x2 kernel.

    x (B, Cin, X, Y, Z), weight (Cin, Cout, 2, 2, 2), bias (Cout,) -> (B, Cout, 2X, 2Y, 2Z). Every input voxel makes
    eight output voxels of its own: a pointwise map to 8 Cout channels, then a change of order. On two CPU cores torch's
    own takes several times as long for small maps (2026-11-21).
    """
    if weight.shape[2:] != (2, 2, 2):
        raise ValueError(f"a 2x2x2 kernel is needed, not {tuple(weight.shape[2:])}")
    batch, _, *size = x.shape
    channels = weight.shape[1]
    matrix = weight.flatten(1).mT.expand(batch, -1, -1)
    y = torch.bmm(matrix, x.flatten(2))
    y = y.view(batch, channels, 2, 2, 2, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    if bias is not None:
        y = y + bias.to(y.dtype).view(1, -1, 1, 1, 1, 1, 1, 1)
    return y.reshape(batch, channels, *(2 * n for n in size))
