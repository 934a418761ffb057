"""Selective scan on the CPU, compiled by numba: forward, and backward from states kept every 64 steps. Arrays only.

Layout: a task owns some channels of one batch item. u, delta, y lie by position, (D, L), whatever the order of tokens
(`token_order.py`: slices, backwards); B and C lie by token, (L, N), so one step reads one row of each. Tokens are taken
block by block (`_tokens_numba.py`), and inside a block a group of channels goes tile by tile: the tile's rows of B, C,
dB and dC stay in the first-level cache. 16 states are one vector, which stays in registers along a tile; N is a
multiple of 16 (a state with A = B = C = 0 adds nothing). Kernels release the GIL;
`_scan_cpu.py` pads N and runs the tasks on threads.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._njit import _compiled
from volseg.ops._tokens_numba import TILE, gather, layout, scatter
from volseg.ops._vector import LANES, exp2, load, log1p_of_exp2, real, store, total

GROUP = 8  # channels gathered at a time: they share a tile of B and C in the first-level cache, blocks in the second
LOG2E = float(np.log2(np.e))


@_compiled
def step_sizes(step, bias, softplus):
    """step = softplus(step + bias), or step + bias, in place."""
    if softplus:
        for i in range(step.size):
            x = step[i] + bias
            step[i] = max(x, real(0.0, x)) + log1p_of_exp2(-abs(x) * real(LOG2E, x))
    else:
        for i in range(step.size):
            step[i] += bias


@_compiled
def forward(u, delta, A, B, C, D, bias, softplus, slices, backwards, first, last, y, add, kept):
    """Fill y (D, L), or add to it, for channels first..last of one batch item.

    `kept` (D, tiles, N) gets the state before each tile of each block; with no tiles (size 0) it keeps nothing.
    """
    states = A.shape[1]
    columns, width, blocks, tiles = layout(u.shape[1], slices)
    decay = (A * real(LOG2E, A[0, 0])).reshape(-1)
    B, C, keep = B.reshape(-1), C.reshape(-1), kept.reshape(-1)
    carried = np.zeros((last - first) * states, A.dtype)
    xs = np.empty((GROUP, width * slices), A.dtype)
    steps, outs = np.empty_like(xs), np.empty_like(xs)
    for block in range(blocks):
        column = block * width
        wide = min(width, columns - column)
        size = wide * slices
        for group in range(first, last, GROUP):
            members = min(GROUP, last - group)
            for m in range(members):
                d = group + m
                gather(u[d], slices, backwards, column, wide, xs[m])
                gather(delta[d], slices, backwards, column, wide, steps[m])
                step_sizes(steps[m, :size], bias[d], softplus)
                for i in range(size):
                    outs[m, i] = D[d] * xs[m, i]
            for start in range(0, size, TILE):
                stop = min(start + TILE, size)
                for m in range(members):
                    d = group + m
                    x, step, out = xs[m, start:stop], steps[m, start:stop], outs[m, start:stop]
                    for n in range(0, states, LANES):
                        a, h = load(decay, d * states + n), load(carried, (d - first) * states + n)
                        if keep.size:
                            store(keep, ((d * blocks + block) * tiles + start // TILE) * states + n, h)
                        row = (column * slices + start) * states + n
                        for i in range(stop - start):
                            h = exp2(step[i] * a) * h + (step[i] * x[i]) * load(B, row)
                            out[i] += total(h * load(C, row))
                            row += states
                        store(carried, (d - first) * states + n, h)
            for m in range(members):
                scatter(outs[m], slices, backwards, column, wide, y[group + m], add)


@_compiled
def backward(
    u, delta, A, B, C, D, bias, softplus, slices, backwards, first, last, dy, kept, du, ddelta, dA, dB, dC, dD, dbias
):
    """Gradients for channels first..last of one batch item, into zeroed arrays.

    du, ddelta (D, L) by position; dB, dC (L, N) by token are this task's own; dA (D, N), dD, dbias (D) are this batch
    item's. The states of a tile are computed again from `kept`, then the tile is walked backwards.
    """
    states = A.shape[1]
    columns, width, blocks, tiles = layout(u.shape[1], slices)
    zero = real(0.0, A[0, 0])
    log2e = real(LOG2E, A[0, 0])
    decay = (A * log2e).reshape(-1)
    A, B, C, kept = A.reshape(-1), B.reshape(-1), C.reshape(-1), kept.reshape(-1)
    dA, dB, dC = dA.reshape(-1), dB.reshape(-1), dC.reshape(-1)
    carried = np.zeros((last - first) * states, A.dtype)
    xs = np.empty((GROUP, width * slices), A.dtype)
    steps, gys, by_inputs, by_decays = np.empty_like(xs), np.empty_like(xs), np.empty_like(xs), np.empty_like(xs)
    h, shrink = np.empty(TILE * LANES, A.dtype), np.empty(TILE * LANES, A.dtype)
    for block in range(blocks - 1, -1, -1):
        column = block * width
        wide = min(width, columns - column)
        size = wide * slices
        for group in range(first, last, GROUP):
            members = min(GROUP, last - group)
            for m in range(members):
                d = group + m
                gather(u[d], slices, backwards, column, wide, xs[m])
                gather(dy[d], slices, backwards, column, wide, gys[m])
                gather(delta[d], slices, backwards, column, wide, steps[m])
                step_sizes(steps[m, :size], bias[d], softplus)
            by_inputs[:] = zero
            by_decays[:] = zero
            for start in range((size - 1) // TILE * TILE, -1, -TILE):
                stop = min(start + TILE, size)
                for m in range(members):
                    d = group + m
                    x, step, gy = xs[m, start:stop], steps[m, start:stop], gys[m, start:stop]
                    by_input, by_decay = by_inputs[m, start:stop], by_decays[m, start:stop]
                    for n in range(0, states, LANES):
                        a = load(decay, d * states + n)
                        state = load(kept, ((d * blocks + block) * tiles + start // TILE) * states + n)
                        row = (column * slices + start) * states + n
                        for i in range(stop - start):
                            e = exp2(step[i] * a)
                            store(shrink, i * LANES, e)
                            store(h, i * LANES, state)
                            state = e * state + (step[i] * x[i]) * load(B, row)
                            row += states
                        own = (d - first) * states + n
                        a, g, da = load(A, d * states + n), load(carried, own), load(dA, d * states + n)
                        for i in range(stop - start - 1, -1, -1):
                            row -= states
                            store(dC, row, load(dC, row) + gy[i] * state)
                            g = g + gy[i] * load(C, row)
                            store(dB, row, load(dB, row) + (step[i] * x[i]) * g)
                            by_input[i] += total(g * load(B, row))
                            g = g * load(shrink, i * LANES)
                            state = load(h, i * LANES)
                            q = g * state
                            da = da + step[i] * q
                            by_decay[i] += total(q * a)
                        store(carried, own, g)
                        store(dA, d * states + n, da)
            for m in range(members):
                d = group + m
                sum_d, sum_bias = zero, zero
                x, step, gy, by_input, by_decay = xs[m], steps[m], gys[m], by_inputs[m], by_decays[m]
                for i in range(size):
                    gdt = by_decay[i] + x[i] * by_input[i]
                    if softplus:  # d softplus(v) / dv = 1 - exp(-softplus(v))
                        gdt *= real(1.0, zero) - exp2(-step[i] * log2e)
                    by_decay[i] = gdt
                    by_input[i] = step[i] * by_input[i] + D[d] * gy[i]
                # Summed in a loop that stores nothing: see backward in _conv_numba.py.
                for i in range(size):
                    sum_d += gy[i] * x[i]
                    sum_bias += by_decay[i]
                dD[d] += sum_d
                dbias[d] += sum_bias
                scatter(by_input, slices, backwards, column, wide, du[d], False)
                scatter(by_decay, slices, backwards, column, wide, ddelta[d], False)
