"""The numba scan as a torch operation: CPU tensors in, CPU tensors out, autograd in between."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.ops import _scan_numba as kernels
from volseg.ops._vector import LANES


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool; `process` is part of the key because threads do not survive a fork (DataLoader workers)."""
    return ThreadPoolExecutor(threads, thread_name_prefix="volseg-scan")


def _run(function: Callable[..., None], tasks: list[tuple[int, int, int]]) -> None:
    threads = torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            function(*task)
    else:
        list(_pool(threads, os.getpid()).map(lambda task: function(*task), tasks))


def _tasks(batch: int, channels: int) -> list[tuple[int, int, int]]:
    """(batch item, first channel, last channel), as many as the threads can share evenly."""
    threads = torch.get_num_threads()
    groups = min(channels, -(-threads // batch)) if threads > 1 else 1
    edges = np.linspace(0, channels, groups + 1).astype(int).tolist()
    return [(b, i, j) for b in range(batch) for i, j in itertools.pairwise(edges) if j > i]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus):
        u, delta, A, D, bias = (t.contiguous() for t in (u, delta, A, D, bias))
        B, C = B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous()
        batch, channels, length = u.shape
        tiles = -(-length // kernels.TILE) if any(ctx.needs_input_grad) else 0
        y = torch.empty_like(u)
        kept = u.new_empty((batch, channels, tiles, A.shape[1]))
        arrays = [t.detach().numpy() for t in (u, delta, A, B, C, D, bias)]
        y_array, kept_array = y.numpy(), kept.numpy()
        _run(
            lambda b, first, last: kernels.forward(*arrays, softplus, b, first, last, y_array, kept_array),
            _tasks(batch, channels),
        )
        ctx.save_for_backward(u, delta, A, B, C, D, bias, kept)
        ctx.softplus = softplus
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        u, delta, A, B, C, D, bias, kept = ctx.saved_tensors
        batch, channels, length = u.shape
        states = A.shape[1]
        tasks = _tasks(batch, channels)
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA, dD, dbias = (u.new_zeros(batch, *t.shape) for t in (A, D, bias))
        parts = {task: u.new_zeros(2, length, states) for task in tasks}
        arrays = [t.detach().numpy() for t in (u, delta, A, B, C, D, bias)]
        dy_array, kept_array, du_array, ddelta_array = (t.numpy() for t in (dy.contiguous(), kept, du, ddelta))

        def task(b: int, first: int, last: int) -> None:
            dB, dC = parts[b, first, last].numpy()
            kernels.backward(
                *arrays, ctx.softplus, b, first, last, dy_array, kept_array,
                du_array, ddelta_array, dA[b].numpy(), dB, dC, dD[b].numpy(), dbias[b].numpy(),
            )  # fmt: skip

        _run(task, tasks)
        dBC = u.new_zeros(batch, 2, length, states)
        for (b, _, _), part in parts.items():
            dBC[b] += part
        dB, dC = dBC.transpose(2, 3).unbind(1)
        return du, ddelta, dA.sum(0), dB, dC, dD.sum(0), dbias.sum(0), None


def selective_scan_numba(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, softplus: bool
) -> Tensor:
    """All of one dtype, float32 or float64; D and bias (D,) present. Returns y (batch, D, L)."""
    if padding := -A.shape[1] % LANES:
        A, B, C = F.pad(A, (0, padding)), F.pad(B, (0, 0, 0, padding)), F.pad(C, (0, 0, 0, padding))
    return _Scan.apply(u, delta, A, B, C, D, bias, softplus)
