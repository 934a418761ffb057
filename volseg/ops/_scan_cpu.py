"""The numba scan as a torch operation: CPU tensors in, CPU tensors out, autograd in between."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.ops import _scan_numba as kernels
from volseg.ops._arrays import array, channel_tasks, in_rows
from volseg.ops._tokens_numba import from_rows, layout, to_rows
from volseg.ops._vector import LANES
from volseg.ops.cpu_tasks import run_tasks
from volseg.ops.token_order import AHEAD, TokenOrder


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus, order, onto):
        ctx.softplus, ctx.path, ctx.short = softplus, (order.num_slices, order.backwards), (A.shape[1], B.dtype)
        batch, channels, length = u.shape
        A = F.pad(A, (0, -A.shape[1] % LANES)).contiguous()
        u, delta, D, bias = in_rows(u), in_rows(delta), D.contiguous(), bias.contiguous()
        BC = _rows(B, C, A, ctx.path)
        _, _, blocks, tiles = layout(length, order.num_slices)
        y = torch.empty_like(u, memory_format=torch.contiguous_format) if onto is None else onto
        kept = A.new_empty((batch, channels, blocks * tiles if any(ctx.needs_input_grad) else 0, A.shape[1]))
        u_, delta_, A_, BC_, D_, bias_, y_, kept_ = (array(t) for t in (u, delta, A, BC, D, bias, y, kept))

        def task(b: int, first: int, last: int) -> None:
            kernels.forward(
                u_[b], delta_[b], A_, *BC_[b], D_, bias_, softplus, *ctx.path, first, last,
                y_[b], onto is not None, kept_[b],
            )  # fmt: skip

        run_tasks(task, channel_tasks(batch, channels))
        ctx.save_for_backward(u, delta, A, BC, D, bias, kept)
        if onto is not None:
            ctx.mark_dirty(onto)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        u, delta, A, BC, D, bias, kept = ctx.saved_tensors
        batch, channels, _ = u.shape
        tasks = channel_tasks(batch, channels)
        du, ddelta = torch.empty(u.shape, dtype=u.dtype), torch.empty(u.shape, dtype=delta.dtype)
        dA, dD, dbias = (A.new_zeros(batch, *t.shape) for t in (A, D, bias))
        parts = A.new_zeros(batch, len(tasks) // batch, *BC.shape[1:])
        u_, delta_, A_, BC_, D_, bias_, dy_, kept_, du_, ddelta_, dA_, parts_, dD_, dbias_ = (
            array(t) for t in (u, delta, A, BC, D, bias, in_rows(dy), kept, du, ddelta, dA, parts, dD, dbias)
        )

        def task(i: int, b: int, first: int, last: int) -> None:
            kernels.backward(
                u_[b], delta_[b], A_, *BC_[b], D_, bias_, ctx.softplus, *ctx.path, first, last,
                dy_[b], kept_[b], du_[b], ddelta_[b], dA_[b], *parts_[b, i % parts.shape[1]], dD_[b], dbias_[b],
            )  # fmt: skip

        run_tasks(task, [(i, *t) for i, t in enumerate(tasks)])
        states, dtype = ctx.short
        dB, dC = _unrows(parts.sum(1) if parts.shape[1] > 1 else parts[:, 0], states, dtype, ctx.path)
        onto = dy if ctx.needs_input_grad[-1] else None
        return du, ddelta, dA.sum(0)[:, :states], dB, dC, dD.sum(0), dbias.sum(0), None, None, onto


def _rows(B: Tensor, C: Tensor, A: Tensor, path: tuple[int, bool]) -> Tensor:
    """B, C (batch, N, L) by position -> (batch, 2, L, padded N) by token, in the type of A."""
    batch, states, length = B.shape
    rows = (A.new_empty if states == A.shape[1] else A.new_zeros)(batch, 2, length, A.shape[1])
    given, rows_ = (array(in_rows(B)), array(in_rows(C))), array(rows)
    run_tasks(lambda b, i: to_rows(given[i][b], *path, rows_[b, i]), itertools.product(range(batch), range(2)))
    return rows


def _unrows(rows: Tensor, states: int, dtype: torch.dtype, path: tuple[int, bool]) -> tuple[Tensor, Tensor]:
    """`_rows` undone: (batch, 2, L, padded N) by token -> two (batch, N, L) by position."""
    batch, _, length, _ = rows.shape
    B, C = (torch.empty(batch, states, length, dtype=dtype) for _ in range(2))
    rows_, found = array(rows), (array(B), array(C))
    run_tasks(lambda b, i: from_rows(rows_[b, i], *path, found[i][b]), itertools.product(range(batch), range(2)))
    return B, C


def selective_scan_numba(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    bias: Tensor,
    softplus: bool,
    order: TokenOrder = AHEAD,
    onto: Tensor | None = None,
) -> Tensor:
    """Tokens are read in `order`; u, delta, B, C lie by position, and so does the result y (batch, D, L).

    A, D and bias (D,) are float32 or float64, all the same; u, delta, B and C are too, or bfloat16 beside float32. y
    has the type of u. `onto`, contiguous and of the shape and type of y, has y added to it in place and is returned.
    """
    return _Scan.apply(u, delta, A, B, C, D, bias, softplus, order, onto)
