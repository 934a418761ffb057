"""The weights of a 3x3x3 convolution as Winograd's algorithm multiplies them: G along every axis. Arrays only.

Compiled, this takes a few percent of the convolution's time (in numpy it was a third at 192 channels), so it is done
anew each time: what is kept would hold 64/27 of the weights' memory, and could grow stale.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._njit import _compiled
from volseg.ops._vector import real
from volseg.ops._vector_blocks import ROWS


@_compiled
def _along_axis(taps, outer, inner, wider):
    """wider (outer, 4, inner) = G taps (outer, 3, inner), flat; G = [1 0 0; .5 .5 .5; .5 -.5 .5; 0 0 1]."""
    half = real(0.5, taps[0])
    for o in range(outer):
        source, target = o * 3 * inner, o * 4 * inner
        for i in range(inner):
            a, b, c = taps[source + i], taps[source + inner + i], taps[source + 2 * inner + i]
            wider[target + i] = a
            wider[target + inner + i] = half * (a + b + c)
            wider[target + 2 * inner + i] = half * (a - b + c)
            wider[target + 3 * inner + i] = c


@_compiled
def transform(weight, first, last, points):
    """Fill groups first..last of 8 output channels of points (64, groups, Cin, 8) from weight (Cout, Cin, 3, 3, 3)."""
    cout, cin = weight.shape[:2]
    taps, one = np.zeros(27 * ROWS, points.dtype), np.empty(36 * ROWS, points.dtype)
    two, three = np.empty(48 * ROWS, points.dtype), np.empty(64 * ROWS, points.dtype)
    for g in range(first, last):
        for c in range(cin):
            for r in range(min(ROWS, cout - g * ROWS)):
                n = r
                for i in range(3):
                    for j in range(3):
                        for k in range(3):
                            taps[n] = weight[g * ROWS + r, c, i, j, k]
                            n += ROWS
            _along_axis(taps, 9, ROWS, one)
            _along_axis(one, 3, 4 * ROWS, two)
            _along_axis(two, 1, 16 * ROWS, three)
            n = 0
            for p in range(points.shape[0]):
                for r in range(ROWS):
                    points[p, g, c, r] = three[n + r]
                n += ROWS
        taps[:] = 0  # the next group may have fewer channels


@_compiled
def pair(points, first, last, words):
    """Points first..last of words (64, groups, ceil(Cin / 2), 8), int32: channels 2k and 2k + 1 as bfloat16 bits.

    points (64, groups, Cin, 8) are the bits of float32, as uint32; rounded to the nearest, ties to even.
    """
    cin = points.shape[2]
    one, bias, sixteen, upper = np.uint32(1), np.uint32(0x7FFF), np.uint32(16), np.uint32(0xFFFF0000)
    for p in range(first, last):
        for g in range(points.shape[1]):
            for k in range(words.shape[2]):
                for r in range(ROWS):
                    low = points[p, g, 2 * k, r]
                    low = np.uint32(np.uint32(low + bias + ((low >> sixteen) & one)) >> sixteen)
                    if 2 * k + 1 < cin:
                        high = points[p, g, 2 * k + 1, r]
                        low |= np.uint32(high + bias + ((high >> sixteen) & one)) & upper
                    words[p, g, k, r] = low
