"""Every weight of the Mask R-CNN: ConvNeXt-V2, feature pyramid, and four heads. Tensors in, tensors out."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.convnextv2 import ConvNeXtV2
from volseg.ops.conv3d import Conv3x3x3, conv3d_3x3x3
from volseg.ops.upconv3d import upconv3d_2x2x2

# Objectness and lesion probability before any training (Lin et al. 2017): most of a scan is not lesion.
PRIOR = 0.01
LOG_ODDS = math.log((1 - PRIOR) / PRIOR)
STD = 0.01


class Maps(NamedTuple):
    """What one pass over a batch of images gives, before any box is chosen.

    pyramid: per level (B, C, X, Y, Z). objectness: per level (B, X * Y * Z * A), logits. deltas: per level
    (B, X * Y * Z * A, 6). semantic: (B, 1 + classes, X, Y, Z) logits at full resolution, class 0 background.
    """

    pyramid: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]
    semantic: Tensor


class MaskRCNNNetwork(nn.Module):
    """3D ConvNeXt-V2 Mask R-CNN (Zhao et al., J Bone Oncol 2024): backbone, pyramid, RPN, box, mask and semantic heads.

    Args:
        in_channels, num_classes: of the image; of lesions, without background.
        depths, dims, kernel_size, stem_stride, drop_path_rate: of `volseg.networks.convnextv2.ConvNeXtV2`.
        first_level: the first of C1..C4 that enters the pyramid: 0 starts at the stem's stride, 1 at twice that.
        fpn_channels: of every pyramid level.
        anchors_per_location: sizes times shapes of the `AnchorGrid`.
        head_channels, mask_channels, semantic_channels: widths of the RoI box head, the mask head, the decoder.
        box_size, mask_size: RoIAlign's output for the two RoI heads; masks come out twice as fine.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        kernel_size: int = 5,
        stem_stride: int | Sequence[int] = 2,
        drop_path_rate: float = 0.0,
        first_level: int = 1,
        fpn_channels: int = 96,
        anchors_per_location: int = 8,
        head_channels: int = 64,
        mask_channels: int = 32,
        semantic_channels: int = 16,
        box_size: int = 7,
        mask_size: int = 14,
    ) -> None:
        super().__init__()
        self.backbone = ConvNeXtV2(
            in_channels,
            depths=tuple(depths),
            dims=tuple(dims),
            kernel_size=kernel_size,
            stem_stride=stem_stride if isinstance(stem_stride, int) else tuple(stem_stride),
            drop_path_rate=drop_path_rate,
        )
        self.fpn = FeaturePyramidNetwork(3, list(dims[first_level:]), fpn_channels)
        # MONAI's pyramid with our convolutions: small windows have levels that oneDNN's bfloat16 gradients spoil.
        for i, block in enumerate(self.fpn.layer_blocks):
            ours = Conv3x3x3(fpn_channels, fpn_channels)
            ours.load_state_dict(block.state_dict())
            self.fpn.layer_blocks[i] = ours
        self.rpn_head = RPNHead(fpn_channels, anchors_per_location)
        self.box_head = BoxHead(fpn_channels, head_channels, num_classes, box_size)
        self.mask_head = MaskHead(fpn_channels, mask_channels, num_classes)
        self.semantic_head = SemanticHead(in_channels, fpn_channels, semantic_channels, 1 + num_classes)
        self.num_classes, self.first_level = num_classes, first_level
        self.box_size, self.mask_size = box_size, mask_size
        stem = (stem_stride,) * 3 if isinstance(stem_stride, int) else tuple(stem_stride)
        # In voxels, per pyramid level: where anchors stand and how RoIs are scaled.
        self.strides = [tuple(float(s * 2**i) for s in stem) for i in range(first_level, len(dims))]

    def forward(self, images: Tensor) -> Maps:
        """(B, C, X, Y, Z), C = in_channels -> Maps."""
        stages = self.backbone(images)[self.first_level :]
        pyramid = list(self.fpn(OrderedDict((str(i), s) for i, s in enumerate(stages))).values())
        objectness, deltas = self.rpn_head(pyramid)
        return Maps(pyramid, objectness, deltas, self.semantic_head(images, pyramid[0]))


