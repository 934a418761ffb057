"""Winograd's F(2x2x2, 3x3x3) on 16 tiles at a time: input tiles to 64 points, 64 points to output tiles. Arrays only.

`tile` is scratch for 64 vectors, point (i, j, k) of the 4 x 4 x 4 at (16 i + 4 j + k) * 16; its type is what is
computed in. Volumes may be bfloat16 bits (int16), see `_bfloat16.py`.
"""

from __future__ import annotations

from volseg.ops._bfloat16 import read
from volseg.ops._njit import _compiled
from volseg.ops._vector import LANES, load, real, spread, store
from volseg.ops._vector_blocks import after, before, load_even, load_odd, store_joined, store_pairs

POINTS = 64
RUN = 2 * LANES  # output voxels along the last axis that 16 tiles in a row cover


@_compiled
def _line_in(source, start, left, right, tile, row):
    """B' along a line: 32 voxels and the one on either side become 4 vectors of `tile`."""
    b, c = load_even(source, start), load_odd(source, start)
    a, d = after(left, c), before(b, right)
    store(tile, row, a - c)
    store(tile, row + LANES, b + c)
    store(tile, row + 2 * LANES, c - b)
    store(tile, row + 3 * LANES, b - d)


@_compiled
def two_axes_in(x, at, shape, tx, ty, z, line, tile):
    """B' along the last two axes of 16 tiles, the first at (2 tx - 1, 2 ty - 1, z - 1) of the channel at x[at]."""
    nx, ny, nz = shape
    nought = real(0.0, tile[0])
    for i in range(4):
        for j in range(4):
            xi, yj = 2 * tx - 1 + i, 2 * ty - 1 + j
            start, row = at + (xi * ny + yj) * nz + z, (i * 4 + j) * 4 * LANES
            if xi < 0 or xi >= nx or yj < 0 or yj >= ny:
                for k in range(4 * LANES):
                    tile[row + k] = nought
                continue
            left = read(x, start - 1) if z > 0 else nought
            if z + RUN <= nz:
                right = read(x, start + RUN) if z + RUN < nz else nought
                _line_in(x, start, left, right, tile, row)
            else:
                for k in range(RUN):
                    line[k] = x[start + k] if z + k < nz else 0
                _line_in(line, 0, left, nought, tile, row)
    step = 4 * LANES
    for i in range(4):
        for k in range(4):
            row = (i * 16 + k) * LANES
            a, b = load(tile, row), load(tile, row + step)
            c, d = load(tile, row + 2 * step), load(tile, row + 3 * step)
            store(tile, row, a - c)
            store(tile, row + step, b + c)
            store(tile, row + 2 * step, c - b)
            store(tile, row + 3 * step, b - d)


@_compiled
def third_axis_in(tile, out, at, out_step):
    """B' along the first axis; point p goes to out[at + p * out_step]."""
    step = 16 * LANES
    for jk in range(16):
        row, target = jk * LANES, at + jk * out_step
        a, b = load(tile, row), load(tile, row + step)
        c, d = load(tile, row + 2 * step), load(tile, row + 3 * step)
        store(out, target, a - c)
        store(out, target + 16 * out_step, b + c)
        store(out, target + 32 * out_step, c - b)
        store(out, target + 48 * out_step, b - d)


@_compiled
def third_axis_in_joined(tile, other, out, at, out_step):
    """The same for two channels, which leave as pairs of bfloat16 in one int32: `tile` in the lower half."""
    step = 16 * LANES
    for jk in range(16):
        row, target = jk * LANES, at + jk * out_step
        a, b = load(tile, row), load(tile, row + step)
        c, d = load(tile, row + 2 * step), load(tile, row + 3 * step)
        e, f = load(other, row), load(other, row + step)
        g, h = load(other, row + 2 * step), load(other, row + 3 * step)
        store_joined(out, target, a - c, e - g)
        store_joined(out, target + 16 * out_step, b + c, f + g)
        store_joined(out, target + 32 * out_step, c - b, g - f)
        store_joined(out, target + 48 * out_step, b - d, f - h)


@_compiled
def channel_out(products, at, step, bias, tile, line, y, y_at, shape, tx, ty, z):
    """A' along all axes of 16 tiles, point p at products[at + p * step], plus bias, into 2 x 2 lines of 32 voxels."""
    nx, ny, nz = shape
    for jk in range(16):
        source = at + jk * step
        a, b = load(products, source), load(products, source + 16 * step)
        c, d = load(products, source + 32 * step), load(products, source + 48 * step)
        store(tile, jk * LANES, a + b + c)
        store(tile, (16 + jk) * LANES, b - c - d)
    for i in range(2):
        for k in range(4):
            row, step_j = (i * 16 + k) * LANES, 4 * LANES
            a, b = load(tile, row), load(tile, row + step_j)
            c, d = load(tile, row + 2 * step_j), load(tile, row + 3 * step_j)
            store(tile, row, a + b + c)
            store(tile, row + step_j, b - c - d)
    shift = spread(bias)
    for i in range(2):
        for j in range(2):
            xi, yj, row = 2 * tx + i, 2 * ty + j, (i * 16 + j * 4) * LANES
            if xi >= nx or yj >= ny:
                continue
            a, b = load(tile, row), load(tile, row + LANES)
            c, d = load(tile, row + 2 * LANES), load(tile, row + 3 * LANES)
            even, odd = a + b + c + shift, b - c - d + shift
            target = y_at + (xi * ny + yj) * nz + z
            if z + RUN <= nz:
                store_pairs(y, target, even, odd)
            else:
                store_pairs(line, 0, even, odd)
                for k in range(nz - z):
                    y[target + k] = line[k]
