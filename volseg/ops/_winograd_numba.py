"""3x3x3 convolution on the CPU with 8 instead of 27 multiplications per output voxel and pair of channels. Arrays only.

Winograd's minimal filtering F(2x2x2, 3x3x3), Lavin & Gray, arXiv 1509.09308, in three dimensions: a tile of 4x4x4
input voxels gives 2x2x2 outputs. With B, G, A the transforms of one axis, out = A' [ (G w) * (B' d) ] A, summed over
the input channels: 64 small matrix products. Sixteen tiles in a row along the last axis are the lanes of a vector, so
tensors stay as torch keeps them (B, C, X, Y, Z); 48 tiles are worked on at a time, which fits the second-level cache.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._scan_numba import _compiled
from volseg.ops._vector import LANES, load, real, spread, store
from volseg.ops._vector_blocks import (
    COLUMNS,
    ROWS,
    VECTORS,
    after,
    before,
    load_even,
    load_odd,
    multiply_block,
    store_pairs,
)

POINTS = 64  # of a transformed tile, 4 x 4 x 4
RUN = 2 * LANES  # output voxels along the last axis that one vector of tiles covers


@_compiled
def _along_line(source, start, left, right, tile, row):
    """Transform 32 voxels of a line and the one on either side: 4 vectors into `tile` from `row` on. B' of F(2, 3)."""
    b, c = load_even(source, start), load_odd(source, start)
    a, d = after(left, c), before(b, right)
    store(tile, row, a - c)
    store(tile, row + LANES, b + c)
    store(tile, row + 2 * LANES, c - b)
    store(tile, row + 3 * LANES, b - d)


@_compiled
def _transform_channel(x, at, shape, tx, ty, z, line, tile, out, out_at, out_step):
    """B' along all axes of 16 tiles of one channel; point p goes to out[out_at + p * out_step]."""
    nx, ny, nz = shape
    for i in range(4):
        for j in range(4):
            xi, yj = 2 * tx - 1 + i, 2 * ty - 1 + j
            valid = xi >= 0 and xi < nx and yj >= 0 and yj < ny
            start, row = at + (xi * ny + yj) * nz + z, (i * 4 + j) * 4 * LANES
            if not valid:
                for k in range(4 * LANES):
                    tile[row + k] = 0
                continue
            left = x[start - 1] if z > 0 else real(0.0, x[0])
            if z + RUN <= nz:
                right = x[start + RUN] if z + RUN < nz else real(0.0, x[0])
                _along_line(x, start, left, right, tile, row)
            else:
                for k in range(RUN):
                    line[k] = x[start + k] if z + k < nz else 0
                _along_line(line, 0, left, real(0.0, x[0]), tile, row)
    step = 4 * LANES
    for i in range(4):
        for k in range(4):
            at_tile = (i * 16 + k) * LANES
            a, b = load(tile, at_tile), load(tile, at_tile + step)
            c, d = load(tile, at_tile + 2 * step), load(tile, at_tile + 3 * step)
            store(tile, at_tile, a - c)
            store(tile, at_tile + step, b + c)
            store(tile, at_tile + 2 * step, c - b)
            store(tile, at_tile + 3 * step, b - d)
    step = 16 * LANES
    for jk in range(16):
        a, b = load(tile, jk * LANES), load(tile, jk * LANES + step)
        c, d = load(tile, jk * LANES + 2 * step), load(tile, jk * LANES + 3 * step)
        target = out_at + jk * out_step
        store(out, target, a - c)
        store(out, target + 16 * out_step, b + c)
        store(out, target + 32 * out_step, c - b)
        store(out, target + 48 * out_step, b - d)


@_compiled
def _write_channel(products, at, step, bias, tile, line, y, y_at, shape, tx, ty, z):
    """A' along all axes of 16 tiles of one channel, plus bias, into 2 x 2 lines of 32 voxels of y."""
    nx, ny, nz = shape
    for jk in range(16):
        source = at + jk * step
        a, b = load(products, source), load(products, source + 16 * step)
        c, d = load(products, source + 32 * step), load(products, source + 48 * step)
        store(tile, jk * LANES, a + b + c)
        store(tile, (16 + jk) * LANES, b - c - d)
    shift = spread(bias)
    for i in range(2):
        for j in range(2):
            xi, yj = 2 * tx + i, 2 * ty + j
            if xi >= nx or yj >= ny:
                continue
            points = (i * 16) * LANES
            row = 4 * LANES
            if j == 0:
                p0 = load(tile, points) + load(tile, points + row) + load(tile, points + 2 * row)
                p1 = (
                    load(tile, points + LANES) + load(tile, points + row + LANES) + load(tile, points + 2 * row + LANES)
                )
                p2 = (
                    load(tile, points + 2 * LANES)
                    + load(tile, points + row + 2 * LANES)
                    + load(tile, points + 2 * row + 2 * LANES)
                )
                p3 = (
                    load(tile, points + 3 * LANES)
                    + load(tile, points + row + 3 * LANES)
                    + load(tile, points + 2 * row + 3 * LANES)
                )
            else:
                p0 = load(tile, points + row) - load(tile, points + 2 * row) - load(tile, points + 3 * row)
                p1 = (
                    load(tile, points + row + LANES)
                    - load(tile, points + 2 * row + LANES)
                    - load(tile, points + 3 * row + LANES)
                )
                p2 = (
                    load(tile, points + row + 2 * LANES)
                    - load(tile, points + 2 * row + 2 * LANES)
                    - load(tile, points + 3 * row + 2 * LANES)
                )
                p3 = (
                    load(tile, points + row + 3 * LANES)
                    - load(tile, points + 2 * row + 3 * LANES)
                    - load(tile, points + 3 * row + 3 * LANES)
                )
            even, odd = p0 + p1 + p2 + shift, p1 - p2 - p3 + shift
            target = y_at + (xi * ny + yj) * nz + z
            if z + RUN <= nz:
                store_pairs(y, target, even, odd)
            else:
                store_pairs(line, 0, even, odd)
                for k in range(nz - z):
                    y[target + k] = line[k]


