"""Proposals that the dense branch makes: the box of every connected piece of its lesion map.

Every voxel teaches the dense branch and only a few sampled anchors teach the RPN, so after a short training it finds
lesions for which no anchor scores well yet. The second stage judges its boxes as it judges the RPN's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from volseg.geometry import TOUCHING

# Nested pieces of one lesion are tried at each; lesions that touch at the lowest are apart at the highest.
THRESHOLDS = (0.25, 0.5, 0.75)
LEAST_VOXELS = 4


@torch.no_grad()
def semantic_proposals(
    probability: Tensor, *, thresholds: Sequence[float] = THRESHOLDS, least_voxels: int = LEAST_VOXELS, most: int = 32
) -> tuple[Tensor, Tensor]:
    """Boxes (P, 6) float32, half-open voxels, and scores (P,) of one image's lesion map (X, Y, Z), best first.

    A piece is 26-connected, at or above a threshold and of at least `least_voxels`; its score is its mean probability.
    The `most` best are given; P is 0 where nothing reaches the lowest threshold.
    """
    values = probability.float().cpu().numpy()
    boxes: list[list[float]] = []
    scores: list[float] = []
    for threshold in thresholds:
        pieces, number = ndimage.label(values >= threshold, structure=TOUCHING)
        if not number:
            continue
        ids = np.arange(1, number + 1)
        sizes = np.bincount(pieces.ravel(), minlength=number + 1)[1:]
        means = np.atleast_1d(ndimage.mean(values, pieces, ids))
        for where, size, mean in zip(ndimage.find_objects(pieces), sizes, means, strict=True):
            if size >= least_voxels:
                boxes.append([float(s.start) for s in where] + [float(s.stop) for s in where])
                scores.append(float(mean))
    score = torch.tensor(scores, dtype=torch.float32, device=probability.device)
    best = torch.sort(score, descending=True, stable=True).indices[:most]
    return torch.tensor(boxes, dtype=torch.float32, device=probability.device).reshape(-1, 6)[best], score[best]
