"""GELU and the sums of squares that global response normalisation asks for, in one walk through the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 2**18  # numbers that are worked on while they lie in the caches


def gelu_squares(h: Tensor) -> tuple[Tensor, Tensor]:
    """h (B, V, C) -> GELU(h), same shape and type, and the sums of its squares over V: (B, C), at least float32.

    Without gradients `h` is overwritten by its GELU.
    """
    if torch.is_grad_enabled() and h.requires_grad:
        return _GeluSquares.apply(h)
    return h, _fill(h, h)


def gelu_squares_reference(h: Tensor) -> tuple[Tensor, Tensor]:
    """`gelu_squares` as it is defined; `h` stays."""
    y = F.gelu(h)
    return y, y.to(_summed_in(h)).square().sum(1)


class _GeluSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = torch.empty_like(h)
        squares = _fill(h, y)
        ctx.save_for_backward(h, y)
        return y, squares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dsquares: Tensor) -> Tensor:  # type: ignore[override]
        h, y = ctx.saved_tensors
        dh, slope = torch.empty_like(h), (2 * dsquares).to(h.dtype)
        for b, rows in _pieces(h):
            arriving = torch.addcmul(dy[b, rows], y[b, rows], slope[b], out=dh[b, rows])
            torch.ops.aten.gelu_backward.grad_input(arriving, h[b, rows], grad_input=dh[b, rows])
        return dh


def _fill(h: Tensor, y: Tensor) -> Tensor:
    """y = GELU(h), and the sums of its squares."""
    squares = h.new_zeros((h.shape[0], h.shape[2]), dtype=_summed_in(h))
    bench = squares.new_empty((_rows(h), h.shape[2]))
    for b, rows in _pieces(h):
        piece = torch.ops.aten.gelu.out(h[b, rows], out=y[b, rows])
        squares[b] += bench[: len(piece)].copy_(piece).square_().sum(0)
    return squares


def _rows(h: Tensor) -> int:
    """How many rows are worked on at once; on a GPU all."""
    return max(1, PIECE // h.shape[2]) if h.device.type == "cpu" else max(1, h.shape[1])


def _pieces(h: Tensor) -> Iterator[tuple[int, slice]]:
    """(batch item, rows)"""
    for b in range(h.shape[0]):
        for start in range(0, h.shape[1], _rows(h)):
            yield b, slice(start, start + _rows(h))


def _summed_in(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)