class RPNHead(nn.Module):
    """Shared over levels: objectness and box code of every anchor."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = Conv3x3x3(channels, channels)
        self.objectness = nn.Conv3d(channels, anchors, 1)
        self.deltas = nn.Conv3d(channels, 6 * anchors, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            _start_small(layer, -LOG_ODDS if layer is self.objectness else 0.0)

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = [], []
        for level in pyramid:
            x = F.relu(self.conv(level))
            # Location slowest, anchor fastest, as AnchorGrid numbers them.
            objectness.append(self.objectness(x).permute(0, 2, 3, 4, 1).flatten(1))
            deltas.append(self.deltas(x).unflatten(1, (-1, 6)).permute(0, 3, 4, 5, 1, 2).flatten(1, 4))
        return objectness, deltas


class BoxHead(nn.Module):
    """RoI features (N, C, s, s, s) -> class logits (N, 1 + classes), background first, and box codes (N, classes, 6).

    Two convolutions without padding keep where things are in the RoI (pooling it all would lose what the box code
    needs); s is 7, so 3^3 places remain.
    """

    def __init__(self, channels: int, width: int, num_classes: int, size: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv3d(channels, width, 3),
            nn.GroupNorm(_groups(width), width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3),
            nn.GroupNorm(_groups(width), width),
            nn.ReLU(),
        )
        self.shared = nn.Linear(width * (size - 4) ** 3, 2 * width)
        self.classes = nn.Linear(2 * width, 1 + num_classes)
        self.deltas = nn.Linear(2 * width, 6 * num_classes)
        for layer in (self.classes, self.deltas):
            _start_small(layer, 0.0)

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.shared(self.convs(rois).flatten(1)))
        return self.classes(x), self.deltas(x).unflatten(1, (-1, 6))


class MaskHead(nn.Module):
    """RoI features (N, C, s, s, s) -> mask logits (N, classes, 2s, 2s, 2s)."""

    def __init__(self, channels: int, width: int, num_classes: int, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [
                nn.Conv3d(channels if i == 0 else width, width, 3, padding=1),
                nn.GroupNorm(_groups(width), width),
                nn.ReLU(),
            ]
        self.convs = nn.Sequential(*layers)
        self.up = nn.ConvTranspose3d(width, width, 2, stride=2)
        self.mask = nn.Conv3d(width, num_classes, 1)

    def forward(self, rois: Tensor) -> Tensor:
        return self.mask(F.relu(upconv3d_2x2x2(self.convs(rois), self.up.weight, self.up.bias)))


class SemanticHead(nn.Module):
    """Thin decoder: the finest pyramid level and the image itself -> logits (B, K, X, Y, Z) at full resolution."""

    def __init__(self, in_channels: int, channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.Conv3d(channels, width, 1)
        self.detail = nn.Conv3d(in_channels, width, 3, padding=1)
        self.fuse = nn.Conv3d(2 * width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(_groups(width), width)
        self.out = nn.Conv3d(width, out_channels, 1)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([LOG_ODDS] + [0.0] * (out_channels - 1)))  # type: ignore[union-attr]

    def forward(self, images: Tensor, level: Tensor) -> Tensor:
        coarse = F.interpolate(self.lateral(level), size=images.shape[2:], mode="trilinear", align_corners=False)
        fine = F.relu(self.detail(images))
        fused = conv3d_3x3x3(coarse, self.fuse.weight, also=fine.to(coarse.dtype))
        return self.out(F.relu(self.norm(fused)))


def _start_small(layer: nn.Conv3d | nn.Linear, bias: float) -> None:
    nn.init.normal_(layer.weight, std=STD)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


def _groups(width: int) -> int:
    return math.gcd(8, width)
