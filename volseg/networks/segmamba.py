"""SegMamba (Xing et al., arXiv 2401.13560): a Mamba encoder inside a UNETR-shaped decoder. Tensors in, logits out.

Where paper and published code differ, the code is followed, because the published checkpoints were made with it (the
paper multiplies in GSC, the code adds).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from volseg.networks.blocks import OutBlock, ResidualBlock, UpBlock
from volseg.networks.mamba import MambaLayer
from volseg.networks.sizes import check_size
from volseg.ops.conv3d import conv3d_1x1x1, conv3d_3x3x3
from volseg.ops.instance_norm import instance_norm_act
from volseg.ops.selective_scan import Backend

STRIDE = 16  # the encoder halves every axis four times


class _ConvNormReLU(nn.Sequential):
    """Convolution, instance norm, ReLU. Only the convolution has parameters, so their names are a plain build's."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2))

    def forward(self, x: Tensor) -> Tensor:
        conv = self[0]
        assert isinstance(conv, nn.Conv3d)
        convolve = conv3d_3x3x3 if conv.kernel_size == (3, 3, 3) else conv3d_1x1x1
        return instance_norm_act(convolve(x, conv.weight, conv.bias), 0.0)


class GatedSpatialConv(nn.Module):
    """Gated spatial convolution (GSC), SegMamba fig. 3. (B, C, X, Y, Z) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = nn.Sequential(_ConvNormReLU(channels, 3), _ConvNormReLU(channels, 3))
        self.gate = _ConvNormReLU(channels, 1)
        self.fuse = _ConvNormReLU(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fuse(self.local(x) + self.gate(x))


class EncoderStage(nn.Module):
    """Downsample, GSC, Mamba layers. (B, C, X, Y, Z) -> next stage's input and skip, both (B, C', X/2, Y/2, Z/2)."""

    def __init__(
        self, downsample: nn.Module, channels: int, depth: int, num_slices: int | None, backend: Backend
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.gsc = GatedSpatialConv(channels)
        self.layers = nn.Sequential(
            *(MambaLayer(channels, num_slices=num_slices, backend=backend) for _ in range(depth))
        )
        self.mlp = nn.Sequential(nn.Conv3d(channels, 2 * channels, 1), nn.GELU(), nn.Conv3d(2 * channels, channels, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(self.gsc(self.downsample(x)))
        return x, self.mlp(F.instance_norm(x))


class SegMamba(nn.Module):
    """SegMamba, fig. 2 (a). (B, in_channels, X, Y, Z) -> logits (B, out_channels, X, Y, Z).

    X, Y, Z are multiples of 16, and more than 16 in at least one axis (instance norm needs two voxels at the bottom).

    Args:
        depths, dims: Mamba layers and channels of the four stages.
        hidden_dim: channels at the bottom, after the last stage.
        num_slices: slices of the slice-wise reading per stage. None takes each feature map's own X; published
            checkpoints were trained with (64, 32, 16, 8), which is the same thing only for X = 128.
        backend: of the selective scan, see `volseg.ops.selective_scan`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depths: Sequence[int] = (2, 2, 2, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        hidden_dim: int = 768,
        num_slices: Sequence[int] | None = None,
        *,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        slices = (None,) * 4 if num_slices is None else tuple(num_slices)
        for name, values in (("depths", depths), ("dims", dims), ("num_slices", slices)):
            if len(values) != 4:
                raise ValueError(f"{name} must name four stages, got {len(values)}: {tuple(values)}")
        stem = nn.Conv3d(in_channels, dims[0], 7, stride=2, padding=3)
        down = [
            nn.Sequential(nn.InstanceNorm3d(dims[i]), nn.Conv3d(dims[i], dims[i + 1], 2, stride=2)) for i in range(3)
        ]
        self.stages = nn.ModuleList(
            EncoderStage(*stage, backend) for stage in zip((stem, *down), dims, depths, slices, strict=True)
        )
        self.skips = nn.ModuleList(ResidualBlock(i, o) for i, o in zip((in_channels, *dims[:3]), dims, strict=True))
        self.bottom = ResidualBlock(dims[3], hidden_dim)
        self.ups = nn.ModuleList(
            UpBlock(i, o) for i, o in zip((hidden_dim, dims[3], dims[2], dims[1]), reversed(dims), strict=True)
        )
        self.last = ResidualBlock(dims[0], dims[0])
        self.out = OutBlock(dims[0], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        check_size("SegMamba", x, (STRIDE,) * 3, two_voxels=True)
        maps = [x]
        skips = []
        for stage in self.stages:
            x, skip = stage(x)
            maps.append(skip)
        skips = [block(m) for block, m in zip(self.skips, maps[:-1], strict=True)]
        x = self.bottom(maps[-1])
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            x = up(x, skip)
        return self.out(self.last(x))
