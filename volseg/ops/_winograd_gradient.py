"""Weight gradient of the 3x3x3 convolution by Winograd's algorithm: 8 instead of 27 multiplications. Arrays only.

The transpose of `_winograd_numba.py` in the weights: out = A' [ (G w) * (B' d) ] A gives dw = G' [ sum over the tiles
of (A dout) * (B' d) ] G. For each of the 64 points that is a matrix product, input channels times tiles by tiles times
output channels. A task takes up to 48 channels of each through some runs of 16 tiles, three at a time; the sums of
several tasks are added in the end. At 48 channels on 96^3 voxels it takes .28 of oneDNN's time in float32, and its
error is a fortieth, for a sum is taken in three steps (2 cores with AVX-512, 2026-11).
"""

from __future__ import annotations

import numpy as np

from volseg.ops._njit import _compiled
from volseg.ops._vector import LANES
from volseg.ops._vector_blocks import COLUMNS, VECTORS
from volseg.ops._vector_tiles import add_product_1, add_product_2, add_product_3, spread_tile, turn_over
from volseg.ops._winograd_numba import GAP, _place, _runs
from volseg.ops._winograd_tiles import POINTS, RUN, third_axis_in, two_axes_in
from volseg.ops.cpu_tasks import even_ranges

CHANNELS = 48  # input channels of a task


@_compiled
def _gradient_in(dy, at, channels, shape, tx, ty, z, tiles, lines, out, to, width, step):
    """Points of `tiles` tiles in a row for up to 16 output channels of dy, the lanes of vectors `width` apart."""
    nx, ny, nz = shape
    volume = nx * ny * nz
    for i in range(2):
        for j in range(2):
            xi, yj = 2 * tx + i, 2 * ty + j
            many = channels if xi < nx and yj < ny else 0
            start, row = at + (xi * ny + yj) * nz + z, (2 * i + j) * RUN * LANES
            turn_over(dy, start, volume, many, nz - z, lines, row)
            turn_over(dy, start + LANES, volume, many, nz - z - LANES, lines, row + LANES * LANES)
    for t in range(tiles):
        spread_tile(lines, 2 * t * LANES, out, to + t * width, step)


@_compiled
def add_gradient(x, dy, cin, cin_stop, cout, cout_stop, first, last, sums):
    """Add runs first..last of 16 tiles of one batch item to sums (64, input channels, output channels).

    x (Cin, X, Y, Z), dy (Cout, X, Y, Z): float32, float64 or bfloat16 bits (int16). The channels of `sums`, made by
    `room`, are cin..cin_stop and cout..cout_stop.
    """
    shape = x.shape[1:]
    volume = shape[0] * shape[1] * shape[2]
    rows, width = sums.shape[1], sums.shape[2]
    x, dy, flat = x.reshape(-1), dy.reshape(-1), sums.reshape(-1)
    in_step, out_step = rows * COLUMNS + GAP, COLUMNS * width + GAP
    inputs, outputs = np.zeros(POINTS * in_step, sums.dtype), np.zeros(POINTS * out_step, sums.dtype)
    tile, line = np.zeros(POINTS * LANES, sums.dtype), np.zeros(RUN, x.dtype)
    lines = np.zeros(4 * RUN * LANES, sums.dtype)
    for block in range(first, last, VECTORS):
        depth = 0
        for run in range(block, min(block + VECTORS, last)):
            tx, ty, z = _place(run, shape)
            tiles = min(LANES, (shape[2] - z + 1) // 2)
            for c in range(cin, cin_stop):
                two_axes_in(x, c * volume, shape, tx, ty, z, line, tile)
                # What lies beyond the last tile is overwritten by the next run or left out of the sum.
                third_axis_in(tile, inputs, (c - cin) * COLUMNS + depth, in_step)
            for c in range(cout, cout_stop, LANES):
                to = depth * width + c - cout
                many = min(LANES, cout_stop - c)
                _gradient_in(dy, c * volume, many, shape, tx, ty, z, tiles, lines, outputs, to, width, out_step)
            depth += tiles
        for p in range(POINTS):
            left, right, out = p * in_step, p * out_step, p * rows * width
            if width == LANES:
                for r in range(0, rows, 16):
                    add_product_1(inputs, left + r * COLUMNS, outputs, right, flat, out + r * width, depth)
            elif width == 2 * LANES:
                for r in range(0, rows, 8):
                    add_product_2(inputs, left + r * COLUMNS, outputs, right, flat, out + r * width, depth)
            else:
                for r in range(0, rows, 8):
                    add_product_3(inputs, left + r * COLUMNS, outputs, right, flat, out + r * width, depth)


def column_ranges(cout: int) -> list[tuple[int, int]]:
    """The output channels of each task: whole vectors, 3 at most."""
    vectors = -(-cout // LANES)
    return [(LANES * i, min(LANES * j, cout)) for i, j in even_ranges(vectors, -(-vectors // VECTORS))]


def row_ranges(cin: int) -> list[tuple[int, int]]:
    """The input channels of each task."""
    return even_ranges(cin, -(-cin // CHANNELS))


def room(cin: int, cin_stop: int, cout: int, cout_stop: int, dtype: np.dtype) -> np.ndarray:
    """Sums at zero, with the padding that `add_gradient` writes to."""
    width = -(-(cout_stop - cout) // LANES) * LANES
    multiple = 16 if width == LANES else 8
    return np.zeros((POINTS, -(-(cin_stop - cin) // multiple) * multiple, width), dtype)


def runs(shape: tuple[int, ...]) -> int:
    """How many runs of 16 tiles one batch item of (X, Y, Z) voxels is cut into."""
    return int(_runs(shape))


def from_points(sums: np.ndarray) -> np.ndarray:
    """G' along every axis: (64, Cin, Cout) -> (Cout, Cin, 3, 3, 3)."""
    g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]], dtype=sums.dtype)  # -1: see `_four`
    taps = sums.reshape(4, 4, 4, -1)
    for axis in range(3):
        taps = np.moveaxis(np.tensordot(g, taps, axes=(0, axis)), 0, axis)
    return np.ascontiguousarray(taps.reshape(3, 3, 3, *sums.shape[1:]).transpose(4, 3, 0, 1, 2))
