"""Compared volumes -> lesion figures with intervals over patients: found, invented, FROC, by size, by kind."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.evaluation.bootstrap import RESAMPLES, Clusters, bootstrap, clustered_proportion, quantiles, replicates
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.detection import FALSE_POSITIVE_RATES, SIZE_LIMITS_MM, SizeGroup, average_precision
from volseg.evaluation.estimate import Estimate, wilson
from volseg.evaluation.matching import match_by_score

ANY_OVERLAP = 0.0
IOUS = (0.1, 0.3, 0.5, ANY_OVERLAP)


@dataclass(frozen=True)
class LesionSummary:
    """All predictions counted as they came, at each IoU of `IOUS`; FROC, sizes and kinds at `iou`.

    `sensitivity[iou]` is a share of lesions, `precision` and `f1` pool lesions over volumes,
    `false_positives` counts per volume, `froc[rate]` the sensitivity at that many false positives per volume.
    """

    iou: float
    n_lesions: int
    n_volumes: int
    n_patients: int
    sensitivity: Mapping[float, Estimate]
    precision: Mapping[float, Estimate]
    f1: Mapping[float, Estimate]
    false_positives: Mapping[float, Estimate]
    froc: Mapping[float, Estimate]
    froc_mean: Estimate
    average_precision: Mapping[float, float]
    by_size: Mapping[str, Estimate]
    by_kind: Mapping[str, Estimate]
    scored: bool


def summarise_lesions(
    cases: Sequence[CaseResult], *, rng: np.random.Generator, iou: float = 0.1, resamples: int = RESAMPLES
) -> LesionSummary:
    """Every lesion figure of one set of volumes. Raises ValueError without any case."""
    if not cases:
        raise ValueError("no case to evaluate")
    patients = np.array([case.patient for case in cases])
    strata = with_and_without_lesions(cases)
    true = np.array([len(case.true_lesions) for case in cases])
    predicted = np.array([len(case.predicted_lesions) for case in cases])
    owner = np.repeat(patients, true)
    found = {at: np.concatenate([np.zeros(0, bool), *(case.found(at) for case in cases)]) for at in IOUS}
    hits = {at: np.array([int(case.found(at).sum()) for case in cases]) for at in IOUS}

    def over_cases(statistic: Callable[[NDArray], float], unit: str) -> Estimate:
        return bootstrap(statistic, patients, rng=rng, strata=strata, resamples=resamples, unit=unit)

    # Bound at definition: a closure over the loop's name would see its last value.
    def precision_of(hit: NDArray) -> Callable[[NDArray], float]:
        return lambda rows: _ratio(hit[rows].sum(), predicted[rows].sum())

    def f1_of(hit: NDArray) -> Callable[[NDArray], float]:
        return lambda rows: _ratio(2 * hit[rows].sum(), true[rows].sum() + predicted[rows].sum())

    def false_of(hit: NDArray) -> Callable[[NDArray], float]:
        return lambda rows: float((predicted[rows] - hit[rows]).mean())

    froc, froc_mean = froc_estimates(cases, rng=rng, iou=iou, resamples=resamples)
    sizes = np.array([lesion.longest_axial_diameter_mm for case in cases for lesion in case.true_lesions])
    kinds = np.array([lesion.kind for case in cases for lesion in case.true_lesions], dtype=object)
    return LesionSummary(
        iou=iou,
        n_lesions=int(true.sum()),
        n_volumes=len(cases),
        n_patients=int(np.unique(patients).size),
        sensitivity={at: clustered_proportion(found[at], owner, rng=rng, resamples=resamples) for at in IOUS},
        precision={at: over_cases(precision_of(hits[at]), "patients") for at in IOUS},
        f1={at: over_cases(f1_of(hits[at]), "patients") for at in IOUS},
        false_positives={at: over_cases(false_of(hits[at]), "patients") for at in IOUS},
        froc=froc,
        froc_mean=froc_mean,
        average_precision={at: average_precision([case.detection() for case in cases], iou=at) for at in IOUS if at},
        by_size={
            group.name: _share(cases, iou, (sizes >= group.low_mm) & (sizes < group.high_mm), rng, resamples)
            for group in _size_groups()
        },
        by_kind={str(kind): _share(cases, iou, kinds == kind, rng, resamples) for kind in sorted(set(kinds) - {""})},
        scored=all(case.scored for case in cases),
    )


def froc_estimates(
    cases: Sequence[CaseResult],
    *,
    rng: np.random.Generator,
    iou: float = 0.1,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    resamples: int = RESAMPLES,
) -> tuple[dict[float, Estimate], Estimate]:
    """Sensitivity at each rate of false positives per volume, and their mean, with intervals over patients.

    Where all or none are found in every resample, Wilson's interval on the number of patients with lesions stands in
    (see `clustered_proportion`). Otherwise it is nan where all resamples are alike, or where one patient alone has
    lesions and is in every resample: the spread between patients was not seen.
    """
    curve = _FrocOfRows(cases, iou, np.asarray(rates, dtype=np.float64))
    clusters = Clusters.of([case.patient for case in cases], with_and_without_lesions(cases))
    value = curve(np.arange(len(cases)))
    method = f"percentile bootstrap over patients, {resamples} resamples"
    if clusters.n < 2 or np.isnan(value).any():
        limits = [(math.nan, math.nan)] * (len(value) + 1)
    else:
        drawn = replicates(curve, clusters, rng=rng, resamples=resamples)
        limits = [quantiles(column, (0.025, 0.975)) for column in (*drawn.T, drawn.mean(axis=1))]
        diseased = len({case.patient for case in cases if case.has_lesions})
        for n, (low, high) in enumerate(limits):
            if low == high and low in (0.0, 1.0):
                bound = wilson(int(low) * diseased, diseased)
                limits[n] = (bound.low, bound.high)
            elif low == high or diseased < 2:
                limits[n] = (math.nan, math.nan)
    estimates = [
        Estimate(float(v), *limit, n=curve.n_lesions, unit="lesions", method=method)
        for v, limit in zip((*value, value.mean()), limits, strict=True)
    ]
    return dict(zip((float(r) for r in rates), estimates[:-1], strict=True)), estimates[-1]


def froc_band(
    cases: Sequence[CaseResult],
    rates: ArrayLike,
    *,
    rng: np.random.Generator,
    iou: float = 0.1,
    resamples: int = RESAMPLES,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(sensitivity, low, high) at each rate: a FROC curve to draw."""
    at = np.asarray(rates, dtype=np.float64)
    estimates, _ = froc_estimates(cases, rng=rng, iou=iou, rates=at.tolist(), resamples=resamples)
    rows = np.array([[e.value, e.low, e.high] for e in estimates.values()])
    return rows[:, 0], rows[:, 1], rows[:, 2]


