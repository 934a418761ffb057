"""Figures show the numbers they are given, and survive what real cohorts lack."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from volseg.evaluation.cases import compare_case
from volseg.evaluation.classification import roc_curve
from volseg.evaluation.estimate import Estimate, wilson
from volseg.evaluation.external import Predictions
from volseg.evaluation.figures import (
    Shadow,
    bland_altman_figure,
    calibration_figure,
    forest_figure,
    froc_figure,
    png,
    roc_figure,
    worst_figure,
)

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def predictions(rng, n: int = 40, *, positive: bool = True) -> Predictions:
    labels = np.arange(n) % 2 if positive else np.zeros(n, int)
    scores = np.clip(0.4 + 0.2 * labels + rng.normal(0, 0.2, n), 0, 1)
    return Predictions(np.array([f"p{i}" for i in range(n)]), labels, scores, np.full(n, "A"))


def rod(name: str, truth: slice, predicted: slice):
    t, p = np.zeros((30, 1, 1), np.uint8), np.zeros((30, 1, 1), np.uint8)
    t[truth], p[predicted] = 1, 1
    return compare_case(p, t, AFFINE, case=name, patient=name)


def pixels(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("L")).astype(int)


def test_the_roc_drawn_is_the_roc_computed_and_the_threshold_lies_on_it(rng):
    rows = predictions(rng)
    axes = roc_figure({"external": rows}, rng=rng, threshold=0.5).axes[0]
    curve = roc_curve(rows.labels, rows.scores)
    assert np.array_equal(axes.lines[0].get_ydata(), curve.sensitivity)
    x, y = axes.lines[1].get_xdata()[0], axes.lines[1].get_ydata()[0]
    assert y in curve.sensitivity and x in curve.false_positive_rate
    assert "n = 40 patients" in axes.get_legend().get_texts()[0].get_text()


def test_a_cohort_of_one_class_is_named_instead_of_drawn(rng):
    figure = roc_figure({"healthy": predictions(rng, positive=False)}, rng=rng)
    assert "one class only (n = 40)" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_the_froc_reaches_the_sensitivity_of_the_cases(rng):
    cases = [rod("a", slice(0, 10), slice(0, 10)), rod("b", slice(0, 10), slice(20, 25))]
    (line,) = froc_figure({"A": cases}, rng=rng).axes[0].lines
    assert line.get_ydata()[-1] == 0.5 and line.get_xdata()[0] == pytest.approx(0.125)


def test_calibration_bins_and_net_benefit_are_drawn_only_for_probabilities(rng):
    figure = calibration_figure({"A": predictions(rng)})
    assert len(figure.axes[1].lines) == 3  # model, treat all, treat none
    rows = predictions(rng)
    logits = Predictions(rows.patients, rows.labels, rows.scores * 9 - 4, rows.sites)
    for none in (logits, replace(rows, probabilities=False)):
        assert "no probabilities" in calibration_figure({"A": none}).axes[0].get_legend().get_texts()[0].get_text()


def test_bars_of_the_calibration_claim_no_independent_lesions(rng):
    rows = predictions(rng)
    for level, bars, words in (("patient", True, "n = 40 patients"), ("lesion", False, "n = 40 lesions, no intervals")):
        axes = calibration_figure({"A": replace(rows, level=level)}).axes[0]
        assert axes.containers[0].has_yerr is bars
        assert axes.get_legend().get_texts()[0].get_text() == f"A: {words}"


def test_bland_altman_holds_every_volume_with_lesions_and_their_bias():
    cases = [rod("a", slice(0, 10), slice(0, 12)), rod("b", slice(0, 10), slice(0, 8)), rod("c", slice(0), slice(0, 5))]
    axes = bland_altman_figure(cases).axes[0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.004, -0.004])
    assert axes.lines[1].get_ydata()[0] == pytest.approx(0)
    assert len(bland_altman_figure(cases[2:]).axes[0].lines[0].get_ydata()) == 0


def test_a_forest_names_what_it_cannot_draw():
    figure = forest_figure({"A": wilson(8, 10), "B": Estimate(math.nan, math.nan, math.nan, 0)}, "sensitivity")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["A (n = 10)", "B (n = 0)"] and len(axes.lines) == 2
    assert axes.lines[1].get_xdata()[0] == pytest.approx(wilson(8, 10).low)


def test_every_figure_becomes_a_picture_and_the_same_twice(rng):
    shadow = np.zeros((20, 12), bool)
    shadow[3:9, 4:7] = True
    figures = [
        worst_figure([Shadow("a $x", shadow, ~shadow, (1.0, 2.0)), Shadow("b", shadow, shadow & False, (1.0, 2.0))]),
        worst_figure([]),
        forest_figure({}, "nothing"),
        bland_altman_figure([]),
    ]
    assert pixels(figures[0]).std() > 5
    for figure in figures:
        assert png(figure) == png(figure)
