"""Logits and answers in; a temperature, a calibration error and a threshold out. Plain arrays, no model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

from volseg.errors import UsageError

TEMPERATURES = (0.05, 20.0)


def calibrated(logits: NDArray, temperature: float, prior: float = 0.5) -> NDArray[np.float64]:
    """Probabilities of logits: sigmoid(c + (logit - c) / temperature), where c is the prior's own logit.

    With a prior of .5 this is temperature scaling (Guo et al., ICML 2017). With another, a head that knows nothing
    (temperature without limit) gives the prior, where the plain formula would give .5. NaN stays NaN.
    """
    center = math.log(prior / (1 - prior))
    return expit(center + (np.asarray(logits, dtype=np.float64) - center) / temperature)


def fit_temperature(
    logits: NDArray, truth: NDArray[np.bool_], *, prior: float = 0.5, weights: NDArray | None = None
) -> float:
    """The temperature in 0.05..20 with the smallest (weighted) log loss on `logits` (n,) against `truth` (n,).

    Above 1 the logits were too sure. Raises UsageError without both answers.
    """
    truth = _both_answers(truth, "a temperature")
    weights = np.ones(len(truth)) if weights is None else weights
    center, sign = math.log(prior / (1 - prior)), np.where(truth, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        scaled = center + (logits - center) / math.exp(log_temperature)
        return float(-(weights * log_expit(sign * scaled)).sum())

    low, high = TEMPERATURES
    return math.exp(minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded").x)


def expected_calibration_error(probabilities: NDArray, truth: NDArray[np.bool_], *, bins: int = 10) -> float:
    """Mean gap between stated and observed fraction of lung over `bins` equal bins of 0..1, weighted by their size.

    0 is perfect. NaN of nothing. With few patients chance alone gives about sqrt(bins / n) / 2.5.
    """
    if len(probabilities) == 0:
        return math.nan
    where = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    gap = np.bincount(where, probabilities - np.asarray(truth, dtype=np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(probabilities))


def youden_threshold(probabilities: NDArray, truth: NDArray[np.bool_]) -> float:
    """The threshold with the largest sensitivity + specificity - 1; lung is called from it upwards.

    It lies half-way between two neighbouring probabilities, so that rounding moves nobody across it. Of equally good
    ones the most balanced is taken, then the lowest. Where nothing separates (one value for all) it is that value.
    Raises UsageError without both answers.
    """
    truth = _both_answers(truth, "a threshold")
    values = np.unique(probabilities)
    if values.size == 1:
        return float(values[0])
    thresholds = (values[1:] + values[:-1]) / 2
    positive, negative = np.sort(probabilities[truth]), np.sort(probabilities[~truth])
    sensitivity = 1 - np.searchsorted(positive, thresholds) / positive.size
    specificity = np.searchsorted(negative, thresholds) / negative.size
    # Rounded, so that equally good thresholds tie whatever the order of the sum.
    order = np.lexsort((thresholds, np.abs(sensitivity - specificity), -np.round(sensitivity + specificity, 12)))
    return float(thresholds[order[0]])


def _both_answers(truth: NDArray, what: str) -> NDArray[np.bool_]:
    truth = np.asarray(truth, dtype=bool)
    if truth.all() or not truth.any():
        raise UsageError(
            "origin-cohort", f"{what} needs patients with and without a lung primary, not {truth.size} alike"
        )
    return truth
