"""Compared volumes -> figures per volume and per patient, those with lesions and those without kept apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.bootstrap import RESAMPLES, bootstrap, clustered_proportion
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.classification import Decisions, auc
from volseg.evaluation.estimate import Estimate, undefined


@dataclass(frozen=True)
class SegmentationSummary:
    """`positive`: volumes with a lesion in the truth; `negative`: those without; `patients`: is there any lesion?

    Never one mean over both: Dice of a healthy volume is 0 or 1 by convention and says nothing about outlines.
    """

    n_positive: int
    n_negative: int
    n_patients: int
    positive: Mapping[str, Estimate]
    negative: Mapping[str, Estimate]
    patients: Mapping[str, Estimate]


def summarise_segmentation(
    cases: Sequence[CaseResult], *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> SegmentationSummary:
    """Means over volumes with intervals over patients. Raises ValueError without any case.

    In `positive`: dice, nsd, sensitivity_voxels and precision_voxels are means (a missed volume counts 0), hd95_mm and
    assd_mm medians (a missed volume counts inf), volume_bias_mm3 the mean of predicted minus true, missed the share of
    volumes without any prediction. In `negative`: specificity is the share of volumes left without any mark,
    false_positives and false_positive_mm3 are means per volume.
    """
    if not cases:
        raise ValueError("no case to evaluate")
    positive = [case for case in cases if case.has_lesions]
    negative = [case for case in cases if not case.has_lesions]

    def over(some: Sequence[CaseResult], value: Callable[[CaseResult], float], middle: Callable = np.mean) -> Estimate:
        values = np.array([value(case) for case in some], dtype=np.float64)
        who = [case.patient for case in some]
        if not some:
            return undefined(0, method="no such volume")
        with np.errstate(invalid="ignore"):
            return bootstrap(lambda rows: float(middle(values[rows])), who, rng=rng, resamples=resamples)

    def share(some: Sequence[CaseResult], is_so: Callable[[CaseResult], bool]) -> Estimate:
        marks = [is_so(case) for case in some]
        return clustered_proportion(marks, [c.patient for c in some], rng=rng, resamples=resamples, unit="volumes")

    return SegmentationSummary(
        n_positive=len(positive),
        n_negative=len(negative),
        n_patients=len({case.patient for case in cases}),
        positive={
            "dice": over(positive, lambda c: c.overlap.dice),
            "nsd": over(positive, lambda c: c.nsd),
            "hd95_mm": over(positive, lambda c: c.hd95_mm, _median),
            "assd_mm": over(positive, lambda c: c.assd_mm, _median),
            "sensitivity_voxels": over(positive, lambda c: c.overlap.sensitivity),
            "precision_voxels": over(positive, lambda c: c.overlap.precision),
            "volume_bias_mm3": over(positive, lambda c: c.overlap.volume_difference_mm3),
            "missed": share(positive, lambda c: not c.predicted_lesions),
        },
        negative={
            "specificity": share(negative, lambda c: not c.predicted_lesions),
            "false_positives": over(negative, lambda c: float(len(c.predicted_lesions))),
            "false_positive_mm3": over(negative, lambda c: c.overlap.false_positive_mm3),
        },
        patients=summarise_patients(cases),
    )


def summarise_patients(cases: Sequence[CaseResult]) -> dict[str, Estimate]:
    """Patient level: does the patient have any lesion? Called positive if any volume holds a predicted lesion.

    sensitivity, specificity, accuracy, ppv, npv with Wilson's intervals; auc (DeLong) of the highest lesion score,
    0 for a patient without prediction.
    """
    names, truth, called, score = patient_calls(cases)
    decisions = Decisions(
        int(np.sum(truth & called)),
        int(np.sum(~truth & called)),
        int(np.sum(truth & ~called)),
        int(np.sum(~truth & ~called)),
    )
    return {"auc": auc(truth, score), **decisions.metrics()} if names.size else {}


def patient_calls(
    cases: Sequence[CaseResult],
) -> tuple[NDArray, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """(names, has a lesion, has a predicted lesion, highest score) per patient, in order of name."""
    names = np.array(sorted({case.patient for case in cases}))
    groups = [[case for case in cases if case.patient == name] for name in names]
    truth = np.array([any(case.has_lesions for case in group) for group in groups], dtype=bool)
    called = np.array([any(case.predicted_lesions for case in group) for group in groups], dtype=bool)
    score = np.array([max(case.patient_score for case in group) for group in groups], dtype=np.float64)
    return names, truth, called, score


def _median(values: NDArray[np.float64]) -> float:
    """Median of values that may be inf: infinite as soon as the upper middle is."""
    ordered = np.sort(values)
    low, high = ordered[(values.size - 1) // 2], ordered[values.size // 2]
    return float(high) if math.isinf(high) else float((low + high) / 2)
