"""Scores and truth of a yes-or-no question -> ROC, AUC, decisions at a frozen threshold. Knows no model and no file.

A row is a patient or a lesion. Where patients have several rows, `patients` says whose each is and intervals follow.
A score of NaN is an answer nobody gave (no lesion found, indeterminate): it stays in the denominators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from volseg.evaluation.bootstrap import RESAMPLES, Clusters, band, clustered_proportion
from volseg.evaluation.estimate import Difference, Estimate, undefined, wilson

Patients = Sequence[object] | NDArray | None
NO_VARIANCE = 1e-15  # of an area or a difference of two; a sum that should be 0 may miss it by rounding


@dataclass(frozen=True, eq=False)
class RocCurve:
    """At `thresholds[k]` (falling, first inf) a score of that or more is a positive call."""

    thresholds: NDArray[np.float64]
    false_positive_rate: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    def sensitivity_at(self, false_positive_rate: ArrayLike) -> NDArray[np.float64]:
        """Linear between the corners; at a vertical step the upper end."""
        at = np.asarray(false_positive_rate, dtype=np.float64)
        upper = np.searchsorted(self.false_positive_rate, at, side="right") - 1
        exact = self.false_positive_rate[upper] == at
        between = np.interp(at, self.false_positive_rate, self.sensitivity)
        return np.where(exact, self.sensitivity[upper], between)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """Every corner of the ROC, equal scores together. ValueError without both classes or with NaN scores."""
    y, s = _both_classes(labels, scores)
    order = np.argsort(-s, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    found = np.cumsum(y[order])[ends] / y.sum()
    false = np.cumsum(~y[order])[ends] / (~y).sum()
    return RocCurve(np.append(np.inf, s[order][ends]), np.append(0.0, false), np.append(0.0, found))


def roc_band(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    rng: np.random.Generator,
    at: ArrayLike,
    patients: Patients = None,
    resamples: int = RESAMPLES,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise 95 % limits of the sensitivity at false-positive rates `at`, by resampling patients.

    Stratified by the label where each patient has one label.
    """
    y, s = _both_classes(labels, scores)
    who = np.arange(y.size) if patients is None else np.asarray(patients)
    try:
        clusters = Clusters.of(who, y)
    except ValueError:  # patients with rows of both classes
        clusters = Clusters.of(who)

    def sensitivity(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        if y[rows].all() or not y[rows].any():
            return np.full(np.shape(at), math.nan)
        return roc_curve(y[rows], s[rows]).sensitivity_at(at)

    return band(sensitivity, clusters, rng=rng, resamples=resamples)


def average_precision_score(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve as a sum of steps (not interpolated)."""
    y, s = _both_classes(labels, scores)
    recall, precision = precision_recall_curve(y, s)
    return float(np.sum(np.diff(np.append(0.0, recall)) * precision))


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(recall, precision) at every distinct score, highest first."""
    y, s = _both_classes(labels, scores)
    order = np.argsort(-s, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(s[order]) != 0, True))
    found = np.cumsum(y[order])[ends]
    return found / y.sum(), found / (ends + 1)


def auc(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    patients: Patients = None,
    scale: Literal["plain", "logit"] = "plain",
    level: float = 0.95,
    unit: str = "patients",
) -> Estimate:
    """Area under the ROC with the interval of DeLong, DeLong and Clarke-Pearson (1988).

    With `patients`, rows of one patient may depend on each other (Obuchowski 1997); with one row each it is DeLong's.
    `scale` "logit" builds the interval on log(A / (1 - A)), better near 1. nan without both classes. Where classes
    are separated perfectly the variance is 0 and says nothing: Wilson's interval for the smaller class stands in.
    Where it is 0 otherwise (all scores equal) there is no interval.
    """
    y, s = _rows(labels, scores)
    name = "DeLong" if patients is None else "Obuchowski (DeLong for clusters)"
    if y.all() or not y.any():
        return undefined(y.size, unit, name)
    areas, covariance = _areas(y, s[None], patients)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if area in (0.0, 1.0):
        smaller = min(_clusters_of(y, patients))
        bound = wilson(int(area) * smaller, smaller, level=level)
        return Estimate(area, bound.low, bound.high, y.size, unit, f"Wilson, {smaller} of the smaller class", level)
    if variance <= NO_VARIANCE:
        return Estimate(area, math.nan, math.nan, y.size, unit, f"{name}, variance 0", level)
    z = float(stats.norm.ppf(0.5 + level / 2))
    half = z * math.sqrt(variance)
    if scale == "logit":
        middle, half = math.log(area / (1 - area)), half / (area * (1 - area))
        low, high = (float(1 / (1 + np.exp(-(middle + side)))) for side in (-half, half))
        return Estimate(area, low, high, y.size, unit, f"{name}, logit", level)
    return Estimate(area, max(0.0, area - half), min(1.0, area + half), y.size, unit, name, level)


def compare_aucs(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    patients: Patients = None,
    level: float = 0.95,
    unit: str = "patients",
) -> Difference:
    """Paired DeLong test of two scores on the same rows: difference of the AUCs, its interval, two-sided p.

    nan without both classes. Where the variance is 0 there is no interval, and p is 1 if the areas are equal (the two
    rank all rows alike, say), else nan.
    """
    y, a = _rows(labels, first)
    _, b = _rows(labels, second)
    name = "paired DeLong" if patients is None else "paired Obuchowski (DeLong for clusters)"
    if y.all() or not y.any():
        return Difference(undefined(y.size, unit, name), math.nan)
    areas, covariance = _areas(y, np.stack([a, b]), patients)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= NO_VARIANCE:
        p_value = 1.0 if abs(difference) < 1e-12 else math.nan
        nothing = Estimate(difference, math.nan, math.nan, y.size, unit, f"{name}, variance 0", level)
        return Difference(nothing, p_value)
    half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    p_value = float(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)))
    return Difference(Estimate(difference, difference - half, difference + half, y.size, unit, name, level), p_value)


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold of largest sensitivity + specificity - 1, half way to the next lower score.

    Of equals the highest. To be chosen on training data and frozen. ValueError without both classes.
    """
    curve = roc_curve(labels, scores)
    gain = curve.sensitivity - curve.false_positive_rate
    best = 1 + int(np.argmax(gain[1:]))  # the first corner, "never positive", is no threshold
    if best + 1 == curve.thresholds.size:
        return float(curve.thresholds[best])
    return float((curve.thresholds[best] + curve.thresholds[best + 1]) / 2)


@dataclass(frozen=True)
class Decisions:
    """What was called at one threshold. `undecided_*`: rows of either class for which there was no score."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    undecided_positive: int = 0
    undecided_negative: int = 0

    def metrics(self, interval: Callable[..., Estimate] = wilson, *, unit: str = "patients") -> dict[str, Estimate]:
        """sensitivity, specificity, accuracy, ppv, npv, each a proportion of independent rows.

        An undecided row is never right: it counts in the denominators of the first three, and in no predictive value.
        """
        tp, fp, fn, tn = self.true_positive, self.false_positive, self.false_negative, self.true_negative
        positive, negative = tp + fn + self.undecided_positive, tn + fp + self.undecided_negative
        return {
            "sensitivity": interval(tp, positive, unit=unit),
            "specificity": interval(tn, negative, unit=unit),
            "accuracy": interval(tp + tn, positive + negative, unit=unit),
            "ppv": interval(tp, tp + fp, unit=unit),
            "npv": interval(tn, tn + fn, unit=unit),
        }


