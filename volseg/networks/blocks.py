"""UNETR's convolution blocks with MONAI's parameters and our order of work: fewer passes over large feature maps.

Same function and same names in the state dict as `monai.networks.blocks.UnetrBasicBlock` and `UnetrUpBlock` (residual,
instance norm, leaky ReLU); they differ in what they avoid: the concatenation before the decoder's convolutions, and a
pass over the memory for each of norm, residual and activation.
"""

from __future__ import annotations

from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor

from volseg.ops.conv3d import conv3d_1x1x1, conv3d_3x3x3
from volseg.ops.instance_norm import instance_norm_act

SLOPE = 0.01  # of UNETR's leaky ReLU


class ResidualBlock(UnetrBasicBlock):
    """(B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(3, in_channels, out_channels, 3, 1, "instance", res_block=True)

    def forward(self, x: Tensor) -> Tensor:
        return _residual(self.layer, x, None)


class UpBlock(UnetrUpBlock):
    """(B, in_channels, X, Y, Z) and a skip (B, out_channels, 2X, 2Y, 2Z) -> (B, out_channels, 2X, 2Y, 2Z)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(3, in_channels, out_channels, 3, 2, "instance", res_block=True)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return _residual(self.conv_block, self.transp_conv(x), skip)


class OutBlock(UnetOutBlock):
    """The head, a 1x1x1 convolution as a matrix product: (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(3, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return conv3d_1x1x1(x, self.conv.conv.weight, self.conv.conv.bias)


def _residual(layer: UnetResBlock, x: Tensor, also: Tensor | None) -> Tensor:
    y = instance_norm_act(conv3d_3x3x3(x, layer.conv1.conv.weight, also=also), SLOPE)
    y = conv3d_3x3x3(y, layer.conv2.conv.weight)
    if not layer.downsample:
        return instance_norm_act(y, SLOPE, residual=x)
    residual = conv3d_1x1x1(x, layer.conv3.conv.weight, also=also)
    return instance_norm_act(y, SLOPE, residual=residual, normalise_residual=True)
