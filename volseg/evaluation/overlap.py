"""Predicted mask and true mask -> overlap and volumes of one case. What emptiness means stands at each number.

A mean over cases belongs to one kind of case: Dice, IoU and sensitivity to those with a lesion in the truth,
specificity and false-positive volume to those without. `tables.py` keeps them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.geometry import voxel_volume_mm3


@dataclass(frozen=True)
class Overlap:
    """Voxel counts of one case, and the size of a voxel."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    voxel_mm3: float

    @property
    def true_voxels(self) -> int:
        return self.true_positive + self.false_negative

    @property
    def predicted_voxels(self) -> int:
        return self.true_positive + self.false_positive

    @property
    def dice(self) -> float:
        """2 |A and B| / (|A| + |B|). 1 if both masks are empty, 0 if one is (MONAI: nan if both are)."""
        both = self.true_voxels + self.predicted_voxels
        return 2 * self.true_positive / both if both else 1.0

    @property
    def iou(self) -> float:
        """|A and B| / |A or B|. 1 if both masks are empty, 0 if one is."""
        union = self.true_positive + self.false_positive + self.false_negative
        return self.true_positive / union if union else 1.0

    @property
    def sensitivity(self) -> float:
        """Share of true lesion voxels that were marked. nan if the truth is empty."""
        return _ratio(self.true_positive, self.true_voxels)

    @property
    def precision(self) -> float:
        """Share of marked voxels that are lesion. nan if both masks are empty.

        0 if only the prediction is empty: a missed patient must not leave the mean.
        """
        if self.predicted_voxels == 0:
            return 0.0 if self.true_voxels else math.nan
        return self.true_positive / self.predicted_voxels

    @property
    def specificity(self) -> float:
        """Share of background voxels left unmarked. nan if the truth fills the grid. Depends on the field of view."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def true_mm3(self) -> float:
        return self.true_voxels * self.voxel_mm3

    @property
    def predicted_mm3(self) -> float:
        return self.predicted_voxels * self.voxel_mm3

    @property
    def false_positive_mm3(self) -> float:
        return self.false_positive * self.voxel_mm3

    @property
    def volume_difference_mm3(self) -> float:
        """Predicted minus true volume: positive if too much was marked."""
        return self.predicted_mm3 - self.true_mm3

    @property
    def relative_volume_difference(self) -> float:
        """Predicted minus true, over true. nan if the truth is empty."""
        return _ratio(self.predicted_voxels - self.true_voxels, self.true_voxels)


def overlap(predicted: NDArray, truth: NDArray, affine: ArrayLike) -> Overlap:
    """Count voxels of two masks on one grid; every value above 0 is lesion, so instance maps may come as they are.

    Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, truth {truth.shape}")
    p, t = predicted > 0, truth > 0
    both, marked, lesion = (int(np.count_nonzero(mask)) for mask in (p & t, p, t))
    return Overlap(
        true_positive=both,
        false_positive=marked - both,
        false_negative=lesion - both,
        true_negative=p.size - marked - lesion + both,
        voxel_mm3=voxel_volume_mm3(affine),
    )


def pooled(cases: Iterable[Overlap]) -> Overlap:
    """All voxels of all cases as one: large lesions dominate. Only to stand beside papers that report it so (BM-Seg).

    The voxel size is nan where cases differ in it. Raises ValueError without any case.
    """
    listed = list(cases)
    if not listed:
        raise ValueError("no case to pool")
    sizes = {case.voxel_mm3 for case in listed}
    return Overlap(
        true_positive=sum(case.true_positive for case in listed),
        false_positive=sum(case.false_positive for case in listed),
        false_negative=sum(case.false_negative for case in listed),
        true_negative=sum(case.true_negative for case in listed),
        voxel_mm3=sizes.pop() if len(sizes) == 1 else math.nan,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
