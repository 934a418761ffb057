"""3x3x3 convolution, stride 1, zero padding 1, over one tensor or over two that need not be concatenated."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.ops.cpu_tasks import even_ranges, run_tasks

# Below these, oneDNN's direct convolution is as fast (2 cores with AVX-512, 2026-11).
LEAST_CHANNELS, LEAST_VOXELS = 16, 16**3
# Tasks per thread: some blocks sit at a border and are cheaper.
SHARES = 4


def conv3d_3x3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, also: Tensor | None = None) -> Tensor:
    """`F.conv3d(torch.cat([x, also], 1), weight, bias, padding=1)` without the copy that `cat` makes.

    x (B, Ca, X, Y, Z), also (B, Cb, X, Y, Z), weight (Cout, Ca + Cb, 3, 3, 3), bias (Cout,) -> (B, Cout, X, Y, Z).
    float32 on the CPU takes Winograd's algorithm (`_winograd_numba.py`; 2.2 times oneDNN's direct convolution at 48
    channels, values within 1e-6 of their size); everything else, and where numba is missing, takes torch's.
    """
    if _winograd_pays(x, weight, also):
        return _Convolution.apply(x, also, weight, bias)
    return F.conv3d(x if also is None else torch.cat([x, also], dim=1), weight, bias, padding=1)


def _winograd_pays(x: Tensor, weight: Tensor, also: Tensor | None) -> bool:
    return (
        x.device.type == "cpu"
        and all(t.dtype == torch.float32 for t in (x, weight, x if also is None else also))
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x[0, 0].numel() >= LEAST_VOXELS
        and _numba_installed
    )


_numba_installed = importlib.util.find_spec("numba") is not None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, also: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, also, weight)
        ctx.biased = bias is not None
        return winograd(x, also, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, also, weight = ctx.saved_tensors
        dy = dy.contiguous()
        # The gradient of the input is a convolution too: channels exchanged, kernel turned round.
        turned = weight.transpose(0, 1).flip(2, 3, 4)
        parts, gradients, first = [x] if also is None else [x, also], [], 0
        for i, part in enumerate(parts):
            mine = slice(first, first + part.shape[1])
            first += part.shape[1]
            dx = winograd(dy, None, turned[mine], None) if ctx.needs_input_grad[i] else None
            dw: Tensor = weight
            if ctx.needs_input_grad[2]:
                _, dw, _ = torch.ops.aten.convolution_backward(
                    dy, part, weight[:, mine], None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1, [False, True, False]
                )
            gradients.append((dx, dw))
        return (
            gradients[0][0],
            gradients[1][0] if also is not None else None,
            torch.cat([dw for _, dw in gradients], dim=1) if ctx.needs_input_grad[2] else None,
            dy.sum(dim=(0, 2, 3, 4)) if ctx.biased and ctx.needs_input_grad[3] else None,
        )


def winograd(x: Tensor, also: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The compiled kernel on CPU tensors of one floating type; shapes as for `conv3d_3x3x3`. No autograd."""
    from volseg.ops import _winograd_numba as kernels

    y = x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))
    shift = x.new_zeros(weight.shape[0]) if bias is None else bias
    second = x.new_empty((x.shape[0], 0, *x.shape[2:])) if also is None else also
    arrays = [t.detach().contiguous().numpy() for t in (x, second)]
    transformed = kernels.transformed_weights(weight.detach().numpy())
    shift_array, y_array = shift.detach().contiguous().numpy(), y.numpy()
    ranges = even_ranges(kernels.blocks(tuple(x.shape[2:])), SHARES * torch.get_num_threads())
    run_tasks(
        lambda b, first, last: kernels.convolve(*arrays, transformed, shift_array, y_array, b, first, last),
        [(b, first, last) for b in range(x.shape[0]) for first, last in ranges],
    )
    return y
