"""Figures -> tables of text, with units, n and intervals in every cell that can carry them. Writes no file."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.evaluation.bootstrap import RESAMPLES, bootstrap
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.estimate import Estimate, undefined
from volseg.evaluation.external import Performance, Subgroup
from volseg.evaluation.lesion_summary import LesionSummary
from volseg.evaluation.matching import match_optimally
from volseg.evaluation.segmentation import SegmentationSummary

MISSING = "not recorded"
_NUMBER = r"-?(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|inf|nan)"
_FIGURE = re.compile(rf"{_NUMBER}(?: \({_NUMBER} to {_NUMBER}\))?")


@dataclass(frozen=True)
class Table:
    """`rows` hold one text per column. `note` says what a reader must know to read it rightly."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row of {len(row)} cells under {len(self.columns)} columns")

    def to_csv(self) -> str:
        """Header and rows; a text that a spreadsheet would run as a formula is prefixed with an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([[harmless(cell) for cell in row] for row in (self.columns, *self.rows)])
        return text.getvalue()


@dataclass(frozen=True)
class SeedRow:
    """One line of `seed_table`: which cohort, at which level, and what is known there."""

    cohort: str
    level: str
    question: str
    n: str
    dice: Estimate | None
    metrics: Mapping[str, Estimate]


def seed_table(rows: Sequence[SeedRow]) -> Table:
    """DSC, sensitivity, specificity, AUC and accuracy, training and external, at lesion and at patient level."""
    keys = ("sensitivity", "specificity", "auc", "accuracy")
    return Table(
        "Training and external validation",
        ("cohort", "level", "question", "n", "DSC", "sensitivity", "specificity", "AUC", "accuracy"),
        tuple(
            (row.cohort, row.level, row.question, row.n, text(row.dice), *(text(row.metrics.get(key)) for key in keys))
            for row in rows
        ),
        "Value (95 % interval). DSC at patient level: mean over volumes with a lesion in the truth; at lesion level: "
        "mean over true lesions, 0 for a missed one. Lesions have no true negatives when the question is whether "
        "they were found: specificity, AUC and accuracy do not exist there.",
    )


def lesion_dice(
    cases: Sequence[CaseResult], *, rng: np.random.Generator, iou: float = 0.1, resamples: int = RESAMPLES
) -> Estimate:
    """Mean Dice over true lesions, each with its matched prediction; 0 for a missed one. Interval over patients."""
    values, owner = [], []
    for case in cases:
        ious = case.iou_matrix()
        dice = np.zeros(len(case.true_lesions))
        for t, p in match_optimally(ious, iou):
            dice[t] = 2 * ious[t, p] / (1 + ious[t, p])
        values.append(dice)
        owner += [case.patient] * dice.size
    pooled = np.concatenate([np.zeros(0), *values])
    if pooled.size == 0:
        return undefined(0, "lesions")
    over = bootstrap(lambda rows: float(pooled[rows].mean()), owner, rng=rng, resamples=resamples)
    return Estimate(over.value, over.low, over.high, pooled.size, "lesions", over.method)


def segmentation_table(summary: SegmentationSummary, tolerance_mm: float) -> Table:
    """Outlines where there are lesions, marks where there are none."""
    with_lesions = {
        "dice": "DSC, mean",
        "nsd": f"NSD at {tolerance_mm:g} mm, mean",
        "hd95_mm": "HD95, median, mm",
        "assd_mm": "ASSD, median, mm",
        "sensitivity_voxels": "voxel sensitivity, mean",
        "precision_voxels": "voxel precision, mean",
        "volume_bias_mm3": "volume bias (predicted - true), mean, mm³",
        "missed": "volumes without any prediction, share",
    }
    without = {
        "specificity": "volumes left unmarked, share",
        "false_positives": "false positives per volume, mean",
        "false_positive_mm3": "false-positive volume, mean, mm³",
    }
    rows = [("with lesions", words, *cells(summary.positive[key])) for key, words in with_lesions.items()]
    rows += [("without lesions", words, *cells(summary.negative[key])) for key, words in without.items()]
    return Table(
        "Segmentation, per volume",
        ("volumes", "figure", "value (95 % interval)", "n"),
        tuple(rows),
        "A missed volume counts DSC 0, NSD 0, HD95 inf. Healthy volumes are in no mean of the first block.",
    )


def patient_table(summary: SegmentationSummary) -> Table:
    """Does the patient have any lesion?"""
    return Table(
        "Any lesion, per patient",
        ("figure", "value (95 % interval)", "n"),
        tuple(("AUC" if key == "auc" else key, *cells(estimate)) for key, estimate in summary.patients.items()),
        "A patient is called positive if any lesion is predicted; the score of the AUC is that of the surest lesion.",
    )


def lesion_table(summary: LesionSummary) -> Table:
    """Found, missed and invented lesions at every IoU, FROC, by size and by kind."""
    rows: list[tuple[str, ...]] = []
    for at in summary.sensitivity:
        rule = f"IoU >= {at:g}" if at else "any overlap"
        rows += [
            ("sensitivity", rule, *cells(summary.sensitivity[at])),
            ("precision", rule, *cells(summary.precision[at])),
            ("F1", rule, *cells(summary.f1[at])),
            ("false positives per volume", rule, *cells(summary.false_positives[at])),
        ]
    rule = f"IoU >= {summary.iou:g}"
    rows += [(f"sensitivity at {rate:g} FP per volume", rule, *cells(e)) for rate, e in summary.froc.items()]
    rows.append(("mean of these (FROC score)", rule, *cells(summary.froc_mean)))
    rows += [
        ("average precision", f"IoU >= {at:g}", number(ap), str(summary.n_lesions))
        for at, ap in summary.average_precision.items()
    ]
    rows += [(f"sensitivity, {name}", rule, *cells(e)) for name, e in summary.by_size.items()]
    rows += [(f"sensitivity, {name}", rule, *cells(e)) for name, e in summary.by_kind.items()]
    note = "Matching is one to one. Sizes are longest axial diameters of the true lesions."
    if not summary.scored:
        note += " Predictions came without scores: FROC and average precision rest on a single operating point."
    return Table("Lesions", ("figure", "rule", "value (95 % interval)", "n"), tuple(rows), note)


def performance_table(columns: Mapping[str, Performance], title: str) -> Table:
    """Metrics in rows, cohorts in columns: AUC, decisions at the frozen threshold, calibration, the undecided."""
    names = ("auc", "sensitivity", "specificity", "accuracy", "ppv", "npv")
    shown = list(columns.values())
    rows: list[tuple[str, ...]] = [
        ("rows (patients)", *(f"{p.n_rows} ({p.n_patients})" for p in shown)),
        ("positive", *(f"{p.n_positive}" for p in shown)),
        ("without an answer", *(f"{p.n_undecided}" for p in shown)),
        ("threshold (frozen)", *(number(p.threshold) for p in shown)),
    ]
    rows += [(name if name != "auc" else "AUC", *(text(p.metrics[name]) for p in shown)) for name in names]
    rows += [
        ("calibration slope", *(text(p.calibration.slope if p.calibration else None) for p in shown)),
        ("calibration in the large", *(text(p.calibration.in_the_large if p.calibration else None) for p in shown)),
        ("Brier score", *(number(p.calibration.brier) if p.calibration else "n/a" for p in shown)),
        ("expected calibration error", *(number(p.calibration.ece) if p.calibration else "n/a" for p in shown)),
        ("rows of exactly 0 or 1", *(f"{p.calibration.n_certain}" if p.calibration else "n/a" for p in shown)),
    ]
    methods = sorted({m.method for p in shown for m in p.metrics.values() if m.method})
    methods += sorted({p.calibration.slope.method for p in shown if p.calibration and p.calibration.slope.method})
    note = f"Intervals: {'; '.join(methods)}. Rows without an answer count as wrong, except in AUC and calibration."
    if any(p.calibration and p.calibration.n_certain for p in shown):
        note += " What says exactly 0 or 1 has no log odds: with any such row there is no slope and none in the large."
    return Table(title, ("figure", *columns), tuple(rows), note)


def subgroup_table(groups: Sequence[Subgroup], title: str = "Subgroups") -> Table:
    """One line per subgroup. Small groups have wide intervals: that is the information."""
    return Table(
        title,
        ("variable", "value", "n (positive)", "AUC", "sensitivity", "specificity", "accuracy"),
        tuple(
            (
                group.variable,
                group.value,
                f"{group.performance.n_rows} ({group.performance.n_positive})",
                *(text(group.performance.metrics[m]) for m in ("auc", "sensitivity", "specificity", "accuracy")),
            )
            for group in groups
        ),
        "Not corrected for the number of subgroups; differences between rows are no tests.",
    )


def table1(
    records: Sequence[Mapping[str, Any]],
    *,
    by: str = "site",
    title: str = "Table 1. Patients",
    not_for_all: Sequence[str] = (),
) -> Table:
    """Who was studied: one column per value of `by`. A record is a patient: column name -> number, text or None.

    A column that holds numbers only is given as median (quartiles), any other as counts (%). What is missing is
    counted, never left out in silence; only for columns in `not_for_all` (the size of a lesion) None means that there
    is nothing to record.
    """
    if not records:
        raise ValueError("no patient to describe")
    groups = sorted({_word(record.get(by)) for record in records})
    members = {name: [r for r in records if _word(r.get(by)) == name] for name in groups}
    rows: list[tuple[str, ...]] = [("patients", *(str(len(members[g])) for g in groups))]
    for variable in [name for name in dict.fromkeys(key for r in records for key in r) if name not in (by, "patient")]:
        values = {g: [r.get(variable) for r in members[g]] for g in groups}
        present = [v for column in values.values() for v in column if not _absent(v)]
        if not present:
            continue
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in present):
            rows.append((f"{variable}, median (quartiles)", *(_quartiles(values[g]) for g in groups)))
            if variable not in not_for_all and any(_absent(v) for column in values.values() for v in column):
                rows.append((f"{variable}, {MISSING}", *(str(sum(map(_absent, values[g]))) for g in groups)))
        else:
            for value in sorted({_word(v) for column in values.values() for v in column}):
                rows.append((f"{variable}: {value}", *(_share(values[g], value) for g in groups)))
    return Table(title, ("", *groups), tuple(rows), "Counts with % of the column's patients; medians with quartiles.")


def text(estimate: Estimate | None) -> str:
    """Value (interval) with as many digits as it deserves; "n/a" where there is none."""
    return "n/a" if estimate is None else estimate.text(_digits(estimate.value))


def cells(estimate: Estimate) -> tuple[str, str]:
    """(value with interval, n with unit)."""
    return text(estimate), f"{estimate.n} {estimate.unit}"


def number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 3 if not math.isfinite(value) or abs(value) < 10 else 1 if abs(value) < 1000 else 0


def harmless(cell: str) -> str:
    """The text as a spreadsheet may hold it: prefixed with an apostrophe where it would be run as a formula.

    Those begin with = + @, a tab or a line break, or with - unless it is a number, alone or with its interval.
    """
    runs = cell.startswith(("=", "+", "@", "\t", "\r", "\n")) or (cell.startswith("-") and not _FIGURE.fullmatch(cell))
    return f"'{cell}" if runs else cell


def _absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _word(value: Any) -> str:
    return MISSING if _absent(value) else str(value)


def _quartiles(values: Sequence[Any]) -> str:
    known = np.array([v for v in values if not _absent(v)], dtype=np.float64)
    if known.size == 0:
        return "n/a"
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def _share(values: Sequence[Any], value: str) -> str:
    count = sum(_word(v) == value for v in values)
    return f"{count} ({100 * count / len(values):.0f} %)" if values else "0"
