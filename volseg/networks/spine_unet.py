"""A U-Net for spinal metastases in MRI, after Hille et al. (arXiv 2001.05834, 2020): 2D, 2.5D or 3D, any MRI channels.

Whatever its dimension, it takes and gives volumes, (B, C, X, Y, Z) -> (B, K, X, Y, Z): transforms, sliding window and
SegMamba in its place (`AnyChannels`) need not know. What is known of the original, and what we chose:

    what            stated                        ours
    network         U-Net-like                    4 levels, 32-64-128-256, two convolutions, batch norm, ReLU each, max
                                                  pooling, transposed convolution, dropout 0.1
    dimension       2D, 2.5D and 3D compared      a switch; 2.5D: 2 slices to either side as channels
    MRI channels    several, compared             any of T1, T1c, T2, STIR; a missing one is zeros plus a plane that
                                                  says so, and training drops channels at random
    slices          unknown                       sagittal: across X in RAS+
    parameters      unknown                       with 4 channels 5,608,610 in 3D, 1,929,890 in 2D, 1,934,498 in 2.5D
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.nets.basic_unet import TwoConv
from torch import Tensor, nn

from volseg.labels import MRI_CHANNELS
from volseg.networks.any_channels import ChannelDropout, check_channels, checked_channels, presence_planes
from volseg.networks.sizes import bfloat16_spoils_gradients, check_size
from volseg.networks.slicewise import from_slices, to_slices

Dimension = Literal["2", "2.5", "3"]


class UNet(nn.Module):
    """Plain U-Net. (B, in_channels, *axes) -> logits (B, out_channels, *axes).

    pools: per level below the first, the factors each axis shrinks by; they divide the axes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        pools: Sequence[tuple[int, ...]],
        *,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        dims, falling = len(pools[0]), tuple(reversed(widths))

        def two_convs(before: int, width: int) -> TwoConv:
            return TwoConv(dims, before, width, act="relu", norm=norm, bias=True, dropout=dropout)

        self.down = nn.ModuleList(
            two_convs(before, width) for before, width in zip((in_channels, *widths), widths, strict=False)
        )
        self.shrink = nn.ModuleList(Pool[Pool.MAX, dims](pool) for pool in pools)
        self.enlarge = nn.ModuleList(
            Conv[Conv.CONVTRANS, dims](wide, width, pool, stride=pool)
            for wide, width, pool in zip(falling, falling[1:], reversed(pools), strict=False)
        )
        self.up = nn.ModuleList(two_convs(2 * width, width) for width in falling[1:])
        self.out = Conv[Conv.CONV, dims](widths[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for shrink, stage in zip(self.shrink, self.down[1:], strict=True):
            maps.append(stage(shrink(maps[-1])))
        x = maps.pop()
        for enlarge, stage in zip(self.enlarge, self.up, strict=True):
            x = stage(torch.cat([maps.pop(), enlarge(x)], dim=1))
        return self.out(x)


class SpineUNet(nn.Module):
    """(B, len(channels), X, Y, Z) -> logits (B, out_channels, X, Y, Z), a missing channel being zeros (`any_channels`).

    Axes within a slice are multiples of 2 ** (len(widths) - 1), 8 by default; the slice axis is any number in 2D and
    2.5D, a multiple of 2 ** slice_pools in 3D.

    Args:
        channels: names, some of T1, T1c, T2, STIR.
        spatial_dims: 2, 2.5 or 3, as a number or a string.
        context: slices to either side in 2.5D; 2D and 3D do not look at it.
        widths: channels of the levels, from full size down.
        slice_axis: the spatial axis sagittal slices are stacked along, 0 in RAS+.
        slice_pools: how many of the poolings, counted from the lowest, halve the slice axis too (3D). Slices thicker
            than a pixel want fewer; None is all of them.
        norm: of the convolutions, in MONAI's words.
        dropout: of the convolutions.
        channel_dropout: probability that a channel is dropped in training; one always stays.
        presence: tell the network by planes of ones and zeros which channels are there.
    """

    def __init__(
        self,
        channels: Sequence[str] = MRI_CHANNELS,
        out_channels: int = 2,
        *,
        spatial_dims: Dimension | float = 3,
        context: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256),
        slice_axis: int = 0,
        slice_pools: int | None = None,
        norm: str = "batch",
        dropout: float = 0.1,
        channel_dropout: float = 0.25,
        presence: bool = True,
    ) -> None:
        super().__init__()
        self.channels = checked_channels(channels)
        levels = len(widths) - 1
        slice_pools = levels if slice_pools is None else slice_pools
        if str(spatial_dims) not in ("2", "2.5", "3"):
            raise ValueError(f"spatial_dims must be 2, 2.5 or 3, got {spatial_dims}")
        if levels < 1 or slice_axis not in (0, 1, 2) or not 0 <= slice_pools <= levels or context < 1:
            raise ValueError(
                f"SpineUNet needs 2 levels, a slice_axis of 0, 1 or 2, slice_pools of 0 to {max(levels, 0)} and a "
                f"context of 1 or more; got widths {tuple(widths)}, {slice_axis}, {slice_pools} and {context}"
            )
        self.slice_axis, self.flat = slice_axis, str(spatial_dims) != "3"
        self.context = context if str(spatial_dims) == "2.5" else 0
        self.drop, self.presence = ChannelDropout(channel_dropout), presence
        if self.flat:
            pools: list[tuple[int, ...]] = [(2, 2)] * levels
            across = 1
        else:
            halves = [2 if level >= levels - slice_pools else 1 for level in range(levels)]
            pools = [tuple(half if axis == slice_axis else 2 for axis in range(3)) for half in halves]
            across = 2**slice_pools
        self.strides = tuple(across if axis == slice_axis else 2**levels for axis in range(3))
        inputs = len(self.channels) * (2 * self.context + 1 + presence)
        self.net = UNet(inputs, out_channels, widths, pools, norm=norm, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_channels("SpineUNet", x, self.channels)
        check_size("SpineUNet", x, self.strides, two_voxels=self.training and x.shape[0] == 1)
        if not self.flat and bfloat16_spoils_gradients(x, self.strides[0]):
            with torch.autocast("cpu", enabled=False):
                return self._forward(x.float())
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        planes = [presence_planes(x)] if self.presence else []
        if not self.flat:
            return self.net(torch.cat([x, *planes], dim=1))
        slices = [to_slices(x, self.slice_axis, self.context), *(to_slices(p, self.slice_axis) for p in planes)]
        return from_slices(self.net(torch.cat(slices, dim=1)), self.slice_axis, x.shape[0])
