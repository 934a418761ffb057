"""A loss for networks with one head per region, whose regions may lie inside each other (a lesion lies in bone)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.training.lesion_loss import lesion_weights

# Weight of a voxel in the smallest lesions.
MOST = 4.0


class RegionLoss(nn.Module):
    """Logits and masks (B, K, *axes) -> sum over k of weights[k] * (BCE + Dice loss of region k).

    Dice is counted over the whole batch: a picture without lesion has none of its own. BMSMM-Net's bundle weighs bone
    0.3 and lesion 0.7; the paper's loss is unknown.

    Args:
        weights: one per region.
        smooth: added to both sides of Dice's fraction.
        even_area: in pixels. In the last region a lesion of less counts for more, up to `MOST` times, in both terms
            (`lesion_weights`): one that is small, or cut near its end, is not to drown among the large. 0: all alike.
    """

    def __init__(self, weights: Sequence[float] = (0.3, 0.7), *, smooth: float = 1.0, even_area: float = 0.0) -> None:
        super().__init__()
        if not weights or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"weights are one per region, none negative and not all 0, got {tuple(weights)}")
        self.weights, self.smooth, self.even_area = tuple(float(w) for w in weights), smooth, even_area

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        if logits.shape != masks.shape or logits.shape[1] != len(self.weights):
            told = f"logits {tuple(logits.shape)} and masks {tuple(masks.shape)}"
            raise ValueError(f"RegionLoss has {len(self.weights)} regions, got {told}")
        logits, masks = torch.as_tensor(logits).float(), torch.as_tensor(masks).float()
        axes = (0, *range(2, logits.ndim))
        weight = torch.ones_like(masks)
        if self.even_area:
            weight[:, -1:] = lesion_weights(masks[:, -1:], self.even_area, least=1.0, most=MOST)
        bce = F.binary_cross_entropy_with_logits(logits, masks, weight, reduction="none").mean(axes)
        p = torch.sigmoid(logits)
        both, either = (weight * p * masks).sum(axes), (weight * (p + masks)).sum(axes)
        dice = (2 * both + self.smooth) / (either + self.smooth)
        return ((bce + 1 - dice) * bce.new_tensor(self.weights)).sum()