@_compiled
def convolve(xa, xb, weights, bias, y, batch, first, last):
    """Fill blocks first..last of 48 tiles of one batch item of y (B, Cout, X, Y, Z), padded with zeros.

    The input is xa (B, Ca, X, Y, Z) and, as further channels, xb (B, Cb, X, Y, Z), Cb >= 0: a concatenation that is
    never made. `weights` as `transformed_weights` lays them out.
    """
    ca, cb, cout = xa.shape[1], xb.shape[1], y.shape[1]
    shape = y.shape[2:]
    nx, ny, nz = shape
    volume = nx * ny * nz
    channels, groups = ca + cb, weights.shape[1]
    rows, runs = (ny + 1) // 2, (nz + RUN - 1) // RUN
    count = ((nx + 1) // 2) * rows * runs
    xa, xb, y, weights = xa.reshape(-1), xb.reshape(-1), y.reshape(-1), weights.reshape(-1)
    # One vector more between the points: distances of a power of two would crowd a few sets of the first-level cache.
    step = channels * COLUMNS + LANES
    inputs = np.zeros(POINTS * step, y.dtype)
    products = np.zeros(POINTS * groups * ROWS * COLUMNS, y.dtype)
    tile, line = np.zeros(POINTS * LANES, y.dtype), np.zeros(RUN, y.dtype)
    for block in range(first, last):
        for v in range(VECTORS):
            item = block * VECTORS + v
            if item >= count:
                break
            z, ty, tx = (item % runs) * RUN, (item // runs) % rows, item // runs // rows
            for c in range(ca):
                at, target = (batch * ca + c) * volume, c * COLUMNS + v * LANES
                _transform_channel(xa, at, shape, tx, ty, z, line, tile, inputs, target, step)
            for c in range(cb):
                at, target = (batch * cb + c) * volume, (ca + c) * COLUMNS + v * LANES
                _transform_channel(xb, at, shape, tx, ty, z, line, tile, inputs, target, step)
        for p in range(POINTS):
            for g in range(groups):
                n = p * groups + g
                multiply_block(
                    weights, n * channels * ROWS, inputs, p * step, products, n * ROWS * COLUMNS,
                    channels, COLUMNS, COLUMNS,
                )  # fmt: skip
        for v in range(VECTORS):
            item = block * VECTORS + v
            if item >= count:
                break
            z, ty, tx = (item % runs) * RUN, (item // runs) % rows, item // runs // rows
            for c in range(cout):
                _write_channel(
                    products, c * COLUMNS + v * LANES, groups * ROWS * COLUMNS, bias[c], tile, line,
                    y, (batch * cout + c) * volume, shape, tx, ty, z,
                )  # fmt: skip


def blocks(shape) -> int:
    """How many blocks `convolve` cuts one batch item of (X, Y, Z) voxels into."""
    nx, ny, nz = shape
    return -(-((nx + 1) // 2 * ((ny + 1) // 2) * (-(-nz // RUN))) // VECTORS)


def transformed_weights(weight: np.ndarray) -> np.ndarray:
    """(Cout, Cin, 3, 3, 3) -> (64, ceil(Cout / 8), Cin, 8): G along every axis, output channels padded with zeros."""
    g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=weight.dtype)
    cout, cin = weight.shape[:2]
    points = np.ascontiguousarray(weight)
    for _ in range(3):  # G along the last axis, which then becomes the first of the four
        points = np.moveaxis(points @ g.T, -1, 2)
    points = points.transpose(2, 3, 4, 0, 1).reshape(POINTS, cout, cin)
    points = np.pad(points, ((0, 0), (0, -cout % ROWS), (0, 0))).reshape(POINTS, -1, ROWS, cin)
    return np.ascontiguousarray(points.transpose(0, 1, 3, 2))
