"""Causal depthwise convolution and SiLU in one pass on the CPU, compiled by numba. Arrays only.

Tokens follow one another in some order (`token_order.py`: slices, backwards), arrays lie by position. Whatever the
order, the tokens `reach` places before those of one slice are again a slice, moved by a column or so. So the inner
loops run over contiguous positions, which LLVM turns into vectors; a chunk stays in the first-level cache between taps.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._bfloat16 import read, write
from volseg.ops._njit import _compiled
from volseg.ops._vector import exp2, real

CHUNK = 1024
LOG2E = float(np.log2(np.e))


@_compiled
def source(s, reach, slices, backwards):
    """Where the tokens `reach` places before those of slice s lie: (slice, how many columns further on)."""
    place = s + reach if backwards else s - reach
    columns = place // slices
    return place - columns * slices, columns


@_compiled
def add_taps(x, taps, slices, backwards, s, start, out):
    """out[j] += sum_k taps[k] * (x, K - 1 - k tokens before column start + j of slice s)."""
    per_slice = x.size // slices
    for k in range(taps.size):
        there, shift = source(s, taps.size - 1 - k, slices, backwards)
        low, high = max(start, -shift), min(start + out.size, per_slice - shift)
        if low < high:
            tap, ours = taps[k], out[low - start : high - start]
            theirs = x[there * per_slice + low + shift : there * per_slice + high + shift]
            for j in range(ours.size):
                ours[j] += tap * read(theirs, j)


@_compiled
def add_products(x, slope, slices, backwards, s, start, dtaps):
    """dtaps[k] += sum_j slope[j] * (x, K - 1 - k tokens before column start + j of slice s)."""
    per_slice = x.size // slices
    for k in range(dtaps.size):
        there, shift = source(s, dtaps.size - 1 - k, slices, backwards)
        low, high = max(start, -shift), min(start + slope.size, per_slice - shift)
        if low < high:
            ours = slope[low - start : high - start]
            theirs = x[there * per_slice + low + shift : there * per_slice + high + shift]
            products = real(0.0, slope[0])
            for j in range(ours.size):
                products += ours[j] * read(theirs, j)
            dtaps[k] += products


@_compiled
def forward(x, weight, bias, slices, backwards, first, last, y):
    """Fill y (C, L) for channels first..last of one batch item x (C, L); weight (C, K), bias (C,)."""
    per_slice = x.shape[1] // slices
    buffer = np.empty(min(CHUNK, per_slice), weight.dtype)
    for c in range(first, last):
        for s in range(slices):
            for start in range(0, per_slice, CHUNK):
                stop = min(start + CHUNK, per_slice)
                v = buffer[: stop - start]
                v[:] = bias[c]
                add_taps(x[c], weight[c], slices, backwards, s, start, v)
                out = y[c, s * per_slice + start : s * per_slice + stop]
                for j in range(v.size):
                    write(out, j, v[j] / (real(1.0, v[j]) + exp2(-v[j] * real(LOG2E, v[j]))))


@_compiled
def backward(x, weight, bias, slices, backwards, first, last, dy, dx, dweight, dbias):
    """Gradients for channels first..last of one batch item: dx (C, L) filled, dweight (C, K), dbias (C,) added to.

    What SiLU received is computed again. Its gradient then goes from every token to those before it: the same taps
    along the order reversed.
    """
    per_slice = x.shape[1] // slices
    one = real(1.0, weight[0, 0])
    slope = np.empty(x.shape[1], weight.dtype)
    buffer = np.empty(min(CHUNK, per_slice), weight.dtype)
    for c in range(first, last):
        for s in range(slices):
            for start in range(0, per_slice, CHUNK):
                stop = min(start + CHUNK, per_slice)
                here = slice(s * per_slice + start, s * per_slice + stop)
                v, g, gy = buffer[: stop - start], slope[here], dy[c, here]
                v[:] = bias[c]
                add_taps(x[c], weight[c], slices, backwards, s, start, v)
                for j in range(v.size):  # d silu(v) / dv = p (1 + v (1 - p)) with p = sigmoid(v)
                    p = one / (one + exp2(-v[j] * real(LOG2E, one)))
                    g[j] = read(gy, j) * (p * (one + v[j] * (one - p)))
                # Summed in a loop that stores nothing: one that stores is guarded by a comparison of addresses, and the
                # order of the sum would hang on where malloc put a short array.
                received = one - one
                for j in range(v.size):
                    received += g[j]
                dbias[c] += received
                add_products(x[c], g, slices, backwards, s, start, dweight[c])
        for s in range(slices):
            for start in range(0, per_slice, CHUNK):
                stop = min(start + CHUNK, per_slice)
                v = buffer[: stop - start]
                v[:] = one - one
                add_taps(slope, weight[c], slices, not backwards, s, start, v)
                out = dx[c, s * per_slice + start : s * per_slice + stop]
                for j in range(v.size):
                    write(out, j, v[j])
