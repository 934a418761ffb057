"""Positions to tokens and back inside numba kernels, block by block (`token_order.py` says what an order is).

A block is a run of tokens whose positions fill whole cache lines: some columns, where a column is one position of each
slice. Gathered as a block, a line is read once for its 16 numbers; token by token it would be fetched 16 times, because
slices lie a power of two apart and push one another out of the cache.

numba's cache does not see changes in this file: after one, `touch` the kernels that import it.
"""

from __future__ import annotations

import numpy as np

from volseg.ops._bfloat16 import read, write
from volseg.ops._njit import _compiled

TILE = 64  # tokens a kernel works on at once
# Tokens of a block, if 16 columns are not more (at 64 a scan of 64**3 tokens takes a fifth longer, 2026-11).
BLOCK = 512
LINE = 16  # float32 of a cache line


@_compiled
def layout(length, slices):
    """How L tokens are cut: (columns in all, columns of a block, blocks, tiles of a block)."""
    columns, width = length // slices, max(LINE, BLOCK // slices)
    return columns, width, (columns + width - 1) // width, (width * slices + TILE - 1) // TILE


@_compiled
def gather(row, slices, backwards, column, columns, tokens):
    """tokens = those of `columns` columns from `column` on, out of a row (L,) by position."""
    per_slice, last = row.size // slices, slices * columns - 1
    if backwards:
        column = per_slice - column - columns
    for s in range(slices):
        part = row[s * per_slice + column : s * per_slice + column + columns]
        if slices > 1:
            start, step = (last - s, -slices) if backwards else (s, slices)
            for j in range(columns):  # an unsigned index: numba would ask of every signed one whether it is negative
                tokens[np.uint64(start + j * step)] = read(part, j)
        elif backwards:
            for j in range(columns):
                tokens[np.uint64(last - j)] = read(part, j)
        else:
            for j in range(columns):
                tokens[j] = read(part, j)


@_compiled
def scatter(tokens, slices, backwards, column, columns, row, add):
    """`gather` undone: tokens of some columns are written, or added, to their positions in a row (L,)."""
    per_slice, last = row.size // slices, slices * columns - 1
    if backwards:
        column = per_slice - column - columns
    for s in range(slices):
        part = row[s * per_slice + column : s * per_slice + column + columns]
        start, step = (last - s, -slices) if backwards else (s, slices)
        if add:
            for j in range(columns):
                write(part, j, read(part, j) + tokens[np.uint64(start + j * step)])
        elif slices > 1:
            for j in range(columns):
                write(part, j, tokens[np.uint64(start + j * step)])
        elif backwards:
            for j in range(columns):
                write(part, j, tokens[np.uint64(last - j)])
        else:
            for j in range(columns):
                write(part, j, tokens[j])


@_compiled
def to_rows(x, slices, backwards, rows):
    """rows[:, :N] (L, N or more) by token = x (N, L) by position, transposed."""
    columns, width, blocks, _ = layout(x.shape[1], slices)
    tokens = np.empty((x.shape[0], width * slices + LINE), rows.dtype)  # LINE: no two rows 4 KiB apart
    for block in range(blocks):
        column = block * width
        wide = min(width, columns - column)
        for n in range(x.shape[0]):
            gather(x[n], slices, backwards, column, wide, tokens[n])
        for i in range(wide * slices):
            for n in range(x.shape[0]):
                rows[column * slices + i, n] = tokens[n, i]


@_compiled
def from_rows(rows, slices, backwards, x):
    """`to_rows` undone: x (N, L) by position = the first N numbers of each row."""
    columns, width, blocks, _ = layout(x.shape[1], slices)
    tokens = np.empty((x.shape[0], width * slices + LINE), rows.dtype)  # LINE: no two rows 4 KiB apart
    for block in range(blocks):
        column = block * width
        wide = min(width, columns - column)
        for i in range(wide * slices):
            for n in range(x.shape[0]):
                tokens[n, i] = rows[column * slices + i, n]
        for n in range(x.shape[0]):
            scatter(tokens[n], slices, backwards, column, wide, x[n], False)