def decide(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Decisions:
    """Count calls at `score >= threshold`; NaN scores are undecided."""
    y, s = _rows(labels, scores, nan_is_undecided=True)
    called, undecided = s >= threshold, np.isnan(s)
    counts = (y & called, ~y & called, y & ~called & ~undecided, ~y & ~called & ~undecided, y & undecided)
    return Decisions(*(int(np.count_nonzero(c)) for c in (*counts, ~y & undecided)))


def clustered_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    patients: Sequence[object] | NDArray,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    unit: str = "lesions",
) -> dict[str, Estimate]:
    """As `Decisions.metrics`, for rows that cluster in patients: the same values, intervals over patients."""
    y, s = _rows(labels, scores, nan_is_undecided=True)
    who, called, undecided = np.asarray(patients), s >= threshold, np.isnan(s)
    right = np.where(y, called, ~called & ~undecided)
    among = {
        "sensitivity": y,
        "specificity": ~y,
        "accuracy": np.ones_like(y),
        "ppv": called,
        "npv": ~called & ~undecided,
    }
    return {
        name: clustered_proportion(right[rows], who[rows], rng=rng, resamples=resamples, unit=unit)
        for name, rows in among.items()
    }


@dataclass(frozen=True)
class McNemar:
    """Rows on which only one of two methods was right, and the exact two-sided p value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """Exact McNemar test of two methods on the same independent rows; p is 1 where they never differ."""
    a, b = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} decisions against {b.size}: not the same rows")
    first, second = int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))
    p_value = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
    return McNemar(first, second, p_value)


def _areas(y: NDArray[np.bool_], scores: NDArray, patients: Patients) -> tuple[NDArray, NDArray]:
    """AUCs (K,) of K scores (K, n) and their covariance (K, K), by structural components summed over patients.

    A positive's component is the share of negatives it outranks, ties half; a negative's the share of positives that
    outrank it. One row per patient gives DeLong's covariance. nan where a class has fewer than two patients.
    """
    of_positives = np.array([_share_below(s[y], s[~y]) for s in scores])
    of_negatives = np.array([1 - _share_below(s[~y], s[y]) for s in scores])
    areas = of_positives.mean(axis=1)
    who = np.arange(y.size) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    n, (n_positive, n_negative) = int(who.max()) + 1, _clusters_of(y, patients)
    if min(n_positive, n_negative) < 2:
        return areas, np.full((len(areas), len(areas)), math.nan)
    up = np.array([np.bincount(who[y], weights=v - a, minlength=n) for v, a in zip(of_positives, areas, strict=True)])
    down = np.array(
        [np.bincount(who[~y], weights=v - a, minlength=n) for v, a in zip(of_negatives, areas, strict=True)]
    )
    rows_positive, rows_negative = np.count_nonzero(y), np.count_nonzero(~y)
    cross = up @ down.T * n / (n - 1)
    covariance = (
        up @ up.T * n_positive / (n_positive - 1) / rows_positive**2
        + down @ down.T * n_negative / (n_negative - 1) / rows_negative**2
        + (cross + cross.T) / (rows_positive * rows_negative)
    )
    return areas, covariance


def _clusters_of(y: NDArray[np.bool_], patients: Patients) -> tuple[int, int]:
    """How many patients have a positive row, how many a negative one."""
    who = np.arange(y.size) if patients is None else np.asarray(patients)
    return int(np.unique(who[y]).size), int(np.unique(who[~y]).size)


def _share_below(values: NDArray, others: NDArray) -> NDArray[np.float64]:
    """For each value the share of `others` below it, ties half."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * ordered.size)


def _rows(
    labels: ArrayLike, scores: ArrayLike, *, nan_is_undecided: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    raw, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if raw.shape != s.shape or raw.ndim != 1:
        raise ValueError(f"labels {raw.shape} and scores {s.shape} are not one column each of the same length")
    if not np.isin(raw, (0, 1)).all():
        raise ValueError(f"labels are 0 or 1, not {sorted(set(raw.tolist()) - {0, 1})[:3]}")
    if np.isnan(s).any() and not nan_is_undecided:
        raise ValueError(f"{int(np.isnan(s).sum())} of {s.size} scores are NaN: leave those rows out and say so")
    return raw.astype(bool), s


def _both_classes(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    y, s = _rows(labels, scores)
    if y.all() or not y.any():
        raise ValueError(f"a ROC needs both classes; {int(y.sum())} of {y.size} rows are positive")
    return y, s
