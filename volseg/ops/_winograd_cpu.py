"""Winograd's 3x3x3 convolution and its weight gradient on CPU tensors, spread over threads. No autograd."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from volseg.ops._arrays import array
from volseg.ops.cpu_tasks import even_ranges, run_tasks

# Tasks per thread: some blocks sit at a border and are cheaper.
SHARES = 4


def winograd(x: Tensor, also: Tensor | None, weight: Tensor, bias: Tensor | None, *, turned: bool = False) -> Tensor:
    """The compiled kernel on CPU tensors of one floating type; shapes as for `conv3d_3x3x3`.

    With bfloat16 x and also, weight and bias may be float32: they are rounded after their transformation only.
    `turned` exchanges the channels of the weight and turns it round: the gradient of a convolution's input.
    """
    from volseg.ops import _winograd_numba as kernels

    short = x.dtype == torch.bfloat16
    weight = weight.detach().float() if short else weight.detach()
    channels = weight.shape[1 if turned else 0]
    y = x.new_empty((x.shape[0], channels, *x.shape[2:]))
    shift = weight.new_zeros(channels) if bias is None else bias.detach().to(weight.dtype).contiguous()
    second = x.new_empty((x.shape[0], 0, *x.shape[2:])) if also is None else also
    inputs = [array(t.contiguous()) for t in (x, second)]
    taps = weight.numpy()
    if turned:
        taps = taps.transpose(1, 0, 2, 3, 4)[:, :, ::-1, ::-1, ::-1]
    transformed = _transformed(taps)
    if short:
        transformed = _paired(transformed)
    kernel = kernels.convolve_bfloat16 if short else kernels.convolve
    ranges = even_ranges(kernels.blocks(tuple(x.shape[2:])), SHARES * torch.get_num_threads())
    shift_array, y_array = shift.numpy(), array(y)
    run_tasks(
        lambda b, first, last: kernel(*inputs, transformed, shift_array, y_array, b, first, last),
        [(b, first, last) for b in range(x.shape[0]) for first, last in ranges],
    )
    return y


def _transformed(weight: np.ndarray) -> np.ndarray:
    """(Cout, Cin, 3, 3, 3) -> (64, ceil(Cout / 8), Cin, 8), output channels padded with zeros."""
    from volseg.ops import _winograd_weights as kernels

    groups = -(-weight.shape[0] // kernels.ROWS)
    points = np.empty((64, groups, weight.shape[1], kernels.ROWS), weight.dtype)
    ranges = even_ranges(groups, torch.get_num_threads())
    run_tasks(lambda first, last: kernels.transform(weight, first, last, points), ranges)
    return points


def _paired(points: np.ndarray) -> np.ndarray:
    """(64, groups, Cin, 8) float32 -> (64, groups, ceil(Cin / 2), 8) int32: channels 2k and 2k + 1 as bfloat16."""
    from volseg.ops import _winograd_weights as kernels

    words = np.empty((*points.shape[:2], -(-points.shape[2] // 2), points.shape[3]), np.uint32)
    bits = points.view(np.uint32)
    run_tasks(lambda i, j: kernels.pair(bits, i, j, words), even_ranges(64, torch.get_num_threads()))
    return words.view(np.int32)


def winograd_weight(x: Tensor, dy: Tensor) -> Tensor:
    """Gradient (Cout, Cin, 3, 3, 3) of the weight from x (B, Cin, X, Y, Z) and dy (B, Cout, X, Y, Z), in one type.

    float32 also from bfloat16: sums of bfloat16 numbers are not rounded.
    """
    from volseg.ops import _winograd_gradient as kernels

    (batch, cin), cout, dtype = x.shape[:2], dy.shape[1], torch.promote_types(x.dtype, torch.float32)
    x_, dy_ = array(x.contiguous()), array(dy.contiguous())
    dw = torch.empty((cout, cin, 3, 3, 3), dtype=dtype).numpy()
    pieces = [(rows, columns) for rows in kernels.row_ranges(cin) for columns in kernels.column_ranges(cout)]
    parts = even_ranges(kernels.runs(tuple(x.shape[2:])), -(-SHARES * torch.get_num_threads() // len(pieces)))
    sums = [[kernels.room(*rows, *columns, dw.dtype) for _ in parts] for rows, columns in pieces]

    def add(piece: int, part: int) -> None:
        rows, columns = pieces[piece]
        for b in range(batch):
            kernels.add_gradient(x_[b], dy_[b], *rows, *columns, *parts[part], sums[piece][part])

    def finish(piece: int) -> None:
        (row, row_stop), (column, column_stop) = pieces[piece]
        taps = kernels.from_points(sum(sums[piece][1:], sums[piece][0]))
        dw[column:column_stop, row:row_stop] = taps[: column_stop - column, : row_stop - row]

    run_tasks(add, itertools.product(range(len(pieces)), range(len(parts))))
    run_tasks(finish, [(i,) for i in range(len(pieces))])
    return torch.from_numpy(dw)
