"""3x3x3 (zero padding 1) and 1x1x1 convolution, stride 1, over one tensor or two that need not be concatenated."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.ops._winograd_cpu import winograd, winograd_weight
from volseg.ops.installed import installed

# Below these, oneDNN's direct convolution is as fast (2 cores with AVX-512, 2026-11).
LEAST_CHANNELS, LEAST_VOXELS = 16, 16**3


def conv3d_3x3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, also: Tensor | None = None) -> Tensor:
    """`F.conv3d(torch.cat([x, also], 1), weight, bias, padding=1)` without the copy that `cat` makes.

    x (B, Ca, X, Y, Z), also (B, Cb, X, Y, Z), weight (Cout, Ca + Cb, 3, 3, 3), bias (Cout,) -> (B, Cout, X, Y, Z).
    On the CPU Winograd's algorithm runs (`_winograd_numba.py`; at 48 channels 2.3 times as fast as oneDNN's direct
    convolution in float32 and 2.2 times in bfloat16): in float32 (values within 1e-6 of the largest), and in inference
    in bfloat16 where the CPU multiplies it (values within 1e-2 of the largest, three times oneDNN's rounding). Both
    gradients are Winograd's too. Everything else, and where numba is missing, takes torch's own: so does training in
    bfloat16, where oneDNN rounds less and at 16 to 64 channels is the faster (2026-11).
    """
    if x.shape[2] == 2 and trains_under_autocast(x):
        with torch.autocast("cpu", enabled=False):
            return conv3d_3x3x3(x.float(), weight, bias, also=None if also is None else also.float())
    dtype = _winograd_type(x, weight, bias, also)
    if dtype is None:
        return F.conv3d(x if also is None else torch.cat([x, also], dim=1), weight, bias, padding=1)
    if dtype == torch.bfloat16:
        return winograd(x.to(dtype), None if also is None else also.to(dtype), weight, bias)
    return _Convolution.apply(x, also, weight, bias)


class Conv3x3x3(nn.Conv3d):
    """nn.Conv3d with a 3x3x3 kernel, padding 1 and stride 1, computed by `conv3d_3x3x3`; the same weights' names."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return conv3d_3x3x3(x, self.weight, self.bias)


def conv3d_1x1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, also: Tensor | None = None) -> Tensor:
    """`F.conv3d(torch.cat([x, also], 1), weight, bias)` for weight (Cout, Ca + Cb, 1, 1, 1), as matrix products.

    x (B, Ca, X, Y, Z), also (B, Cb, X, Y, Z) -> (B, Cout, X, Y, Z). The second product is added to the first while it
    is computed, so neither a concatenation nor a sum passes over the memory. Raises ValueError for other shapes.
    """
    if not _fits(x, weight, bias, also, size=1):
        given = {"x": x, "also": also, "weight": weight, "bias": bias}
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in given.items() if t is not None)
        raise ValueError(
            "a 1x1x1 convolution takes x (B, Ca, X, Y, Z), also (B, Cb, X, Y, Z), weight (Cout, Ca + Cb, 1, 1, 1) "
            f"and bias (Cout,), got {shapes}"
        )
    matrix = weight.flatten(1).expand(x.shape[0], -1, -1)
    y = torch.bmm(matrix[:, :, : x.shape[1]], x.flatten(2))
    if also is not None:
        y = torch.baddbmm(y, matrix[:, :, x.shape[1] :], also.flatten(2))
    if bias is not None:
        y = y + bias[:, None].to(y.dtype)
    return y.unflatten(2, x.shape[2:])


def trains_under_autocast(x: Tensor) -> bool:
    """Whether a network is being trained on the CPU in bfloat16, where one of oneDNN's kernels is broken.

    The bfloat16 weight gradient of a padded 3x3x3 convolution over a map whose first axis has 2 voxels is uninitialised
    memory (torch 2.13, measured 2026-11-21: NaN or 1e36 in a third of the calls; other sizes are right).
    """
    return x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None, also: Tensor | None, *, size: int) -> bool:
    """Whether the shapes are those of a convolution of `size` taps along each axis."""
    return (
        x.ndim == 5
        and (also is None or (also.shape[0], *also.shape[2:]) == (x.shape[0], *x.shape[2:]))
        and weight.shape[1:] == (x.shape[1] + (0 if also is None else also.shape[1]), size, size, size)
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _winograd_type(x: Tensor, weight: Tensor, bias: Tensor | None, also: Tensor | None) -> torch.dtype | None:
    """The type Winograd's algorithm would compute in here, None where it cannot or does not pay.

    The kernels check nothing and read beyond arrays of other shapes: those are torch's, to refuse in its own words.
    Empty ones are torch's, too.
    """
    if (
        x.device.type != "cpu"
        or torch.jit.is_tracing()
        or not _fits(x, weight, bias, also, size=3)
        or min(weight.shape[:2]) < LEAST_CHANNELS
        or x.shape[2:].numel() < LEAST_VOXELS
        or x.numel() == 0
        or (also is not None and also.numel() == 0)
        or not installed("numba")
    ):
        return None
    given = {t.dtype for t in (x, weight, x if also is None else also)}
    if torch.is_autocast_enabled("cpu"):
        given = {torch.get_autocast_dtype("cpu")}
    if given == {torch.float32}:
        return torch.float32
    even = also is None or x.shape[1] % 2 == 0
    if given == {torch.bfloat16} and even and not torch.is_grad_enabled() and _multiplies_bfloat16():
        return torch.bfloat16
    return None


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether this CPU has AVX512_BF16, as the compiler that would use it sees it."""
    import llvmlite.binding

    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512bf16", False))
    except RuntimeError:  # LLVM cannot tell on this platform
        return False


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, also: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, also, weight)
        ctx.biased = bias is not None
        return winograd(x, also, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, also, weight = ctx.saved_tensors
        dy = dy.contiguous()
        parts, gradients, first = [x] if also is None else [x, also], [], 0
        for i, part in enumerate(parts):
            mine = slice(first, first + part.shape[1])
            first += part.shape[1]
            # The gradient of the input is a convolution too: channels exchanged, kernel turned round.
            dx = winograd(dy, None, weight[:, mine], None, turned=True) if ctx.needs_input_grad[i] else None
            dw = winograd_weight(part, dy) if ctx.needs_input_grad[2] else weight
            gradients.append((dx, dw))
        return (
            gradients[0][0],
            gradients[1][0] if also is not None else None,
            torch.cat([dw for _, dw in gradients], dim=1) if ctx.needs_input_grad[2] else None,
            dy.sum(dim=(0, 2, 3, 4)) if ctx.biased and ctx.needs_input_grad[3] else None,
        )
