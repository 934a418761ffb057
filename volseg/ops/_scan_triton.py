"""The Triton scan as a torch operation: CUDA tensors in, CUDA tensors out, autograd in between.

Forward: what each chunk of time adds to the state, all at once; the carry over chunks; all outputs at once. Backward
the same from the end. It keeps its inputs and the state that enters each chunk (N/TIME the size of a float32 u), and
computes the states inside a chunk again. Not yet run or timed on a GPU (2026-11): proved in Triton's interpreter, and
compiled to sm_90.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from volseg.ops import _triton_kernels as kernels

# A tile is CHANNELS x TIME; the carry takes ROWS chunks of COLUMNS states at a time (32 bytes, one sector of memory).
CHANNELS, TIME, ROWS, COLUMNS = 16, 128, 256, 8
# 128 registers a thread let two programs of 8 warps share a multiprocessor; unasked, sm_90 gives `gradients` 172 and
# there is room for one. No spills at 128 (Triton 3.9, float32 and bfloat16, 2026-11). ROCm knows no such option.
_GRADIENTS = {"num_warps": 8, **({} if torch.version.hip else {"maxnreg": 128})}


def _dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _options(dtype: torch.dtype, **options: int) -> dict[str, Any]:
    return {
        "DTYPE": kernels.FLOAT64 if dtype == torch.float64 else kernels.FLOAT32,
        "enable_fp_fusion": True,
        **options,
    }


def _carry(ends: Tensor, totals: Tensor, A: Tensor, reverse: bool) -> Tensor:
    batch, chunks, channels, states = ends.shape
    starts = torch.empty_like(ends)
    kernels.carry[(batch * -(-channels * states // COLUMNS),)](
        ends, totals, A, starts, channels, states, chunks,
        **_options(ends.dtype, REVERSE=reverse, ROWS=ROWS, COLUMNS=COLUMNS),
    )  # fmt: skip
    return starts


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus, y_dtype):
        u, delta, A, B, C, D, bias = given = tuple(t.contiguous() for t in (u, delta, A, B, C, D, bias))
        dtype = _dtype(*given)
        (batch, channels, length), states = u.shape, A.shape[1]
        chunks, groups = -(-length // TIME), -(-channels // CHANNELS)
        sizes = (channels, length, states, chunks)
        options = _options(dtype, SOFTPLUS=softplus, CHANNELS=CHANNELS, TIME=TIME)
        grid = (groups * chunks * batch,)
        ends = u.new_empty((batch, chunks, channels, states), dtype=dtype)
        totals, y = ends.new_empty(ends.shape[:3]), torch.empty_like(u, dtype=y_dtype)
        with torch.cuda.device_of(u):
            kernels.chunk_states[grid](u, delta, A, B, bias, ends, totals, *sizes, **options)
            starts = _carry(ends, totals, A, reverse=False)
            kernels.outputs[grid](u, delta, A, B, C, D, bias, starts, y, *sizes, **options)
        ctx.save_for_backward(*given, starts, totals)
        ctx.launch = grid, groups, sizes, options
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        u, delta, A, B, C, D, bias, starts, totals = ctx.saved_tensors
        grid, groups, sizes, options = ctx.launch
        dy, ends, dA = dy.contiguous(), torch.empty_like(starts), torch.empty_like(starts)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC = starts.new_empty((2, groups, *B.shape))
        dD, dbias = torch.empty_like(totals), torch.empty_like(totals)
        with torch.cuda.device_of(u):
            kernels.chunk_gradients[grid](dy, delta, A, C, bias, ends, *sizes, **options)
            laters = _carry(ends, totals, A, reverse=True)
            kernels.gradients[grid](
                u, delta, A, B, C, D, bias, dy, starts, laters, du, ddelta, dA, dB, dC, dD, dbias,
                u.shape[0], *sizes, **options, **_GRADIENTS,
            )  # fmt: skip
        dA, dD, dbias = (part.sum((0, 1)).to(t.dtype) for part, t in ((dA, A), (dD, D), (dbias, bias)))
        return du, ddelta, dA, dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD, dbias, None, None


def selective_scan_triton(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, softplus: bool,
    y_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Each of its own float type, read by the kernels as it is. Returns y (batch, D, L) of type `y_dtype`.

    Raises ValueError for tensors that are not on CUDA, unless Triton's interpreter runs (TRITON_INTERPRET=1).
    """
    if u.device.type != "cuda" and not kernels.INTERPRETED:
        raise ValueError(
            f'backend "triton" takes CUDA tensors, these are on {u.device}; use "numba", "torch" or "auto", or set '
            "TRITON_INTERPRET=1 before Python starts to run its kernels step by step on the CPU"
        )
    D, bias = (A.new_zeros(A.shape[0]) if t is None else t for t in (D, bias))
    return _Scan.apply(u, delta, A, B, C, D, bias, softplus, y_dtype)