def with_and_without_lesions(cases: Sequence[CaseResult]) -> NDArray[np.bool_]:
    """Per volume: does its patient have a lesion anywhere? The strata of every resample over volumes."""
    diseased = {case.patient for case in cases if case.has_lesions}
    return np.array([case.patient in diseased for case in cases], dtype=bool)


class _FrocOfRows:
    """Sensitivities at fixed rates for any multiset of volumes: predictions are matched and sorted once."""

    def __init__(self, cases: Sequence[CaseResult], iou: float, rates: NDArray[np.float64]) -> None:
        detections = [case.detection() for case in cases]
        scores = np.concatenate([np.zeros(0), *(d.scores for d in detections)])
        hit = np.concatenate([np.zeros(0, bool), *(match_by_score(d.ious, d.scores, iou) >= 0 for d in detections)])
        order = np.argsort(-scores, kind="stable")
        self.hit = hit[order]
        self.owner = np.repeat(np.arange(len(cases)), [d.scores.size for d in detections])[order]
        self.ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if scores.size else np.zeros(0, int)
        self.true = np.array([d.n_true for d in detections])
        self.rates = rates
        self.n_lesions = int(self.true.sum())

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        lesions = self.true[rows].sum()
        if lesions == 0:
            return np.full(self.rates.size, math.nan)
        times = np.bincount(rows, minlength=self.true.size)[self.owner]
        found = np.cumsum(times * self.hit)[self.ends] / lesions
        false = np.cumsum(times * ~self.hit)[self.ends] / rows.size
        reached = np.searchsorted(false, self.rates, side="right")
        return np.append(0.0, found)[reached]


def _share(
    cases: Sequence[CaseResult], iou: float, inside: NDArray, rng: np.random.Generator, resamples: int
) -> Estimate:
    found = np.concatenate([np.zeros(0, bool), *(case.found(iou) for case in cases)])
    owner = np.repeat(np.array([case.patient for case in cases]), [len(case.true_lesions) for case in cases])
    return clustered_proportion(found[inside], owner[inside], rng=rng, resamples=resamples)


def _size_groups() -> list[SizeGroup]:
    edges = (0.0, *SIZE_LIMITS_MM, math.inf)
    return [SizeGroup(low, high, 0, 0) for low, high in itertools.pairwise(edges)]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
