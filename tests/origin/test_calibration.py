"""Temperature, calibration error and threshold: each against a number known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.errors import UsageError
from volseg.origin.calibration import calibrated, expected_calibration_error, fit_temperature, youden_threshold


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_logits_that_are_too_large_by_a_factor_get_that_temperature(factor, prior, rng):
    center = math.log(prior / (1 - prior))
    true = center + rng.normal(0, 1.5, 20000)
    truth = rng.random(20000) < 1 / (1 + np.exp(-true))
    shown = center + factor * (true - center)
    assert fit_temperature(shown, truth, prior=prior) == pytest.approx(factor, rel=0.05)


def test_a_head_that_knows_nothing_gives_the_prior(rng):
    logits, truth = rng.normal(0, 3, 5000), np.arange(5000) < 1000
    temperature = fit_temperature(logits, truth, prior=0.2)
    p_lung = calibrated(logits, temperature, 0.2)
    assert p_lung.mean() == pytest.approx(0.2, abs=0.03) and p_lung.std() < 0.04


def test_weights_count_as_repetitions():
    logits, truth = np.array([2.0, 1.0, -1.0, 0.5]), np.array([True, False, False, True])
    repeated = np.repeat(np.arange(4), [3, 1, 2, 1])
    assert fit_temperature(logits, truth, weights=np.array([3.0, 1, 2, 1])) == pytest.approx(
        fit_temperature(logits[repeated], truth[repeated]), rel=1e-6
    )


def test_temperature_one_and_an_even_prior_are_the_sigmoid_and_nan_stays():
    assert calibrated(np.array([0.0, math.log(3), math.nan]), 1.0) == pytest.approx([0.5, 0.75, math.nan], nan_ok=True)
    assert calibrated(np.array([math.log(9)]), 2.0) == pytest.approx([0.75])


def test_calibration_error_on_paper():
    """Two bins: four patients at .2 of whom two are lung (gap .3), one at .9 who is (gap .1): (4 x .3 + .1) / 5."""
    p, truth = np.array([0.2] * 4 + [0.9]), np.array([True, True, False, False, True])
    assert expected_calibration_error(p, truth) == pytest.approx(0.26)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0
    assert math.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_calibrated_chance_alone_gives_about_what_the_docstring_says(rng):
    n = 400
    errors = []
    for _ in range(200):
        p = rng.random(n)
        errors.append(expected_calibration_error(p, rng.random(n) < p))
    assert np.mean(errors) == pytest.approx(math.sqrt(10 / n) / 2.5, rel=0.25)


@pytest.mark.parametrize(
    ("lung", "other", "threshold"),
    [
        ([0.6, 0.8], [0.2, 0.4], 0.5),  # apart: half-way
        ([0.3, 0.6, 0.8], [0.2, 0.5], 0.55),  # two thresholds with J = 2/3 and 1/2
        ([0.5], [0.5], 0.5),  # nothing separates
        ([0.2, 0.9], [0.1, 0.5], 0.15),  # J = 1/2 at .15 and .7, equally unbalanced: the lower
    ],
)
def test_youden_on_paper(lung, other, threshold):
    p, truth = np.array(lung + other), np.arange(len(lung) + len(other)) < len(lung)
    assert youden_threshold(p, truth) == pytest.approx(threshold)


def test_youden_by_brute_force(rng):
    truth = rng.random(60) < 0.4
    p = np.round(rng.random(60) * 0.7 + 0.3 * truth, 2)
    chosen = youden_threshold(p, truth)

    def j(t: float) -> float:
        return float((p[truth] >= t).mean() + (p[~truth] < t).mean())

    assert j(chosen) == pytest.approx(max(j(t) for t in np.linspace(0, 1.01, 5000)))


def test_one_answer_only_is_refused_in_words():
    for work in (fit_temperature, youden_threshold):
        with pytest.raises(UsageError, match="with and without a lung primary, not 3 alike"):
            work(np.array([0.1, 0.2, 0.3]), np.ones(3, bool))
