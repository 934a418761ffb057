"""A network after BMSMM-Net (Shang et al., Academic Radiology 2024/25, doi 10.1016/j.acra.2024.11.018). 2D or 3D.

Neither code nor the body of the paper is public. What is known, and what we chose where nothing is:

    what          stated                             ours
    BGM           Bottleneck Gating Mamba            deepest stage; 1x1 to half, LayerNorm, gated Mamba read in both
                                                     directions, 1x1 back, residual with a learnt scale from 0.1
    SKM           Skip-Mamba: feature dependency     each skip; Mamba over encoder and decoder features makes a gate
                  and fusion                         2 sigmoid(.) on the encoder's, close to 1 at first
    MPE           Multi-Perspective Extraction,      each encoder stage; depthwise 1, 3, 5, 7 side by side, 1x1, norm,
                  varied kernels                     leaky ReLU, residual
    targets       bone, bone metastasis              two heads, one channel of logits each (sigmoid, not softmax)
    shape         unknown                            U-Net, widths 32-64-128-256-512, two 3x3 convolutions per stage,
                                                     max pooling, transposed convolution
    norm          unknown                            instance norm (affine), leaky ReLU 0.01
    Mamba         unknown                            expansion 2 in BGM and 1 in SKM, 16 states, convolution over 4
                                                     tokens, own parameters per direction; tokens row by row
    input         CT slices (BM-Seg)                 1 or 3 channels, axes that are multiples of 16
    loss          unknown                            0.3 bone + 0.7 lesion, each BCE + Dice (the bundle's choice)
    parameters    unknown                            10,520,546 in 2D with 1 channel (7,781,058 with every module off)

`mpe`, `bgm` and `skm` each leave a working U-Net when off: only that comparison tells what a module is worth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor, nn

from volseg.networks.mamba import SelectiveSSM, _project
from volseg.networks.sizes import bfloat16_spoils_gradients, check_size
from volseg.ops.selective_scan import Backend
from volseg.ops.token_order import AHEAD, BACK

SLOPE = 0.01  # of the leaky ReLU


def conv_norm_act(dims: int, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Convolution without bias, affine instance norm, leaky ReLU, at unchanged size."""
    return nn.Sequential(
        Conv[Conv.CONV, dims](in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        Norm[Norm.INSTANCE, dims](out_channels, affine=True),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def two_convs(dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    """A stage of the plain U-Net. (B, C, *axes) -> (B, C', *axes)."""
    return nn.Sequential(
        conv_norm_act(dims, in_channels, out_channels), conv_norm_act(dims, out_channels, out_channels)
    )


class BidirectionalMamba(nn.Module):
    """Gated Mamba that reads the tokens forwards and backwards and sums. (B, L, C) -> (B, C, L)."""

    def __init__(self, channels: int, *, expansion: int = 2, backend: Backend = "auto") -> None:
        super().__init__()
        inner, rank = expansion * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.ahead, self.back = (SelectiveSSM(inner, rank, backend=backend) for _ in range(2))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = _project(self.in_proj.weight, tokens.transpose(1, 2)).chunk(2, dim=1)
        y = self.back(x, BACK, onto=self.ahead(x, AHEAD))
        return _project(self.out_proj.weight, y * F.silu(z))


def _tokens(x: Tensor) -> Tensor:
    """(B, C, *axes) -> (B, L, C), row by row."""
    return x.flatten(2).transpose(1, 2)


class MultiPerspectiveExtraction(nn.Module):
    """MPE: one feature map through windows of several sizes. (B, C, *axes) -> same."""

    def __init__(self, dims: int, channels: int, kernels: Sequence[int] = (1, 3, 5, 7)) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, dims]
        self.views = nn.ModuleList(
            conv(channels, channels, k, padding=k // 2, groups=channels, bias=False) for k in kernels
        )
        self.fuse = conv_norm_act(dims, len(kernels) * channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fuse(torch.cat([view(x) for view in self.views], dim=1))


class BottleneckGatingMamba(nn.Module):
    """BGM: at the deepest stage every place learns of every other. (B, C, *axes) -> same."""

    def __init__(self, dims: int, channels: int, *, backend: Backend = "auto") -> None:
        super().__init__()
        narrow = channels // 2
        self.reduce = Conv[Conv.CONV, dims](channels, narrow, 1)
        self.norm = nn.LayerNorm(narrow)
        self.mamba = BidirectionalMamba(narrow, backend=backend)
        self.expand = Conv[Conv.CONV, dims](narrow, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, *(1,) * dims), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        return x + self.scale * self.expand(self.mamba(self.norm(_tokens(y))).view_as(y))


class SkipMamba(nn.Module):
    """SKM: what encoder and decoder know together decides what passes the skip.

    Encoder and enlarged decoder features (B, C, *axes) -> encoder features times a gate between 0 and 2, close to 1
    before training.
    """

    def __init__(self, dims: int, channels: int, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.fuse = Conv[Conv.CONV, dims](2 * channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        # With expansion 2 the four gates take longer than the whole plain U-Net: 1.5 s against 1.2 s for 512 x 512 on
        # two cores (2026-11).
        self.mamba = BidirectionalMamba(channels, expansion=1, backend=backend)
        nn.init.normal_(self.mamba.out_proj.weight, std=0.01)

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        tokens = self.norm(_tokens(self.fuse(torch.cat([encoder, decoder], dim=1))))
        return encoder * (2 * torch.sigmoid(self.mamba(tokens))).view_as(encoder)


class BMSMMNet(nn.Module):
    """(B, in_channels, *axes) -> logits (B, len(heads), *axes), one channel per head in their order, for a sigmoid.

    Axes are multiples of 2 ** (len(widths) - 1), 16 by default, and at least one is more than that.

    Args:
        spatial_dims: 2 or 3.
        widths: channels of the stages, from full size down.
        mpe, bgm, skm: the three modules; False leaves the plain U-Net in their place.
        heads: names of the targets, each with a 3x3 and a 1x1 convolution of its own.
        backend: of the selective scan, see `volseg.ops.selective_scan`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        spatial_dims: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        mpe: bool = True,
        bgm: bool = True,
        skm: bool = True,
        heads: Sequence[str] = ("bone", "lesion"),
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if len(widths) < 2 or not heads:
            raise ValueError(f"BMSMMNet needs two stages and a head, got widths {tuple(widths)}, heads {tuple(heads)}")
        dims, below = spatial_dims, tuple(itertools.pairwise(widths))
        self.strides = (2 ** len(below),) * dims
        self.encoder = nn.ModuleList(
            nn.Sequential(
                two_convs(dims, before, width),
                MultiPerspectiveExtraction(dims, width) if mpe else nn.Identity(),
            )
            for before, width in zip((in_channels, *widths), widths, strict=False)
        )
        self.shrink = Pool[Pool.MAX, dims](2)
        self.bottleneck = BottleneckGatingMamba(dims, widths[-1], backend=backend) if bgm else nn.Identity()
        self.enlarge = nn.ModuleList(
            Conv[Conv.CONVTRANS, dims](wide, width, 2, stride=2) for width, wide in reversed(below)
        )
        self.skips = nn.ModuleList(
            SkipMamba(dims, width, backend=backend) if skm else _EncoderOnly() for width, _ in reversed(below)
        )
        self.decoder = nn.ModuleList(two_convs(dims, 2 * width, width) for width, _ in reversed(below))
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    conv_norm_act(dims, widths[0], widths[0]), Conv[Conv.CONV, dims](widths[0], 1, kernel_size=1)
                )
                for name in heads
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        check_size("BMSMMNet", x, self.strides, two_voxels=True)
        if bfloat16_spoils_gradients(x, self.strides[0]):
            with torch.autocast("cpu", enabled=False):
                return self._forward(x.float())
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(self.shrink(maps[-1]) if maps else x)
            maps.append(x)
        x = self.bottleneck(maps.pop())
        for enlarge, skip, decode in zip(self.enlarge, self.skips, self.decoder, strict=True):
            x = enlarge(x)
            x = decode(torch.cat([skip(maps.pop(), x), x], dim=1))
        return torch.cat([head(x) for head in self.heads.values()], dim=1)


class _EncoderOnly(nn.Module):
    """The plain skip: the encoder's features as they are."""

    def forward(self, encoder: Tensor, decoder: Tensor) -> Tensor:
        return encoder
