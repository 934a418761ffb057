"""MobileNetV2 (Sandler et al., arXiv 1801.04381) as a backbone: feature maps, no classifier.

Modules bear the names they have in torchvision, which is not needed here: a user who has its ImageNet weights can load
them with `load_state_dict(weights, strict=False)`; only `features.18` and `classifier` find no place.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first block (the paper's table 2, without the last 1x1 convolution)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM = 32
CHANNELS = (STEM, *(channels for _, channels, blocks, _ in STAGES for _ in range(blocks)))  # of features[i]


class ConvNormReLU6(nn.Sequential):
    """Convolution without bias, batch norm, ReLU6; padded so that only the stride changes the size."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(),
        )


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without activation. (B, C, X, Y) -> (B, C', X/stride, Y/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, dilation: int = 1) -> None:
        super().__init__()
        wide = in_channels * expansion
        widen = [ConvNormReLU6(in_channels, wide, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            ConvNormReLU6(wide, wide, 3, stride, groups=wide, dilation=dilation),
            nn.Conv2d(wide, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """(B, in_channels, X, Y) -> the maps of all 18 features, `CHANNELS[i]` wide, from half to a sixteenth of the size.

    The stride stops at 16: where a classifier would halve the size once more, at features[14], it stays, and the blocks
    after that see as far by dilation 2.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvNormReLU6(in_channels, STEM, 3, 2)]
        channels, reached, dilation = STEM, 2, 1
        for expansion, out_channels, blocks, first_stride in STAGES:
            for stride in (first_stride, *(1,) * (blocks - 1)):
                spared = reached * stride > 16
                features.append(InvertedResidual(channels, out_channels, 1 if spared else stride, expansion, dilation))
                channels = out_channels
                if spared:
                    dilation = 2
                else:
                    reached *= stride
        self.features = nn.Sequential(*features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for feature in self.features:
            x = feature(x)
            maps.append(x)
        return maps
