"""Instance norm, residual and activation in two passes over the memory instead of five. Arrays only.

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
def normalise(y, n, mean, scale, slope, first, last):
    """y = act((y - mean) * scale), act(v) = max(v, slope * v); y is flat, n voxels a row."""
    for row in range(first, last):
        m, s = mean[row], scale[row]
        for i in range(row * n, (row + 1) * n):
            v = (read(y, i) - m) * s
            write(y, i, max(v, v * slope))


@_compiled
def normalise_add(y, n, mean, scale, slope, other, other_mean, other_scale, first, last):
    """y = act((y - mean) * scale + (other - other_mean) * other_scale); y and other are flat."""
    for row in range(first, last):
        m, s, om, os = mean[row], scale[row], other_mean[row], other_scale[row]
        for i in range(row * n, (row + 1) * n):
            v = (read(y, i) - m) * s + (read(other, i) - om) * os
            write(y, i, max(v, v * slope))
