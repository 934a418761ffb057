"""Instance norm, residual and activation in two passes over the memory instead of five, and the gradient. Arrays only.

Rows are channels of one batch item, (rows, voxels). Moments are taken piece by piece in the first-level cache, twice
over each piece, and put together in float64 (Chan, Golub & LeVeque 1983): as exact as the two-pass formula. Rows may be
bfloat16 bits (int16, see `_bfloat16.py`); what is computed is float32 then.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._bfloat16 import read, write
from volseg.ops._njit import _compiled

PIECE = 4096


@_compiled
def moments(y, eps, first, last, mean, scale):
    """Mean and 1 / sqrt(variance + eps) of rows first..last."""
    n = y.shape[1]
    for row in range(first, last):
        center, spread, seen = 0.0, 0.0, 0
        for start in range(0, n, PIECE):
            piece = y[row, start : start + PIECE]
            total = np.float32(0)
            for i in range(piece.size):
                total += read(piece, i)
            here = total / np.float32(piece.size)
            squares = np.float32(0)
            for i in range(piece.size):
                squares += (read(piece, i) - here) * (read(piece, i) - here)
            step = np.float64(here) - center
            both = seen + piece.size
            spread += np.float64(squares) + step * step * seen * piece.size / both
            center += step * piece.size / both
            seen = both
        mean[row] = center
        scale[row] = 1.0 / np.sqrt(spread / n + eps)


# max(v, slope * v) is the leaky ReLU for slopes up to 1. An `if` inside the call would be lost without a word: numba
# 0.68 forgets an inlined `write` whose argument is a conditional expression (2026-11; the tests see it).


@_compiled
def _before_activation(y, start, size, mean, scale, other, other_mean, other_scale, values):
    """values = (y - mean) * scale + (other - other_mean) * other_scale for `size` numbers from `start` on."""
    part = y[start : start + size]
    for i in range(size):
        values[i] = (read(part, i) - mean) * scale
    if other.size:
        part = other[start : start + size]
        for i in range(size):
            values[i] += (read(part, i) - other_mean) * other_scale


@_compiled
def normalise(y, n, mean, scale, slope, other, other_mean, other_scale, out, first, last):
    """out = act((y - mean) * scale + (other - other_mean) * other_scale), act(v) = max(v, slope * v), of some rows.

    y, other and out are flat, n voxels a row; out may be y, and other empty. The piece in between lets LLVM make
    vectors: it knows that it overlaps with nothing.
    """
    values = np.empty(PIECE, np.float32)
    for row in range(first, last):
        for start in range(row * n, (row + 1) * n, PIECE):
            size = min(PIECE, (row + 1) * n - start)
            _before_activation(y, start, size, mean[row], scale[row], other, other_mean[row], other_scale[row], values)
            target = out[start : start + size]
            for i in range(size):
                write(target, i, max(values[i], values[i] * slope))


@_compiled
def _slopes(dout, start, size, slope, values):
    """values = dout, times `slope` where values are not above 0."""
    part, one = dout[start : start + size], np.float32(1)
    for i in range(size):
        factor = one if values[i] > 0 else slope
        values[i] = read(part, i) * factor


@_compiled
def _moments_with(slopes, size, y, start, mean, scale):
    """Sums of the slopes and of slopes times the normalised y."""
    part, alone, product = y[start : start + size], np.float32(0), np.float32(0)
    for i in range(size):
        alone += slopes[i]
        product += slopes[i] * ((read(part, i) - mean) * scale)
    return np.float64(alone), np.float64(product)


@_compiled
def _through_norm(slopes, size, y, start, mean, scale, alone, product, dy):
    """dy = scale * (slopes - mean slope - normalised y * mean of slopes times it): the norm's own gradient."""
    part, target = y[start : start + size], dy[start : start + size]
    for i in range(size):
        v = slopes[i] - alone - (read(part, i) - mean) * scale * product
        write(target, i, v * scale)


@_compiled
def gradients(dout, y, n, mean, scale, slope, other, other_mean, other_scale, other_normed, dy, dother, first, last):
    """Of `normalise` in y and other, for rows first..last; all arrays flat, dother empty where other is.

    Two passes: the sums a norm's gradient takes away, then the gradients. The values before the activation are
    computed again in each, from y and other.
    """
    values = np.empty(PIECE, np.float32)
    for row in range(first, last):
        m, s, om, os = mean[row], scale[row], other_mean[row], other_scale[row]
        alone, product, other_product = 0.0, 0.0, 0.0
        for start in range(row * n, (row + 1) * n, PIECE):
            size = min(PIECE, (row + 1) * n - start)
            _before_activation(y, start, size, m, s, other, om, os, values)
            _slopes(dout, start, size, slope, values)
            a, p = _moments_with(values, size, y, start, m, s)
            alone, product = alone + a, product + p
            if other_normed:
                other_product += _moments_with(values, size, other, start, om, os)[1]
        a, p, op = np.float32(alone / n), np.float32(product / n), np.float32(other_product / n)
        for start in range(row * n, (row + 1) * n, PIECE):
            size = min(PIECE, (row + 1) * n - start)
            _before_activation(y, start, size, m, s, other, om, os, values)
            _slopes(dout, start, size, slope, values)
            _through_norm(values, size, y, start, m, s, a, p, dy)
            if other_normed:
                _through_norm(values, size, other, start, om, os, a, op, dother)
            elif dother.size:
                target = dother[start : start + size]
                for i in range(size):
                    write(target, i, values[i])
