"""GELU, its slope, and sums of squares in one pass on the CPU, compiled by numba. Arrays only.

Rows are voxels, (rows, channels), float32 or bfloat16 bits (int16, see `_bfloat16.py`); computed in float32. The normal
distribution's tail is Abramowitz & Stegun 7.1.26, within 8e-8 everywhere: the last digit of float32.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._bfloat16 import read, write
from volseg.ops._njit import _compiled
from volseg.ops._vector import exp2, real

# q(x) = P(X > |x|) = t (A1 + t (A2 + ...)) exp(-x^2 / 2) / 2 with t = 1 / (1 + P |x| / sqrt 2)
P = 0.3275911 / np.sqrt(2.0)
A1, A2, A3, A4, A5 = (a / 2 for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
HALF_LOG2E = float(np.log2(np.e) / 2)
DENSITY = float(1 / np.sqrt(2 * np.pi))


@_compiled
def gelu_squares(h, y, first, last, squares):
    """y = x * P(X < x) for rows first..last of h, flat with squares.size channels a row; squares += y * y.

    y may be h: a row is finished in a place of its own, for loops over arrays that might overlap are not vectorised.
    """
    channels = squares.size
    values = np.empty(channels, np.float32)
    for row in range(first, last):
        given, out = h[row * channels : (row + 1) * channels], y[row * channels : (row + 1) * channels]
        for c in range(channels):
            x = read(given, c)
            size = abs(x)
            t = real(1.0, x) / (real(1.0, x) + real(P, x) * size)
            tail = real(A4, x) + t * real(A5, x)
            tail = real(A1, x) + t * (real(A2, x) + t * (real(A3, x) + t * tail))
            tail = tail * t * exp2(x * x * real(-HALF_LOG2E, x))
            v = max(x, real(0.0, x)) - size * tail
            values[c] = v
            squares[c] += v * v
        for c in range(channels):
            write(out, c, values[c])


@_compiled
def backward(h, dy, dh, slope, first, last):
    """dh = (dy + slope y) dy/dx, slope (channels,) is twice the gradient of the squares; all else flat as above."""
    channels = slope.size
    for row in range(first, last):
        here = slice(row * channels, (row + 1) * channels)
        given, arriving, out = h[here], dy[here], dh[here]
        for c in range(channels):
            x = read(given, c)
            size = abs(x)
            t = real(1.0, x) / (real(1.0, x) + real(P, x) * size)
            tail = real(A4, x) + t * real(A5, x)
            tail = real(A1, x) + t * (real(A2, x) + t * (real(A3, x) + t * tail))
            e = exp2(x * x * real(-HALF_LOG2E, x))
            tail = tail * t * e
            v = max(x, real(0.0, x)) - size * tail
            below = real(1.0, x) - tail
            if x < real(0.0, x):
                below = tail
            g = (read(arriving, c) + slope[c] * v) * (below + x * real(DENSITY, x) * e)
            write(out, c, g)
