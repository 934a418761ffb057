"""3x3x3 convolution on the CPU with 8 instead of 27 multiplications per output voxel and pair of channels. Arrays only.

Winograd's minimal filtering F(2x2x2, 3x3x3), Lavin & Gray, arXiv 1509.09308, in three dimensions: a tile of 4x4x4
input voxels gives 2x2x2 outputs. With B, G, A the transforms of one axis, out = A' [ (G w) * (B' d) ] A, summed over
the input channels: 64 small matrix products. Sixteen tiles in a row along the last axis are the lanes of a vector, so
tensors stay as torch keeps them (B, C, X, Y, Z); 48 tiles are worked on at a time, which fits the second-level cache.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._njit import _compiled
from volseg.ops._vector import LANES
from volseg.ops._vector_blocks import COLUMNS, ROWS, VECTORS, multiply_block, multiply_pairs
from volseg.ops._winograd_tiles import POINTS, RUN, channel_out, third_axis_in, third_axis_in_joined, two_axes_in

# One vector more between the points: distances of a power of two would crowd a few sets of the first-level cache.
GAP = LANES


@_compiled
def _place(item, shape):
    """(tx, ty, z) of the item-th run of 16 tiles."""
    rows, runs = (shape[1] + 1) // 2, (shape[2] + RUN - 1) // RUN
    return item // runs // rows, (item // runs) % rows, (item % runs) * RUN


@_compiled
def _runs(shape):
    return ((shape[0] + 1) // 2) * ((shape[1] + 1) // 2) * ((shape[2] + RUN - 1) // RUN)


@_compiled
def _block_out(products, block, batch, cout, step, bias, tile, line, y, shape):
    """Write what `products` holds of a block of 48 tiles."""
    volume = shape[0] * shape[1] * shape[2]
    for v in range(min(VECTORS, _runs(shape) - block * VECTORS)):
        tx, ty, z = _place(block * VECTORS + v, shape)
        for c in range(cout):
            at, target = c * COLUMNS + v * LANES, (batch * cout + c) * volume
            channel_out(products, at, step, bias[c], tile, line, y, target, shape, tx, ty, z)


@_compiled
def convolve(xa, xb, weights, bias, y, batch, first, last):
    """Fill blocks first..last of 48 tiles of one batch item of y (B, Cout, X, Y, Z), padded with zeros.

    The input is xa (B, Ca, X, Y, Z) and, as further channels, xb (B, Cb, X, Y, Z), Cb >= 0: a concatenation that is
    never made. `weights` as `_winograd_weights.py` lays them out; everything float32 or everything float64.
    """
    ca, cb, cout, shape = xa.shape[1], xb.shape[1], y.shape[1], y.shape[2:]
    volume = shape[0] * shape[1] * shape[2]
    channels, groups = ca + cb, weights.shape[1]
    xa, xb, y, weights = xa.reshape(-1), xb.reshape(-1), y.reshape(-1), weights.reshape(-1)
    step, out_step = channels * COLUMNS + GAP, groups * ROWS * COLUMNS + GAP
    inputs, products = np.zeros(POINTS * step, bias.dtype), np.zeros(POINTS * out_step, bias.dtype)
    tile, line = np.zeros(POINTS * LANES, bias.dtype), np.zeros(RUN, y.dtype)
    for block in range(first, last):
        for v in range(min(VECTORS, _runs(shape) - block * VECTORS)):
            tx, ty, z = _place(block * VECTORS + v, shape)
            for c in range(ca):
                two_axes_in(xa, (batch * ca + c) * volume, shape, tx, ty, z, line, tile)
                third_axis_in(tile, inputs, c * COLUMNS + v * LANES, step)
            for c in range(cb):
                two_axes_in(xb, (batch * cb + c) * volume, shape, tx, ty, z, line, tile)
                third_axis_in(tile, inputs, (ca + c) * COLUMNS + v * LANES, step)
        for p in range(POINTS):
            for g in range(groups):
                left, out = (p * groups + g) * channels * ROWS, p * out_step + g * ROWS * COLUMNS
                multiply_block(weights, left, inputs, p * step, products, out, channels, COLUMNS, COLUMNS)
        _block_out(products, block, batch, cout, out_step, bias, tile, line, y, shape)


@_compiled
def convolve_bfloat16(xa, xb, weights, bias, y, batch, first, last):
    """`convolve` for bfloat16 bits (int16) in xa, xb and y, `weights` in pairs of channels (`pair`), bias float32.

    Transforms and sums are float32; what is multiplied is rounded to bfloat16. Ca is even.
    """
    ca, cb, cout, shape = xa.shape[1], xb.shape[1], y.shape[1], y.shape[2:]
    volume = shape[0] * shape[1] * shape[2]
    channels, groups, pairs = ca + cb, weights.shape[1], weights.shape[2]
    xa, xb, y, weights = xa.reshape(-1), xb.reshape(-1), y.reshape(-1), weights.reshape(-1)
    step, out_step = pairs * COLUMNS + GAP, groups * ROWS * COLUMNS + GAP
    inputs, products = np.zeros(POINTS * step, np.int32), np.zeros(POINTS * out_step, bias.dtype)
    tile, other = np.zeros(POINTS * LANES, bias.dtype), np.zeros(POINTS * LANES, bias.dtype)
    line = np.zeros(RUN, y.dtype)
    for block in range(first, last):
        for v in range(min(VECTORS, _runs(shape) - block * VECTORS)):
            tx, ty, z = _place(block * VECTORS + v, shape)
            for c in range(channels):
                into = tile if c % 2 == 0 else other
                if c < ca:
                    two_axes_in(xa, (batch * ca + c) * volume, shape, tx, ty, z, line, into)
                else:
                    two_axes_in(xb, (batch * cb + c - ca) * volume, shape, tx, ty, z, line, into)
                if c == channels - 1 and c % 2 == 0:
                    other[:] = 0
                if c % 2 == 1 or c == channels - 1:
                    third_axis_in_joined(tile, other, inputs, (c // 2) * COLUMNS + v * LANES, step)
        for p in range(POINTS):
            for g in range(groups):
                left, out = (p * groups + g) * pairs * ROWS, p * out_step + g * ROWS * COLUMNS
                multiply_pairs(weights, left, inputs, p * step, products, out, pairs, COLUMNS, COLUMNS)
        _block_out(products, block, batch, cout, out_step, bias, tile, line, y, shape)


def blocks(shape: tuple[int, ...]) -> int:
    """How many blocks one batch item of (X, Y, Z) voxels is cut into."""
    return -(-int(_runs(shape)) // VECTORS)
