"""Instance norm, an optional residual, and (leaky) ReLU as one operation."""

from __future__ import annotations

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

    act is a leaky ReLU: slope 0 is ReLU, 1 nothing, and none beyond 1. In inference on the CPU `y` is overwritten and
    returned; while gradients are kept, and elsewhere, torch's own operations run and `y` stays. bfloat16 is normalised
    in float32.
    """
    if _compiled_can(y) and (residual is None or _compiled_can(residual)):
        return _in_place(y, slope, residual, normalise_residual, eps)
    out = F.instance_norm(y, eps=eps)
    if residual is not None:
        out = out + (F.instance_norm(residual, eps=eps) if normalise_residual else residual)
    return out if slope == 1 else F.leaky_relu(out, slope)


def _compiled_can(t: Tensor) -> bool:
    return (
        t.device.type == "cpu"
        and t.dtype in (torch.float32, torch.bfloat16)
        and t.is_contiguous()
        and not (torch.is_grad_enabled() and t.requires_grad)
        and not torch.jit.is_tracing()
        and t[0, 0].numel() > 1  # torch refuses to normalise a single voxel, in its own words
        and installed("numba")
    )


def _in_place(y: Tensor, slope: float, residual: Tensor | None, normalise_residual: bool, eps: float) -> Tensor:
    from volseg.ops import _norm_numba as kernels

    rows = array(y.view(y.shape[0] * y.shape[1], -1))
    tasks = even_ranges(rows.shape[0], 4 * torch.get_num_threads())
    mean, scale = (torch.empty(rows.shape[0]).numpy() for _ in range(2))
    flat, n, tilt = rows.reshape(-1), rows.shape[1], np.float32(slope)
    run_tasks(lambda i, j: kernels.moments(rows, eps, i, j, mean, scale), tasks)
    if residual is None:
        run_tasks(lambda i, j: kernels.normalise(flat, n, mean, scale, tilt, i, j), tasks)
        return y
    other = array(residual.view(rows.shape))
    other_mean, other_scale = torch.zeros(rows.shape[0]).numpy(), torch.ones(rows.shape[0]).numpy()
    if normalise_residual:
        run_tasks(lambda i, j: kernels.moments(other, eps, i, j, other_mean, other_scale), tasks)
    run_tasks(
        lambda i, j: kernels.normalise_add(
            flat, n, mean, scale, tilt, other.reshape(-1), other_mean, other_scale, i, j
        ),
        tasks,
    )
    return y
