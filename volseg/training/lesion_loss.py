"""Dice and cross-entropy in which a small lesion weighs nearly as much as a large one.

Lesions are counted, not voxels: a metastasis of 8 mm that is missed is as missed as one of 30 mm, but has a fiftieth of
its voxels, and so of the gradient. The idea of weighing instances is that of blob loss (Kofler et al., IPMI 2023,
arXiv 2205.08209), which computes a loss per lesion; here one weight per voxel does.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.losses import DiceLoss
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.transforms.bone_morphology import touching_border

# How steeply weight falls with size, and between which weights.
EXPONENT, LEAST, MOST = 2 / 3, 0.4, 5.0


class LesionBalancedDiceCELoss(nn.Module):
    """Dice of the batch plus cross-entropy weighted by `lesion_weights`, for one class of lesion and background.

    Args:
        spacing_mm: edge of a voxel.
        lesion_weight: of a voxel in a lesion as large as a sphere of `even_mm` across; background weighs 1.
        even_mm, exponent, least, most: see `lesion_weights`.

    Call: logits (B, 2, X, Y, Z), label (B, 1, X, Y, Z) with lesion above 0 -> scalar.
    """

    def __init__(
        self,
        spacing_mm: float,
        *,
        lesion_weight: float = 5.0,
        even_mm: float = 15.0,
        exponent: float = EXPONENT,
        least: float = LEAST,
        most: float = MOST,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
        self.lesion_weight, self.exponent, self.least, self.most = lesion_weight, exponent, least, most
        self.even_voxels = math.pi / 6 * (even_mm / spacing_mm) ** 3

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        truth = (label > 0).long()
        balance = lesion_weights(truth, self.even_voxels, exponent=self.exponent, least=self.least, most=self.most)
        weight = torch.where(truth > 0, self.lesion_weight * balance, 1.0)[:, 0]
        entropy = F.cross_entropy(logits.float(), truth[:, 0], reduction="none")
        dice: Tensor = self.dice(logits.float(), truth)
        return dice + (weight * entropy).sum() / weight.sum()


def lesion_weights(
    label: Tensor, even_voxels: float, *, exponent: float = EXPONENT, least: float = LEAST, most: float = MOST
) -> Tensor:
    """(B, 1, *axes), 2 or 3 of them -> the same shape, float32: per voxel (even_voxels / its lesion's) ** exponent.

    Lesions are the pieces of label > 0, connected by corners too (26 neighbours, or 8 in a slice); weights are clipped
    to [least, most], and to 1 where a piece reaches the border of its crop: how large the rest is, nobody knows.
    Background is 1.
    """
    weights = np.ones(tuple(label.shape), dtype=np.float32)
    for weight, lesion in zip(weights[:, 0], label[:, 0].cpu().numpy() > 0, strict=True):
        pieces, number = ndimage.label(lesion, structure=np.ones((3,) * lesion.ndim))
        if not number:
            continue
        sizes = np.bincount(pieces.ravel(), minlength=number + 1).astype(float)
        balance = np.clip((even_voxels / sizes) ** exponent, least, most)
        cut = touching_border(pieces, number, list(range(lesion.ndim)))
        balance[cut] = balance[cut].clip(max=1.0)
        balance[0] = 1.0
        weight[:] = balance[pieces]
    return torch.from_numpy(weights).to(label.device)
