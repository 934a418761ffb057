"""Depthwise 3D convolution, stride 1, size kept: torch's forward, and a backward that takes as long on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.ops._arrays import array
from volseg.ops.cpu_tasks import even_ranges, run_tasks
from volseg.ops.installed import installed

LAST = torch.channels_last_3d
PLANES = 16  # of a task of the weight gradient: each gathers size - 1 planes more


def depthwise_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv3d(x, weight, bias, padding=size // 2, groups=C)`, on the CPU in channels_last_3d.

    x (B, C, X, Y, Z), weight (C, 1, size, size, size) with size odd, bias (C,) -> (B, C, X, Y, Z).

    oneDNN convolves channels-last maps ten times as fast as others, yet takes 15 times as long again for each gradient,
    in bfloat16 40 times (48 channels, 32^3 and 48^3, size 5; 2 cores, 2026-11). So while gradients are kept on the CPU,
    that of the input is a convolution with the kernel turned round, and that of the weight is `_depthwise_numba.py`'s,
    summed in float32 (without numba torch's own). Raises ValueError for other shapes.
    """
    channels, size = weight.shape[0], weight.shape[-1]
    if weight.shape != (channels, 1, size, size, size) or size % 2 == 0 or x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(
            f"a depthwise convolution takes x (B, C, X, Y, Z) and weight (C, 1, k, k, k) with k odd, "
            f"got x {tuple(x.shape)} and weight {tuple(weight.shape)}"
        )
    if x.device.type != "cpu" or torch.jit.is_tracing():
        return F.conv3d(x, weight, bias, padding=size // 2, groups=channels)
    x = x.contiguous(memory_format=LAST)
    if not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
        return F.conv3d(x, weight, bias, padding=size // 2, groups=channels)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Depthwise.apply(x, weight, bias)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return F.conv3d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dy = dy.contiguous(memory_format=LAST)
        dx = dw = db = None
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:
                dx = F.conv3d(dy, weight.flip(2, 3, 4), padding=weight.shape[-1] // 2, groups=len(weight))
            if ctx.needs_input_grad[1]:
                dw = weight_gradient(x, dy, weight.shape[-1]).to(weight.dtype)
            if ctx.needs_input_grad[2]:
                db = dy.sum((0, 2, 3, 4))
        return dx, dw, db


def weight_gradient(x: Tensor, dy: Tensor, size: int) -> Tensor:
    """(C, 1, size, size, size) in float32, or float64 for float64; x and dy (B, C, X, Y, Z) channels-last, of one type.

    The same bits on any number of threads.
    """
    if not installed("numba") or x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return weight_gradient_plain(x, dy, size)
    from volseg.ops import _depthwise_numba as kernels

    batch, channels, planes = x.shape[:3]
    x_, dy_ = (array(t.movedim(1, -1)) for t in (x, dy))
    ranges, groups = even_ranges(planes, planes // PLANES), -(-channels // kernels.LANES)
    parts = torch.zeros(
        batch * len(ranges), groups, size**3 * kernels.LANES, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    parts_ = parts.numpy()
    run_tasks(
        lambda b, r, g: kernels.weight_gradient(
            x_[b], dy_[b], size, g * kernels.LANES, *ranges[r], parts_[b * len(ranges) + r, g]
        ),
        [(b, r, g) for b in range(batch) for r in range(len(ranges)) for g in range(groups)],
    )
    return parts.sum(0).view(groups, size, size, size, -1).movedim(-1, 1).flatten(0, 1)[:channels, None].contiguous()


def weight_gradient_plain(x: Tensor, dy: Tensor, size: int) -> Tensor:
    """`weight_gradient` by torch; short floats are raised first, which oneDNN sums three times as fast."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, same = x.new_empty((x.shape[1], 1, size, size, size), dtype=dtype), [size // 2] * 3
    gradients = torch.ops.aten.convolution_backward(
        dy.to(dtype),
        x.to(dtype),
        weight,
        None,
        [1] * 3,
        same,
        [1] * 3,
        False,
        [0] * 3,
        x.shape[1],
        [False, True, False],
    )
    return gradients[1]
