"""A detector's figures during `evaluate.json`: average precision, FROC and mask Dice, as one ignite metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from numpy.typing import NDArray
from torch import Tensor

from volseg.evaluation.detection import DetectionCase, average_precision, froc, mean_average_precision
from volseg.evaluation.matching import instance_ious, match_optimally


class DetectionSummary(Metric):
    """Collects (pred, scores, label) of every case; computes a dict, each entry becomes one of the engine's metrics.

    pred, label: instance maps (1, X, Y, Z), numbered from 1; scores: those of the predicted lesions 1, 2, ... Overlap
    is that of masks. The entries: `mAP_10_50` (COCO's mean over IoU .1 to .5), `AP_10`, `froc_mean` (mean sensitivity
    at 1/8 ... 8 false positives per case, IoU .1), `froc_<rate>` each of them; and at scores of at least
    `operating_score`, the bundle's frozen threshold: `sensitivity`, `false_positives_per_case` and `mask_dice` (mean
    over lesions hit, nan if none was).
    """

    def __init__(
        self,
        output_transform: Callable[[Any], Any] = lambda output: output,
        *,
        operating_score: float,
        iou: float = 0.1,
    ) -> None:
        self.operating_score, self.iou = operating_score, iou
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        self.cases: list[DetectionCase] = []
        self.dice: list[float] = []
        self.false = 0

    def update(self, output: tuple[Sequence[Tensor], Sequence[Sequence[float]], Sequence[Tensor]]) -> None:
        for pred, scores, label in zip(*output, strict=True):
            predicted, truth = _integers(pred), _integers(label)
            _, ids, ious = instance_ious(predicted, truth)
            values = np.array([scores[i - 1] for i in ids], dtype=np.float64)
            self.cases.append(DetectionCase(ious, values))
            sure = ious[:, values >= self.operating_score]
            hits = match_optimally(sure, self.iou)
            # Dice is 2 IoU / (1 + IoU) for one pair of masks.
            self.dice += [2 * sure[t, p] / (1 + sure[t, p]) for t, p in hits]
            self.false += sure.shape[1] - len(hits)

    def compute(self) -> dict[str, float]:
        if not self.cases:
            raise ValueError("no case was evaluated")
        curve = froc(self.cases, iou=self.iou)
        rates = {f"froc_{rate:g}": sensitivity for rate, sensitivity in curve.at.items()}
        return {
            "mAP_10_50": mean_average_precision(self.cases),
            "AP_10": average_precision(self.cases, iou=0.1),
            "froc_mean": curve.mean_sensitivity,
            **rates,
            "sensitivity": len(self.dice) / curve.n_lesions if curve.n_lesions else float("nan"),
            "false_positives_per_case": self.false / len(self.cases),
            "mask_dice": float(np.mean(self.dice)) if self.dice else float("nan"),
        }


def _integers(instances: Tensor) -> NDArray[np.int64]:
    return torch.as_tensor(instances)[0].cpu().numpy().astype(np.int64)
