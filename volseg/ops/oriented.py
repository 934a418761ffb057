"""Convolution and selective scan along any order of tokens, for feature maps that stay as they lie.

Enters and leaves: (B, C, L) by position. The compiled CPU kernels step through positions in the order asked for; every
other backend gets the tokens put in order first and its answer put back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.ops.causal_conv import causal_conv1d, check_causal_conv
from volseg.ops.installed import installed
from volseg.ops.selective_scan import Backend, _check, _choose, selective_scan
from volseg.ops.token_order import TokenOrder, to_positions, to_tokens


def steps_in_any_order(x: Tensor, backend: Backend = "auto") -> bool:
    """Whether `backend` has kernels for `x` that step through positions in any order (numba, on the CPU).

    A trace can hold tensor operations only, so not while tracing.
    """
    if x.device.type != "cpu" or x.numel() == 0 or torch.jit.is_tracing() or not installed("numba"):
        return False
    return backend == "numba" or (backend == "auto" and _choose("cpu") == "numba")


def oriented_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: TokenOrder, *, backend: Backend = "auto"
) -> Tensor:
    """silu(causal depthwise convolution) along the tokens. x (B, C, L), weight (C, 1, K), bias (C,) -> (B, C, L).

    bias may be None. Raises ValueError for other shapes, and where the order's slices do not divide L.
    """
    check_causal_conv(x, weight, bias)
    order.check(x.shape[2])
    if steps_in_any_order(x, backend):
        from volseg.ops._conv_cpu import causal_conv_silu_numba

        return causal_conv_silu_numba(x, weight, bias, order)
    return to_positions(F.silu(causal_conv1d(to_tokens(x, order), weight, bias)), order)


def oriented_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    order: TokenOrder,
    *,
    onto: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """`selective_scan` with softplus over tokens in `order`; u, delta, B, C and the result (B, D, L) lie by position.

    Computed in float32, or float64 where any input is; the compiled kernel reads bfloat16 as it is. `onto` is a result
    that this one is added to: use only what is returned, the kernel adds in place. Raises ValueError as
    `selective_scan` does, and where the order's slices do not divide L.
    """
    order.check(u.shape[-1])
    if not steps_in_any_order(u, backend):
        u, delta, B, C = (to_tokens(t, order) for t in (u, delta, B, C))
        y = to_positions(selective_scan(u, delta, A, B, C, D, None, delta_bias, True, backend=backend), order)
        return y if onto is None else onto + y
    from volseg.ops._arrays import computed_in, readable
    from volseg.ops._scan_cpu import selective_scan_numba

    _check(u, delta, A, B, C, D, None, delta_bias)
    dtype = computed_in(u, delta, A, B, C, D, delta_bias)
    u_, delta_, B_, C_ = (readable(t, dtype) for t in (u, delta, B, C))
    in_place = onto is not None and onto.shape == u.shape and onto.dtype == u.dtype == u_.dtype and onto.is_contiguous()
    y = selective_scan_numba(
        u_, delta_, A.to(dtype), B_, C_, D.to(dtype), delta_bias.to(dtype), True, order, onto if in_place else None
    ).to(u.dtype)
    return y if onto is None or in_place else onto + y
