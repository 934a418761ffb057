"""Scored lesions against true ones: FROC, average precision, sensitivity by size. Boxes or instance maps, no files.

A case is one volume. Matching is one to one, highest score first, equal scores together (`match_by_score`); a second
prediction on a lesion already found is a false positive, as in COCO.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.evaluation.matching import Ious, box_ious, centers_in_boxes, instance_ious, match_by_score

FALSE_POSITIVE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
COCO_IOUS = tuple(round(0.1 + 0.05 * n, 2) for n in range(9))  # 0.1 to 0.5, as nnDetection uses them in 3D
SIZE_LIMITS_MM = (10.0, 30.0)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class DetectionCase:
    """One volume: `ious` (T, P) between true and predicted lesions, `scores` (P,).

    `sizes_mm` (T,) are the longest diameters of the true lesions, needed only for sensitivity by size. `patient` is
    the unit of resampling.
    """

    ious: Ious
    scores: NDArray[np.float64]
    sizes_mm: NDArray[np.float64] | None = None
    patient: str = ""

    def __post_init__(self) -> None:
        if self.ious.ndim != 2 or self.scores.shape != self.ious.shape[1:]:
            raise ValueError(f"{self.scores.shape} scores for an IoU matrix of shape {self.ious.shape}")
        if not np.isfinite(self.scores).all():
            raise ValueError("scores hold NaN or Inf")
        if self.sizes_mm is not None and self.sizes_mm.shape != self.ious.shape[:1]:
            raise ValueError(f"{self.sizes_mm.size} sizes for {self.ious.shape[0]} true lesions")

    @classmethod
    def from_boxes(
        cls,
        predicted: ArrayLike,
        scores: ArrayLike,
        truth: ArrayLike,
        *,
        sizes_mm: ArrayLike | None = None,
        patient: str = "",
    ) -> DetectionCase:
        """From half-open boxes xyzxyz, predicted (P, 6) and true (T, 6); either may be empty."""
        return cls(box_ious(predicted, truth), _vector(scores), _optional(sizes_mm), patient)

    @classmethod
    def from_centers(
        cls,
        centers: ArrayLike,
        scores: ArrayLike,
        truth: ArrayLike,
        *,
        sizes_mm: ArrayLike | None = None,
        patient: str = "",
    ) -> DetectionCase:
        """The looser rule: a predicted center (P, 3) inside a true box (T, 6) counts as IoU 1."""
        return cls(centers_in_boxes(centers, truth), _vector(scores), _optional(sizes_mm), patient)

    @classmethod
    def from_instances(
        cls,
        predicted: NDArray,
        scores: dict[int, float],
        truth: NDArray,
        *,
        sizes_mm: dict[int, float] | None = None,
        patient: str = "",
    ) -> DetectionCase:
        """From instance maps of one shape; `scores` by predicted id, `sizes_mm` by true id (KeyError if one lacks)."""
        true_ids, predicted_ids, ious = instance_ious(predicted, truth)
        sizes = None if sizes_mm is None else np.array([sizes_mm[int(i)] for i in true_ids], dtype=np.float64)
        return cls(ious, np.array([scores[int(i)] for i in predicted_ids], dtype=np.float64), sizes, patient)

    @property
    def n_true(self) -> int:
        return int(self.ious.shape[0])


@dataclass(frozen=True, eq=False)
class Froc:
    """A FROC curve: at `thresholds[k]` (falling) every prediction with that score or more counts.

    `sensitivity` is over all lesions of all volumes, `false_positives` per volume; `at` maps each asked rate to the
    best sensitivity at no more false positives per volume than that (a step, not interpolated: it can be reached).
    Sensitivities are nan where there is no lesion.
    """

    thresholds: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    at: dict[float, float]
    iou: float
    n_volumes: int
    n_lesions: int

    @property
    def mean_sensitivity(self) -> float:
        """Mean over the asked rates (the competition performance metric of LUNA16)."""
        return float(np.mean(list(self.at.values())))

    def threshold_for(self, false_positives: float) -> float:
        """The lowest threshold with at most `false_positives` per volume; inf if even the highest score gives more."""
        allowed = self.thresholds[self.false_positives <= false_positives]
        return float(allowed[-1]) if allowed.size else math.inf


def froc(cases: Sequence[DetectionCase], *, iou: float = 0.1, rates: Sequence[float] = FALSE_POSITIVE_RATES) -> Froc:
    """Free-response ROC over all volumes; a volume without lesions counts with its false positives.

    Raises ValueError without any case.
    """
    if not cases:
        raise ValueError("no case to evaluate")
    scores, hit, n_lesions = _pool(cases, iou)
    ends = _last_of_each_score(scores)
    found = np.cumsum(hit)[ends]
    false = np.cumsum(~hit)[ends] / len(cases)
    sensitivity = found / n_lesions if n_lesions else np.full(ends.size, math.nan)
    at = {}
    for rate in rates:
        reached = sensitivity[false <= rate]
        at[float(rate)] = float(reached[-1]) if reached.size else (0.0 if n_lesions else math.nan)
    return Froc(scores[ends], sensitivity, false, at, iou, len(cases), n_lesions)


def average_precision(cases: Sequence[DetectionCase], *, iou: float = 0.1) -> float:
    """COCO's average precision at one IoU, in 3D: mean over 101 recalls of the best precision at that recall or more.

    All volumes pooled, one class, no limit on predictions per volume. Predictions of equal score count together, so
    the order of volumes does not matter (COCO's own result depends on it). nan without any true lesion; 0 without
    predictions.
    """
    scores, hit, n_lesions = _pool(cases, iou)
    if n_lesions == 0:
        return math.nan
    ends = _last_of_each_score(scores)
    found = np.cumsum(hit)[ends]
    precision = found / (ends + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    # A recall of k/n lesions is reached at the k-th hit; the slack keeps 0.07 * 100 from asking for the 8th of 100.
    where = np.searchsorted(found, np.ceil(_RECALLS * n_lesions - 1e-9), side="left")
    return float(np.append(best_from_here, 0.0)[where].mean())


def mean_average_precision(cases: Sequence[DetectionCase], *, ious: Sequence[float] = COCO_IOUS) -> float:
    """Mean of `average_precision` over IoUs 0.1 to 0.5 in steps of 0.05."""
    return float(np.mean([average_precision(cases, iou=iou) for iou in ious]))


@dataclass(frozen=True)
class SizeGroup:
    """Lesions with `low_mm` <= longest diameter < `high_mm`: how many there are and how many were found."""

    low_mm: float
    high_mm: float
    n: int
    found: int

    @property
    def sensitivity(self) -> float:
        """nan without lesions of that size."""
        return self.found / self.n if self.n else math.nan

    @property
    def name(self) -> str:
        if math.isinf(self.high_mm):
            return f">= {self.low_mm:g} mm"
        return f"< {self.high_mm:g} mm" if self.low_mm == 0 else f"{self.low_mm:g} to {self.high_mm:g} mm"


def sensitivity_by_size(
    cases: Sequence[DetectionCase],
    *,
    threshold: float = -math.inf,
    iou: float = 0.1,
    limits_mm: Sequence[float] = SIZE_LIMITS_MM,
) -> list[SizeGroup]:
    """Sensitivity at one score threshold, by longest diameter of the true lesion.

    Raises ValueError if a case with lesions carries no sizes.
    """
    sizes: list[NDArray] = []
    found: list[NDArray] = []
    for case in cases:
        if case.n_true and case.sizes_mm is None:
            raise ValueError(f"case {case.patient or '(unnamed)'}: {case.n_true} true lesions without sizes")
        sizes.append(case.sizes_mm if case.sizes_mm is not None else np.zeros(0))
        found.append(found_lesions(case, threshold=threshold, iou=iou))
    all_sizes, all_found = np.concatenate([*sizes, []]), np.concatenate([*found, np.zeros(0, bool)])
    edges = (0.0, *limits_mm, math.inf)
    groups = []
    for low, high in itertools.pairwise(edges):
        inside = (all_sizes >= low) & (all_sizes < high)
        groups.append(SizeGroup(low, high, int(inside.sum()), int(all_found[inside].sum())))
    return groups


def found_lesions(case: DetectionCase, *, threshold: float = -math.inf, iou: float = 0.1) -> NDArray[np.bool_]:
    """(T,): which true lesions are hit by a prediction of score >= `threshold`."""
    matched = match_by_score(case.ious, case.scores, iou)
    found = np.zeros(case.n_true, dtype=bool)
    found[matched[(matched >= 0) & (case.scores >= threshold)]] = True
    return found


def _pool(cases: Sequence[DetectionCase], iou: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """All predictions, highest score first: (scores, whether it hit, number of true lesions)."""
    scores = np.concatenate([np.zeros(0), *(case.scores for case in cases)])
    hit = np.concatenate([np.zeros(0, bool), *(match_by_score(c.ious, c.scores, iou) >= 0 for c in cases)])
    order = np.argsort(-scores, kind="stable")
    return scores[order], hit[order], sum(case.n_true for case in cases)


def _last_of_each_score(falling: NDArray[np.float64]) -> NDArray[np.int64]:
    """Equal scores enter the curve together: index of the last of each."""
    return np.flatnonzero(np.append(np.diff(falling) != 0, True)) if falling.size else np.zeros(0, np.int64)


def _vector(scores: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(scores, dtype=np.float64).reshape(-1)


def _optional(sizes_mm: ArrayLike | None) -> NDArray[np.float64] | None:
    return None if sizes_mm is None else _vector(sizes_mm)
