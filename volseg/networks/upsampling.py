"""Five ways to enlarge a 2D feature map by a whole number. (B, C, X, Y) -> (B, C, s X, s Y), tensors in, tensors out.

DySample: Liu et al., arXiv 2308.15085. CARAFE: Wang et al., arXiv 1905.02188.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Upsampling = Literal["bilinear", "nearest", "deconv", "carafe", "dysample", "dysample+"]
UPSAMPLINGS = ("bilinear", "nearest", "deconv", "carafe", "dysample", "dysample+")


def upsampling(kind: Upsampling, channels: int, scale: int) -> nn.Module:
    """The enlarging module of that name; raises ValueError for a name not in `UPSAMPLINGS`.

    Only "bilinear" and "nearest" have no weights. "dysample+" is DySample with a dynamic scope.
    """
    if kind == "bilinear":
        return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=False)
    if kind == "nearest":
        return nn.Upsample(scale_factor=scale, mode="nearest")
    if kind == "deconv":
        return nn.ConvTranspose2d(channels, channels, scale, stride=scale)
    if kind == "carafe":
        return Carafe(channels, scale)
    if kind in ("dysample", "dysample+"):
        return DySample(channels, scale, dynamic_scope=kind == "dysample+")
    raise ValueError(f"unknown upsampling {kind!r}; choose one of {', '.join(UPSAMPLINGS)}")


class DySample(nn.Module):
    """Bilinear sampling at learned places: every output pixel may look a little beside its own.

    A 1x1 convolution says, for each of `groups` groups of channels and each of the scale x scale new pixels, how far to
    move in x and y, in pixels of the input. Scope: how much of that is taken, a quarter, or between none and a half by
    a second 1x1 convolution (`dynamic_scope`). Without offsets this is bilinear interpolation; it starts close to it.
    """

    def __init__(self, channels: int, scale: int, *, groups: int = 4, dynamic_scope: bool = False) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"DySample cannot cut {channels} channels into {groups} groups of one size")
        self.scale, self.groups = scale, groups
        self.offset = nn.Conv2d(channels, 2 * groups * scale**2, 1)
        nn.init.normal_(self.offset.weight, std=0.001)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.scope = nn.Conv2d(channels, 2 * groups * scale**2, 1, bias=False) if dynamic_scope else None
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        exact = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot tell neighbouring places apart
        offset = self.offset(x) * (0.25 if self.scope is None else 0.5 * torch.sigmoid(self.scope(x)))
        shift = F.pixel_shuffle(offset.to(exact).reshape(batch * self.groups, -1, height, width), self.scale)
        rows, columns = (_centres(n, self.scale, shift) for n in (height, width))
        grid = torch.stack([columns + shift[:, 0] * (2 / width), rows[:, None] + shift[:, 1] * (2 / height)], dim=-1)
        grouped = x.to(exact).reshape(batch * self.groups, channels // self.groups, height, width)
        y = F.grid_sample(grouped, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return y.reshape(batch, channels, self.scale * height, self.scale * width).to(x.dtype)


def _centres(length: int, scale: int, like: Tensor) -> Tensor:
    """Centres of the scale * length new pixels where -1 and 1 are the outer edges of the first and the last old one."""
    new = scale * length
    return (2 * torch.arange(new, device=like.device, dtype=like.dtype) + 1) / new - 1


class Carafe(nn.Module):
    """Content-aware reassembly: a new pixel is a weighted mean of 5 x 5 old ones, weights read from the content.

    1x1 to 64 channels, 3x3 to the weights, softmax over the 25; sizes as in the paper (C_m 64, k_encoder 3, k_up 5).
    """

    REACH = 5

    def __init__(self, channels: int, scale: int, *, inner: int = 64) -> None:
        super().__init__()
        self.scale = scale
        self.compress = nn.Conv2d(channels, inner, 1)
        self.encode = nn.Conv2d(inner, scale**2 * self.REACH**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weights = self.encode(self.compress(x)).reshape(batch, self.REACH**2, self.scale**2, height, width).softmax(1)
        old = F.unfold(x, self.REACH, padding=self.REACH // 2).reshape(batch, channels, -1, height, width)
        new = torch.einsum("bckhw,bkshw->bcshw", old, weights.to(old.dtype))
        return F.pixel_shuffle(new.flatten(1, 2), self.scale)
