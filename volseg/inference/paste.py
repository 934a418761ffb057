"""Lesions with boxes and small masks -> voxels: pasted inside their own boxes only, joined with the semantic map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.inference.window_detections import MergedDetections, WindowDetections


@dataclass(frozen=True, eq=False)
class PastedLesions:
    """What lesions leave on the volume's grid (X, Y, Z), before it goes back to the source.

    probability float32: of lesion, 0 outside all boxes. owner int32: which lesion a voxel's probability belongs to,
    filling its box, 0 outside. score float32: the lesion's score, where `owner` is set.
    """

    probability: Tensor
    owner: Tensor
    score: Tensor

    def stacked(self) -> Tensor:
        """(3, X, Y, Z) float32: probability, owner, score."""
        return torch.stack([self.probability, self.owner.float(), self.score])


def paste_mask(mask: Tensor, box: Tensor, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    """A mask (s, s, s) that fills `box` (6,), read at the voxel centres of [begin, end): (end - begin) float32.

    Linear between the mask's own cell centres; 0 outside the box. The centre of voxel i is i + .5.
    """
    axes = []
    for a in range(3):
        centers = torch.arange(begin[a], end[a], dtype=torch.float32) + 0.5
        axes.append((centers - box[a]) / (box[3 + a] - box[a]).clamp_min(1e-3))
    inside = [(t >= 0) & (t <= 1) for t in axes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1) * 2 - 1
    values = F.grid_sample(
        mask.float()[None, None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    return values * (inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :])


def paste(
    merged: MergedDetections,
    detections: WindowDetections,
    semantic: Tensor,
    *,
    instance_weight: float = 0.5,
    threshold: float = 0.5,
    least_score: float = 0.0,
) -> PastedLesions:
    """Every lesion's probability: `instance_weight` times its masks (mean over windows) plus the rest semantic.

    semantic (X, Y, Z): probability. Where boxes overlap, the higher probability owns the voxel (the better score on a
    tie). A lesion whose probability nowhere reaches `threshold` is outlined at half its maximum: the detector is sure
    of the lesion, only not of its outline.

    A lesion's score is that of its best detection times the mean semantic probability inside the outline: a box that
    the dense branch does not see is rarely a lesion (a mask's own confidence as a factor of the score: Wang et al.,
    SOLOv2, NeurIPS 2020). Lesions with less than `least_score` are left out.
    """
    shape = semantic.shape
    probability = torch.zeros(shape)
    owner = torch.zeros(shape, dtype=torch.int32)
    score = torch.zeros(shape)
    for number, (box, members) in enumerate(zip(merged.boxes, merged.members, strict=True), 1):
        best = float(detections.scores[members].max())
        if best < least_score:  # the dense branch can only lower it
            continue
        begin = [max(0, int(v)) for v in box[:3].floor()]
        end = [min(n, int(v)) for n, v in zip(shape, box[3:].ceil(), strict=True)]
        if any(e <= b for b, e in zip(begin, end, strict=True)):
            continue
        where = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
        mask = _mean_mask(detections, members, begin, end)
        dense = semantic[where].cpu()
        fused = instance_weight * mask + (1 - instance_weight) * dense
        top = float(fused.max())
        if top == 0:
            continue
        if top < threshold:
            fused = (fused * (threshold / (0.5 * top))).clamp_max(1.0)
        scored = best * float(dense[fused >= threshold].mean())
        if scored < least_score:
            continue
        better = fused > probability[where]
        probability[where] = torch.where(better, fused, probability[where])
        owner[where] = torch.where(better, number, owner[where])
        score[where] = torch.where(better, scored, score[where])
    return PastedLesions(probability, owner, score)


def _mean_mask(detections: WindowDetections, members: Tensor, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    """Mean of the members' masks, weighted by score, over those whose box covers a voxel."""
    shape = [e - b for b, e in zip(begin, end, strict=True)]
    total, weight = torch.zeros(shape), torch.zeros(shape)
    for i in members.tolist():
        box, value = detections.boxes[i], float(detections.scores[i])
        low = [max(b, int(v)) for b, v in zip(begin, box[:3].floor(), strict=True)]
        high = [min(e, int(v)) for e, v in zip(end, box[3:].ceil(), strict=True)]
        if any(h <= lo for lo, h in zip(low, high, strict=True)):
            continue
        here = tuple(slice(lo - b, h - b) for lo, h, b in zip(low, high, begin, strict=True))
        total[here] += value * paste_mask(detections.masks[i], box, low, high)
        weight[here] += value
    return total / weight.clamp_min(1e-6)
