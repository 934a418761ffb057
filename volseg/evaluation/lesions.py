"""Lesion-wise comparison of two instance maps: who was found, who was missed, who was invented."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric
from numpy.typing import NDArray
from torch import Tensor

from volseg.evaluation.matching import instance_ious, match_optimally


@dataclass(frozen=True)
class LesionMatch:
    """One-to-one matching at a stated IoU. `hits` holds (true id, predicted id, IoU)."""

    hits: tuple[tuple[int, int, float], ...]
    missed: tuple[int, ...]
    false_positives: tuple[int, ...]

    @property
    def n_true(self) -> int:
        return len(self.hits) + len(self.missed)


def match_lesions(predicted: NDArray, truth: NDArray, *, iou: float = 0.1) -> LesionMatch:
    """Match two instance maps (same shape, 0 = background) one to one, maximising the summed IoU.

    A pair counts from IoU >= `iou`; what is left over on either side is missed or false positive. The threshold 0.1 is
    the usual one for small lesions in 3D (nnDetection, LUNA-style evaluations).
    """
    true_ids, predicted_ids, ious = instance_ious(predicted, truth)
    pairs = match_optimally(ious, iou)
    hits = tuple((int(true_ids[r]), int(predicted_ids[c]), float(ious[r, c])) for r, c in pairs)
    found, used = {h[0] for h in hits}, {h[1] for h in hits}
    return LesionMatch(
        hits=hits,
        missed=tuple(int(i) for i in true_ids if int(i) not in found),
        false_positives=tuple(int(i) for i in predicted_ids if int(i) not in used),
    )


class _LesionCounts(CumulativeIterationMetric):
    """Collects (true lesions, hits, false positives) per case from (B, 1, X, Y, Z) instance maps."""

    def __init__(self, iou: float = 0.1) -> None:
        super().__init__()
        self.iou = iou

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: object) -> Tensor:
        if y is None:
            raise ValueError("lesion-wise metrics need the truth")
        rows = []
        for p, t in zip(y_pred, y, strict=True):
            match = match_lesions(_integers(p), _integers(t), iou=self.iou)
            rows.append([match.n_true, len(match.hits), len(match.false_positives)])
        return torch.tensor(rows, dtype=torch.float32)

    def _totals(self) -> tuple[Tensor, int]:
        counts = self.get_buffer()
        if not isinstance(counts, Tensor):
            raise ValueError("no case was evaluated")
        return counts.sum(dim=0), counts.shape[0]


class LesionSensitivity(_LesionCounts):
    """Fraction of all true lesions that were hit at the IoU; nan if there was none. A MONAI cumulative metric."""

    def aggregate(self) -> Tensor:  # type: ignore[override]
        totals, _ = self._totals()
        return totals[1] / totals[0] if totals[0] > 0 else torch.tensor(float("nan"))


class FalsePositivesPerCase(_LesionCounts):
    """Mean number of predicted lesions per case that match no true one. A MONAI cumulative metric."""

    def aggregate(self) -> Tensor:  # type: ignore[override]
        totals, cases = self._totals()
        return totals[2] / cases


def _integers(instances: Tensor) -> NDArray:
    return torch.as_tensor(instances)[0].cpu().numpy().astype(np.int64)
