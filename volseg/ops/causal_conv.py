"""The short causal convolution along the tokens that stands before every selective scan (Mamba, arXiv 2312.00752)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise: y[b, c, l] = bias[c] + sum_k weight[c, 0, k] x[b, c, l - K + 1 + k], zeros before the first token.

    x (B, C, L); weight (C, 1, K); bias (C,) or None. On a CPU as K multiply-adds over whole rows, in the dtype of
    `weight`: with 4 taps oneDNN's depthwise backward takes ten times as long, and in bf16 it loses digits. Elsewhere
    as conv1d. Raises ValueError for other shapes.
    """
    check_causal_conv(x, weight, bias)
    taps = weight.shape[2]
    padded = F.pad(x, (taps - 1, 0))
    if x.device.type != "cpu":
        return F.conv1d(padded, weight, bias, groups=weight.shape[0])
    padded, length = padded.to(weight.dtype), x.shape[2]
    y = weight[:, 0, :1] * padded[..., :length]
    y = y if bias is None else y + bias[:, None]
    for tap in range(1, taps):
        y = torch.addcmul(y, weight[:, 0, tap : tap + 1], padded[..., tap : tap + length])
    return y


def check_causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError for shapes that do not fit: kernels would read beyond them, and broadcasting would hide them."""
    if x.ndim != 3:
        raise ValueError(f"x must be (batch, channels, length), got shape {tuple(x.shape)}")
    channels = x.shape[1]
    if weight.ndim != 3 or weight.shape[:2] != (channels, 1):
        raise ValueError(
            f"weight must have shape ({channels}, 1, taps) beside x {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},) beside x {tuple(x.shape)}, got {tuple(bias.shape)}")
