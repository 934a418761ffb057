"""Selective scan on the CPU, compiled by numba: forward, and backward from states kept every 64 steps. Arrays only.

Layout: B and C come transposed to (batch, L, N), so one step reads one row of each. A task owns some channels of one
batch item and walks the time axis tile by tile, all its channels inside a tile: the tile's rows of B, C, dB and dC stay
in the first-level cache. The loop over the N states is the vector loop. Kernels release the GIL; `_scan_cpu.py` runs
the tasks on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from volseg.ops._scan_math import exp2, log1p_of_exp2, real

TILE = 64
LOG2E = float(np.log2(np.e))

# NaN and infinity keep their meaning; sums may be reordered, which is what lets LLVM vectorise them.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


def _compiled(function):
    """njit with an on-disk cache where any place for one is writable, without one otherwise."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        return njit(**_OPTIONS)(function)


@_compiled
def step_sizes(raw, bias, softplus, out):
    """out = softplus(raw + bias), or raw + bias."""
    if softplus:
        for i in range(raw.size):
            x = raw[i] + bias
            out[i] = max(x, real(0.0, x)) + log1p_of_exp2(-abs(x) * real(LOG2E, x))
    else:
        for i in range(raw.size):
            out[i] = raw[i] + bias


@_compiled
def forward(u, delta, A, B, C, D, bias, softplus, batch, first, last, y, kept):
    """Fill y (batch, D, L) for channels first..last of one batch item.

    `kept` (batch, D, tiles, N) gets the state before each tile; with no tiles (size 0) it keeps nothing.
    """
    length, states = u.shape[2], A.shape[1]
    decay = A * real(LOG2E, A[0, 0])
    carried = np.zeros((last - first, states), u.dtype)
    step = np.empty(TILE, u.dtype)
    for tile in range((length + TILE - 1) // TILE):
        start = tile * TILE
        size = min(TILE, length - start)
        for d in range(first, last):
            h = carried[d - first]
            a = decay[d]
            if kept.size:
                kept[batch, d, tile, :] = h
            step_sizes(delta[batch, d, start : start + size], bias[d], softplus, step)
            for i in range(size):
                dt = step[i]
                x = u[batch, d, start + i]
                input_ = dt * x
                row_b, row_c = B[batch, start + i], C[batch, start + i]
                total = real(0.0, x)
                for n in range(states):
                    value = exp2(dt * a[n]) * h[n] + input_ * row_b[n]
                    h[n] = value
                    total += value * row_c[n]
                y[batch, d, start + i] = total + D[d] * x


@_compiled
def backward(u, delta, A, B, C, D, bias, softplus, batch, first, last, dy, kept, du, ddelta, dA, dB, dC, dD, dbias):
    """Gradients for channels first..last of one batch item, into zeroed arrays.

    du, ddelta (batch, D, L); dB, dC (L, N) are this task's own; dA (D, N), dD, dbias (D) are this batch item's.
    The states of a tile are computed again from `kept`, then the tile is walked backwards.
    """
    length, states = u.shape[2], A.shape[1]
    decay = A * real(LOG2E, A[0, 0])
    carried = np.zeros((last - first, states), u.dtype)
    step = np.empty(TILE, u.dtype)
    h = np.empty((TILE + 1, states), u.dtype)
    shrink = np.empty((TILE, states), u.dtype)
    for tile in range((length + TILE - 1) // TILE - 1, -1, -1):
        start = tile * TILE
        size = min(TILE, length - start)
        for d in range(first, last):
            a, a_log, g = decay[d], A[d], carried[d - first]
            step_sizes(delta[batch, d, start : start + size], bias[d], softplus, step)
            h[0] = kept[batch, d, tile]
            for i in range(size):
                dt = step[i]
                input_ = dt * u[batch, d, start + i]
                row_b, before, after, shrink_i = B[batch, start + i], h[i], h[i + 1], shrink[i]
                for n in range(states):
                    e = exp2(dt * a[n])
                    shrink_i[n] = e
                    after[n] = e * before[n] + input_ * row_b[n]
            dA_d = dA[d]
            sum_d, sum_bias = real(0.0, decay[0, 0]), real(0.0, decay[0, 0])
            for i in range(size - 1, -1, -1):
                dt = step[i]
                x = u[batch, d, start + i]
                input_ = dt * x
                gy = dy[batch, d, start + i]
                row_b, row_c = B[batch, start + i], C[batch, start + i]
                row_db, row_dc = dB[start + i], dC[start + i]
                before, after, shrink_i = h[i], h[i + 1], shrink[i]
                through_input = real(0.0, x)
                through_decay = real(0.0, x)
                for n in range(states):
                    gn = g[n] + gy * row_c[n]
                    row_dc[n] += gy * after[n]
                    row_db[n] += gn * input_
                    through_input += gn * row_b[n]
                    ge = gn * shrink_i[n]
                    q = ge * before[n]
                    dA_d[n] += q * dt
                    through_decay += q * a_log[n]
                    g[n] = ge
                du[batch, d, start + i] = dt * through_input + D[d] * gy
                sum_d += gy * x
                gdt = through_decay + x * through_input
                if softplus:  # d softplus(v) / dv = 1 - exp(-softplus(v))
                    gdt *= real(1.0, x) - exp2(-dt * real(LOG2E, x))
                ddelta[batch, d, start + i] = gdt
                sum_bias += gdt
            dD[d] += sum_d
            dbias[d] += sum_bias
