"""Selective scan on the CPU, compiled by numba: forward, and backward from states kept every 64 steps. Arrays only.

Layout: B and C come transposed to (batch, L, N), so one step reads one row of each. A task owns some channels of one
batch item and walks the time axis tile by tile, all its channels inside a tile: the tile's rows of B, C, dB and dC stay
in the first-level cache. 16 states are one vector, which stays in registers along a tile; N is a multiple of 16 (a
state with A = B = C = 0 adds nothing). Kernels release the GIL; `_scan_cpu.py` pads N and runs the tasks on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from volseg.ops._vector import LANES, exp2, load, log1p_of_exp2, real, store, total

TILE = 64
LOG2E = float(np.log2(np.e))

# NaN and infinity keep their meaning; sums over time may be reordered.
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
    length, states, tiles = u.shape[2], A.shape[1], (u.shape[2] + TILE - 1) // TILE
    decay = (A * real(LOG2E, A[0, 0])).reshape(-1)
    B, C, keep = B.reshape(-1), C.reshape(-1), kept.reshape(-1)
    carried = np.zeros((last - first) * states, u.dtype)
    step, out = np.empty(TILE, u.dtype), np.empty(TILE, u.dtype)
    for tile in range(tiles):
        start = tile * TILE
        size = min(TILE, length - start)
        for d in range(first, last):
            step_sizes(delta[batch, d, start : start + size], bias[d], softplus, step)
            x = u[batch, d, start : start + size]
            for i in range(size):
                out[i] = D[d] * x[i]
            for n in range(0, states, LANES):
                a, h = load(decay, d * states + n), load(carried, (d - first) * states + n)
                if keep.size:
                    store(keep, ((batch * u.shape[1] + d) * tiles + tile) * states + n, h)
                row = (batch * length + start) * states + n
                for i in range(size):
                    h = exp2(step[i] * a) * h + (step[i] * x[i]) * load(B, row)
                    out[i] += total(h * load(C, row))
                    row += states
                store(carried, (d - first) * states + n, h)
            y[batch, d, start : start + size] = out[:size]


@_compiled
def backward(u, delta, A, B, C, D, bias, softplus, batch, first, last, dy, kept, du, ddelta, dA, dB, dC, dD, dbias):
    """Gradients for channels first..last of one batch item, into zeroed arrays.

    du, ddelta (batch, D, L); dB, dC (L, N) are this task's own; dA (D, N), dD, dbias (D) are this batch item's.
    The states of a tile are computed again from `kept`, then the tile is walked backwards.
    """
    length, states, tiles = u.shape[2], A.shape[1], kept.shape[2]
    zero = real(0.0, A[0, 0])
    log2e = real(LOG2E, A[0, 0])
    decay = (A * log2e).reshape(-1)
    A, B, C, kept = A.reshape(-1), B.reshape(-1), C.reshape(-1), kept.reshape(-1)
    dA, dB, dC = dA.reshape(-1), dB.reshape(-1), dC.reshape(-1)
    carried = np.zeros((last - first) * states, u.dtype)
    step, by_input, by_decay = np.empty(TILE, u.dtype), np.empty(TILE, u.dtype), np.empty(TILE, u.dtype)
    h, shrink = np.empty(TILE * LANES, u.dtype), np.empty(TILE * LANES, u.dtype)
    for tile in range(tiles - 1, -1, -1):
        start = tile * TILE
        size = min(TILE, length - start)
        for d in range(first, last):
            step_sizes(delta[batch, d, start : start + size], bias[d], softplus, step)
            x, gy = u[batch, d, start : start + size], dy[batch, d, start : start + size]
            by_input[:] = zero
            by_decay[:] = zero
            for n in range(0, states, LANES):
                a, state = (
                    load(decay, d * states + n),
                    load(kept, ((batch * u.shape[1] + d) * tiles + tile) * states + n),
                )
                row = (batch * length + start) * states + n
                for i in range(size):
                    e = exp2(step[i] * a)
                    store(shrink, i * LANES, e)
                    store(h, i * LANES, state)
                    state = e * state + (step[i] * x[i]) * load(B, row)
                    row += states
                a, g, da = load(A, d * states + n), load(carried, (d - first) * states + n), load(dA, d * states + n)
                own = (start + size) * states + n
                for i in range(size - 1, -1, -1):
                    row -= states
                    own -= states
                    store(dC, own, load(dC, own) + gy[i] * state)
                    g = g + gy[i] * load(C, row)
                    store(dB, own, load(dB, own) + (step[i] * x[i]) * g)
                    by_input[i] += total(g * load(B, row))
                    g = g * load(shrink, i * LANES)
                    state = load(h, i * LANES)
                    q = g * state
                    da = da + step[i] * q
                    by_decay[i] += total(q * a)
                store(carried, (d - first) * states + n, g)
                store(dA, d * states + n, da)
            sum_d, sum_bias = zero, zero
            for i in range(size):
                du[batch, d, start + i] = step[i] * by_input[i] + D[d] * gy[i]
                sum_d += gy[i] * x[i]
                gdt = by_decay[i] + x[i] * by_input[i]
                if softplus:  # d softplus(v) / dv = 1 - exp(-softplus(v))
                    gdt *= real(1.0, zero) - exp2(-step[i] * log2e)
                ddelta[batch, d, start + i] = gdt
                sum_bias += gdt
            dD[d] += sum_d
            dbias[d] += sum_bias
