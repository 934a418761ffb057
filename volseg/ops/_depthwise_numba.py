"""Weight gradient of a depthwise 3D convolution on the CPU, compiled by numba. Arrays only.

dw[kx, ky, kz, c] = sum over voxels p of dy[p, c] * x[p + (kx, ky, kz) - radius, c]

Maps lie channels last. Work goes over 16 channels at a time: a vector of numbers is the 16 channels of one voxel, so no
sum crosses a vector. These channels are first gathered plane by plane, short floats widened and rows drawn out by the
zeros of the padding. Then a row of dy meets the rows of x it belongs to while both are in the first-level cache.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._bfloat16 import read
from volseg.ops._njit import _compiled
from volseg.ops._vector import LANES, load, store


@_compiled
def gather(plane, first, radius, out):
    """plane (Y, Z, C), channels first .. first + 16 -> flat out (Y, Z + 2 radius, 16), zeros elsewhere already."""
    rows, columns, channels = plane.shape
    width = (columns + 2 * radius) * LANES
    flat = plane.reshape(-1)
    for y in range(rows):
        to, start = y * width + radius * LANES, y * columns * channels + first
        if channels - first >= LANES:
            for z in range(columns):
                for c in range(LANES):
                    out[to + z * LANES + c] = read(flat, start + z * channels + c)
        else:
            for z in range(columns):
                for c in range(channels - first):
                    out[to + z * LANES + c] = read(flat, start + z * channels + c)


@_compiled
def add_five(x, at_x, dy, at_dy, columns, dw, at_dw):
    """Five neighbouring taps: dw[t] += sum_z dy[z] x[z + t], all in vectors of 16 from the given offsets on."""
    a, b, c = load(dw, at_dw), load(dw, at_dw + LANES), load(dw, at_dw + 2 * LANES)
    d, e = load(dw, at_dw + 3 * LANES), load(dw, at_dw + 4 * LANES)
    for z in range(columns):
        v, i = load(dy, at_dy + z * LANES), at_x + z * LANES
        a, b, c = a + v * load(x, i), b + v * load(x, i + LANES), c + v * load(x, i + 2 * LANES)
        d, e = d + v * load(x, i + 3 * LANES), e + v * load(x, i + 4 * LANES)
    store(dw, at_dw, a)
    store(dw, at_dw + LANES, b)
    store(dw, at_dw + 2 * LANES, c)
    store(dw, at_dw + 3 * LANES, d)
    store(dw, at_dw + 4 * LANES, e)


@_compiled
def add_one(x, at_x, dy, at_dy, columns, dw, at_dw):
    """One tap: dw += sum_z dy[z] x[z]."""
    a = load(dw, at_dw)
    for z in range(columns):
        a = a + load(dy, at_dy + z * LANES) * load(x, at_x + z * LANES)
    store(dw, at_dw, a)


@_compiled
def weight_gradient(x, dy, size, first, begin, end, dw):
    """What planes begin..end of dy give for channels first .. first + 16: added to dw, flat (size ** 3, 16).

    x and dy (X, Y, Z, C), float32, float64 or bfloat16 bits; dw in the type that is computed in.
    """
    planes, rows, columns, _ = x.shape
    radius = size // 2
    width = (columns + 2 * radius) * LANES
    ring = np.zeros(size * rows * width, dw.dtype)
    slope = np.zeros(rows * columns * LANES, dw.dtype)
    loaded = max(begin - radius, 0)
    for p in range(begin, end):
        while loaded < min(p + radius + 1, planes):
            place = (loaded % size) * rows * width
            gather(x[loaded], first, radius, ring[place : place + rows * width])
            loaded += 1
        gather(dy[p], first, 0, slope)
        for kx in range(size):
            there = p + kx - radius
            if 0 <= there < planes:
                for y in range(rows):
                    for ky in range(max(0, radius - y), min(size, rows + radius - y)):
                        at_x = ((there % size) * rows + y + ky - radius) * width
                        at_dw = (kx * size + ky) * size * LANES
                        at_dy = y * columns * LANES
                        kz = 0
                        while kz + 5 <= size:
                            add_five(ring, at_x + kz * LANES, slope, at_dy, columns, dw, at_dw + kz * LANES)
                            kz += 5
                        while kz < size:
                            add_one(ring, at_x + kz * LANES, slope, at_dy, columns, dw, at_dw + kz * LANES)
                            kz += 1
