"""The numba convolution with SiLU as a torch operation: CPU tensors in, CPU tensors out, autograd in between."""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.ops import _conv_numba as kernels
from volseg.ops._arrays import array, channel_tasks, computed_in, in_rows, readable
from volseg.ops.cpu_tasks import run_tasks
from volseg.ops.token_order import TokenOrder


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, out_dtype, order):
        x, weight, bias = in_rows(x), weight.contiguous(), bias.contiguous()
        y = torch.empty(x.shape, dtype=out_dtype)
        x_, weight_, bias_, y_ = (array(t) for t in (x, weight, bias, y))
        run_tasks(
            lambda b, first, last: kernels.forward(
                x_[b], weight_, bias_, order.num_slices, order.backwards, first, last, y_[b]
            ),
            channel_tasks(*x.shape[:2]),
        )
        ctx.save_for_backward(x, weight, bias)
        ctx.order = order
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, bias = ctx.saved_tensors
        order = ctx.order
        dx = torch.empty(x.shape, dtype=x.dtype)
        dweight, dbias = (t.new_zeros(x.shape[0], *t.shape) for t in (weight, bias))
        x_, weight_, bias_, dy_, dx_, dweight_, dbias_ = (
            array(t) for t in (x, weight, bias, in_rows(dy), dx, dweight, dbias)
        )

        def task(b: int, first: int, last: int) -> None:
            kernels.backward(
                x_[b], weight_, bias_, order.num_slices, order.backwards, first, last,
                dy_[b], dx_[b], dweight_[b], dbias_[b],
            )  # fmt: skip

        run_tasks(task, channel_tasks(*x.shape[:2]))
        return dx, dweight.sum(0), dbias.sum(0), None, None


def causal_conv_silu_numba(x: Tensor, weight: Tensor, bias: Tensor | None, order: TokenOrder) -> Tensor:
    """x (B, C, L) by position, weight (C, 1, K), bias (C,) -> (B, C, L) by position, in the wider type of x and weight.

    Computed in float32, or float64 where any of them is; bfloat16 x is read as it is.
    """
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    dtype, wider = computed_in(x, weight, bias), torch.promote_types(x.dtype, weight.dtype)
    out_dtype = torch.bfloat16 if wider == torch.bfloat16 else dtype
    y = _Conv.apply(readable(x, dtype), weight[:, 0].to(dtype), bias.to(dtype), out_dtype, order)
    return y.to(wider)
