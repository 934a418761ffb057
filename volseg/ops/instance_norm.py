"""Instance norm, an optional residual, and (leaky) ReLU as one operation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.ops._arrays import array
from volseg.ops.cpu_tasks import even_ranges, run_tasks
from volseg.ops.installed import installed


def instance_norm_act(
    y: Tensor, slope: float, *, residual: Tensor | None = None, normalise_residual: bool = False, eps: float = 1e-5
) -> Tensor:
    """act(norm(y) + residual), the residual normalised too if asked for; y and residual (B, C, X, Y, Z).

    act is a leaky ReLU: slope 0 is ReLU, 1 nothing, and none beyond 1. The result has the wider type of y and residual.
    In inference on the CPU `y` is overwritten and returned where it has that type; while gradients are kept, and
    elsewhere, `y` stays. bfloat16 is normalised in float32. A residual of another shape is torch's to broadcast.
    """
    given = [y] if residual is None else [y, residual]
    if all(_compiled_can(t) and t.shape == y.shape for t in given):
        form = _Form(slope, normalise_residual, eps)
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return _NormAct.apply(y, residual, form)
        wider = _wider(y, residual)
        return _forward(y, residual, form, y if wider == y.dtype else torch.empty_like(y, dtype=wider))[0]
    out = F.instance_norm(y, eps=eps)
    if residual is not None:
        out = out + (F.instance_norm(residual, eps=eps) if normalise_residual else residual)
    return out if slope == 1 else F.leaky_relu(out, slope)


class _Form(NamedTuple):
    slope: float
    normalise_residual: bool
    eps: float


def _compiled_can(t: Tensor) -> bool:
    return (
        t.device.type == "cpu"
        and t.dtype in (torch.float32, torch.bfloat16)
        and t.is_contiguous()
        and not torch.jit.is_tracing()
        and t.shape[2:].numel() > 1  # torch refuses to normalise a single voxel, in its own words
        and t.numel() > 0
        and installed("numba")
    )


def _wider(y: Tensor, residual: Tensor | None) -> torch.dtype:
    return y.dtype if residual is None else torch.promote_types(y.dtype, residual.dtype)


def _rows(t: Tensor) -> np.ndarray:
    return array(t.view(t.shape[0] * t.shape[1], -1))


def _tasks(rows: int) -> list[tuple[int, int]]:
    return even_ranges(rows, 4 * torch.get_num_threads())


def _forward(y: Tensor, residual: Tensor | None, form: _Form, out: Tensor) -> tuple[Tensor, list[np.ndarray]]:
    """`out` filled, and mean and scale of y and of the residual, one number per row each."""
    from volseg.ops import _norm_numba as kernels

    rows = _rows(y)
    other = rows[:, :0] if residual is None else _rows(residual)
    moments = [np.full(len(rows), value, np.float32) for value in (0, 1, 0, 1)]
    tasks = _tasks(len(rows))
    run_tasks(lambda i, j: kernels.moments(rows, form.eps, i, j, moments[0], moments[1]), tasks)
    if form.normalise_residual and residual is not None:
        run_tasks(lambda i, j: kernels.moments(other, form.eps, i, j, moments[2], moments[3]), tasks)
    flat, other, out_ = rows.reshape(-1), other.reshape(-1), _rows(out).reshape(-1)
    run_tasks(
        lambda i, j: kernels.normalise(
            flat, rows.shape[1], moments[0], moments[1], np.float32(form.slope), other, moments[2], moments[3],
            out_, i, j,
        ),
        tasks,
    )  # fmt: skip
    return out, moments


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, residual: Tensor | None, form: _Form) -> Tensor:  # type: ignore[override]
        out, ctx.moments = _forward(y, residual, form, torch.empty_like(y, dtype=_wider(y, residual)))
        ctx.save_for_backward(y, residual)
        ctx.form = form
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        from volseg.ops import _norm_numba as kernels

        (y, residual), form = ctx.saved_tensors, ctx.form
        dy = torch.empty_like(y)
        dresidual = y.new_empty((0,)) if residual is None else torch.empty_like(residual)
        other = y.new_empty((0,)) if residual is None else residual
        dout_, y_, other_, dy_, dother_ = (array(t.reshape(-1)) for t in (dout.contiguous(), y, other, dy, dresidual))
        n, moments = y.shape[2:].numel(), ctx.moments
        run_tasks(
            lambda i, j: kernels.gradients(
                dout_, y_, n, moments[0], moments[1], np.float32(form.slope), other_, moments[2], moments[3],
                form.normalise_residual and residual is not None, dy_, dother_, i, j,
            ),
            _tasks(y.shape[0] * y.shape[1]),
        )  # fmt: skip
        return dy, None if residual is None else dresidual, None
