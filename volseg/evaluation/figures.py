"""Figures of an evaluation. Enters: predictions, cases, estimates. Leaves: matplotlib Figures; `png` makes the bytes.

Drawn without pyplot: no global state, no window. Every legend names n.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from volseg.evaluation.calibration import decision_curve, reliability
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.classification import auc, precision_recall_curve, roc_band, roc_curve
from volseg.evaluation.detection import FALSE_POSITIVE_RATES
from volseg.evaluation.estimate import Estimate
from volseg.evaluation.external import UNITS, Predictions
from volseg.evaluation.lesion_summary import froc_band

# Told apart by colour-blind readers (after Okabe and Ito's palette).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FAINT = "#8a949e"
BAND_RESAMPLES = 500
WORST = 10


@dataclass(frozen=True, eq=False)
class Shadow:
    """One case seen from the front: masks projected along one axis (X, Z), and the size of a pixel in mm."""

    title: str
    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    pixel_mm: tuple[float, float]


def roc_figure(sets: Mapping[str, Predictions], *, rng: np.random.Generator, threshold: float | None = None) -> Figure:
    """ROC with its 95 % band over patients and, beside it, precision and recall; the frozen threshold as a dot.

    Sets without both classes are named in the legend and not drawn.
    """
    figure, (left, right) = _panels(2, width=10)
    at = np.linspace(0, 1, 101)
    for colour, (name, rows) in zip(COLOURS, sets.items(), strict=False):
        scored = ~np.isnan(rows.scores)
        y, s, who = rows.labels[scored].astype(bool), rows.scores[scored], rows.patients[scored]
        if y.all() or not y.any():
            left.plot([], [], color=colour, label=f"{name}: one class only (n = {y.size})")
            continue
        curve = roc_curve(y, s)
        area = auc(y, s, patients=None if rows.level == "patient" else who, unit=UNITS[rows.level])
        low, high = roc_band(y, s, rng=rng, at=at, patients=who, resamples=BAND_RESAMPLES)
        left.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        label = f"{name}: AUC {area.text(2)}, n = {area.n} {area.unit}"
        left.plot(curve.false_positive_rate, curve.sensitivity, color=colour, label=label)
        recall, precision = precision_recall_curve(y, s)
        label = f"{name}: {100 * y.mean():.0f} % positive"
        right.step(np.append(0, recall), np.append(precision[0], precision), color=colour, where="pre", label=label)
        if threshold is not None:
            left.plot((s[~y] >= threshold).mean(), (s[y] >= threshold).mean(), "o", color=colour)
    left.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    _finish(left, "1 - specificity", "sensitivity", square=True)
    _finish(right, "recall", "precision", square=True)
    return figure


def froc_figure(sets: Mapping[str, Sequence[CaseResult]], *, rng: np.random.Generator, iou: float = 0.1) -> Figure:
    """Lesion sensitivity against false positives per volume, with its 95 % band over patients."""
    figure, (axes,) = _panels(1, width=6.5)
    rates = np.geomspace(FALSE_POSITIVE_RATES[0], FALSE_POSITIVE_RATES[-1], 49)
    for colour, (name, cases) in zip(COLOURS, sets.items(), strict=False):
        value, low, high = froc_band(cases, rates, rng=rng, iou=iou, resamples=BAND_RESAMPLES)
        axes.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0, step="post")
        lesions = sum(len(case.true_lesions) for case in cases)
        axes.step(rates, value, color=colour, where="post", label=f"{name}: {lesions} lesions, {len(cases)} volumes")
    axes.set_xscale("log", base=2)
    axes.set_xticks(FALSE_POSITIVE_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set_ylim(-0.02, 1.02)
    _finish(axes, "false positives per volume", f"sensitivity (IoU >= {iou:g})")
    return figure


def calibration_figure(sets: Mapping[str, Predictions]) -> Figure:
    """Reliability (observed share against mean probability) and, beside it, net benefit.

    Patients have Wilson's intervals. Lesions have none: of one patient they depend on each other.
    """
    figure, (left, right) = _panels(2, width=10)
    highest = 0.05
    for colour, (name, rows) in zip(COLOURS, sets.items(), strict=False):
        scored = ~np.isnan(rows.scores)
        y, p = rows.labels[scored], rows.scores[scored]
        if not rows.probabilities or p.size == 0 or p.min() < 0 or p.max() > 1:
            left.plot([], [], color=colour, label=f"{name}: no probabilities")
            continue
        bins = [b for b in reliability(y, p) if b.observed.n]
        x, value = [b.mean_probability for b in bins], [b.observed.value for b in bins]
        limits = None
        if rows.level == "patient":
            below = [b.observed.value - b.observed.low for b in bins]
            limits = [below, [b.observed.high - b.observed.value for b in bins]]
        label = f"{name}: n = {p.size} {UNITS[rows.level]}{'' if limits else ', no intervals'}"
        left.errorbar(x, value, yerr=limits, color=colour, marker="o", capsize=2, label=label)
        curve = decision_curve(y, p)
        highest = max(highest, float(curve.model.max()), float(y.mean()))
        right.plot(curve.thresholds, curve.model, color=colour, label=name)
        right.plot(curve.thresholds, curve.treat_all, color=colour, linewidth=0.8, linestyle="--")
    left.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=":")
    _finish(left, "mean probability", "observed share", square=True)
    right.axhline(0, color=FAINT, linewidth=0.8)
    right.set_ylim(-0.25 * highest, 1.1 * highest)
    _finish(right, "threshold probability (dashed: treat all; 0: treat none)", "net benefit")
    return figure


def bland_altman_figure(cases: Sequence[CaseResult]) -> Figure:
    """Predicted minus true lesion volume against their mean, per volume with lesions; bias and limits of agreement."""
    figure, (axes,) = _panels(1, width=6.5)
    some = [case.overlap for case in cases if case.has_lesions]
    mean = np.array([(o.predicted_mm3 + o.true_mm3) / 2000 for o in some])
    difference = np.array([o.volume_difference_mm3 / 1000 for o in some])
    axes.plot(mean, difference, "o", color=COLOURS[0], alpha=0.7, markersize=4, label=f"n = {len(some)} volumes")
    if len(some) > 1:
        bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
        axes.axhline(bias, color=COLOURS[1], label=f"bias {bias:.3g} mL")
        for limit in (bias - spread, bias + spread):
            axes.axhline(limit, color=COLOURS[1], linestyle="--", linewidth=0.8)
        axes.plot(
            [], [], color=COLOURS[1], linestyle="--", label=f"limits {bias - spread:.3g} to {bias + spread:.3g} mL"
        )
    _finish(axes, "mean of predicted and true volume, mL", "predicted - true, mL")
    return figure


def forest_figure(estimates: Mapping[str, Estimate], words: str) -> Figure:
    """One line per group (site, size, scanner): value, interval, n. What is undefined is named and not drawn."""
    figure, (axes,) = _panels(1, width=6.5, height=0.9 + 0.38 * max(len(estimates), 2))
    names = [f"{name} (n = {e.n})" for name, e in estimates.items()]
    for row, estimate in enumerate(estimates.values()):
        if not math.isnan(estimate.value):
            axes.plot(estimate.value, row, "s", color=COLOURS[0])
            axes.plot([estimate.low, estimate.high], [row, row], color=COLOURS[0])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    _finish(axes, words, "")
    return figure


def worst_figure(shadows: Sequence[Shadow]) -> Figure:
    """The cases of lowest Dice from the front, up to ten: truth filled, prediction outlined."""
    columns = max(1, min(5, len(shadows)))
    rows = max(1, math.ceil(len(shadows) / columns))
    figure, panels = _panels(rows * columns, width=2.3 * columns, height=2.7 * rows, rows=rows)
    for axes in panels:
        axes.set_axis_off()
    for axes, shadow in zip(panels, shadows, strict=False):
        nx, nz = shadow.truth.shape
        extent = (0.0, nx * shadow.pixel_mm[0], 0.0, nz * shadow.pixel_mm[1])
        layer = np.full((nz, nx, 3), 0.93)
        layer[shadow.truth.T] = (0.35, 0.7, 0.9)
        axes.imshow(layer, origin="lower", extent=extent, interpolation="nearest")
        if shadow.predicted.any() and not shadow.predicted.all():
            axes.contour(shadow.predicted.T.astype(float), [0.5], colors=COLOURS[1], linewidths=1, extent=extent)
        axes.set_title(shadow.title, fontsize=8, parse_math=False)
    return figure


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as PNG bytes, the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def _panels(count: int, *, width: float, height: float = 4.6, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, list(np.asarray(figure.subplots(rows, count // rows, squeeze=False)).ravel())


def _finish(axes: Axes, x: str, y: str, *, square: bool = False) -> None:
    axes.set(xlabel=x, ylabel=y)
    if square:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)
