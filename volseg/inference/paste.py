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

    semantic (X, Y, Z): probability. Where boxes overlap, the lesion with the better score keeps its outline whole, so
    that a weak detection, kept or not, never changes a strong one; elsewhere the higher probability owns the voxel. A
    lesion whose probability nowhere reaches `threshold` is outlined at half its maximum: the detector is sure of the
    lesion, only not of its outline.

    A lesion's score is that of its best detection times the mean semantic probability inside the outline: a box that
    the dense branch does not see is rarely a lesion (a mask's own confidence as a factor of the score: Wang et al.,
    SOLOv2, NeurIPS 2020). Lesions with less than `least_score` are left out.
    """
    shape = semantic.shape
    lesions = []
    for number, (box, members) in enumerate(zip(merged.boxes, merged.members, strict=True), 1):
        best = float(detections.scores[members].max())
        if best < least_score:  # the dense branch can only lower it
            continue
        begin = [max(0, int(v)) for v in box[:3].floor()]
        end = [min(n, int(v)) for n, v in zip(shape, box[3:].ceil(), strict=True)]
        if any(e <= b for b, e in zip(begin, end, strict=True)):
            continue
        where = tuple(slice(b, e) for b, e in zip(begin, end, strict=True))
        mask, dense = _mean_mask(detections, members, begin, end), semantic[where].cpu()
        fused = _outlined(instance_weight * mask + (1 - instance_weight) * dense, threshold)
        if fused is None:
            continue
        score = best * float(dense[fused >= threshold].mean())
        if score >= least_score:
            lesions.append((score, number, where, fused))
    pasted = PastedLesions(torch.zeros(shape), torch.zeros(shape, dtype=torch.int32), torch.zeros(shape))
    for score, number, where, fused in sorted(lesions, key=lambda lesion: (-lesion[0], lesion[1])):
        there = pasted.probability[where]
        takes = (fused > there) & (there < threshold)
        pasted.probability[where] = torch.where(takes, fused, there)
        pasted.owner[where] = torch.where(takes, number, pasted.owner[where])
        pasted.score[where] = torch.where(takes, score, pasted.score[where])
    return pasted


def _outlined(fused: Tensor, threshold: float) -> Tensor | None:
    """A lesion's probability, raised where it nowhere reaches `threshold`; None where there is nothing of it."""
    top = float(fused.max())
    if top == 0:
        return None
    return fused if top >= threshold else (fused * (threshold / (0.5 * top))).clamp_max(1.0)


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
