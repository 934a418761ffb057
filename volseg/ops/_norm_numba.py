"""Instance norm, residual and activation in two passes over the memory instead of five. Arrays only.

Rows are channels of one batch item, (rows, voxels). Moments are taken piece by piece in the first-level cache, twice
over each piece, and put together in float64 (Chan, Golub & LeVeque 1983): as exact as the two-pass formula.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._scan_numba import _compiled

PIECE = 4096


@_compiled
def moments(y, eps, first, last, mean, scale):
    """Mean and 1 / sqrt(variance + eps) of rows first..last."""
    n = y.shape[1]
    for row in range(first, last):
        center, spread, seen = 0.0, 0.0, 0
        for start in range(0, n, PIECE):
            piece = y[row, start : start + PIECE]
            total = piece[0] - piece[0]
            for i in range(piece.size):
                total += piece[i]
            here = total / piece.dtype.type(piece.size)
            squares = here - here
            for i in range(piece.size):
                squares += (piece[i] - here) * (piece[i] - here)
            step = np.float64(here) - center
            both = seen + piece.size
            spread += np.float64(squares) + step * step * seen * piece.size / both
            center += step * piece.size / both
            seen = both
        mean[row] = center
        scale[row] = 1.0 / np.sqrt(spread / n + eps)


@_compiled
def normalise(y, mean, scale, slope, first, last):
    """y = act((y - mean) * scale), act(v) = v if v > 0 else slope * v."""
    for row in range(first, last):
        m, s = mean[row], scale[row]
        for i in range(y.shape[1]):
            v = (y[row, i] - m) * s
            y[row, i] = v if v > 0 else v * slope


@_compiled
def normalise_add(y, mean, scale, slope, other, other_mean, other_scale, first, last):
    """y = act((y - mean) * scale + (other - other_mean) * other_scale)."""
    for row in range(first, last):
        m, s, om, os = mean[row], scale[row], other_mean[row], other_scale[row]
        for i in range(y.shape[1]):
            v = (y[row, i] - m) * s + (other[row, i] - om) * os
            y[row, i] = v if v > 0 else v * slope
