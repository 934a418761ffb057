"""Compared volumes and answers -> the parts of the page: which tables and figures stand together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from volseg.evaluate.compare import EvaluateOptions, shadow_of
from volseg.evaluate.pairs import Pair
from volseg.evaluation.bootstrap import bootstrap
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.estimate import Estimate
from volseg.evaluation.external import Performance, Predictions, Subgroup
from volseg.evaluation.figures import (
    WORST,
    bland_altman_figure,
    calibration_figure,
    forest_figure,
    froc_figure,
    png,
    roc_figure,
    worst_figure,
)
from volseg.evaluation.lesion_summary import LesionSummary, summarise_lesions
from volseg.evaluation.page import Section
from volseg.evaluation.segmentation import SegmentationSummary, summarise_segmentation
from volseg.evaluation.tables import (
    Table,
    lesion_table,
    number,
    patient_table,
    performance_table,
    segmentation_table,
    subgroup_table,
    table1,
)
from volseg.io.cohort import Patient


@dataclass(frozen=True)
class Summaries:
    """Everything counted on one set of volumes."""

    segmentation: SegmentationSummary
    lesions: LesionSummary

    def document(self) -> dict[str, Any]:
        """As plain types for the JSON."""
        return {"segmentation": asdict(self.segmentation), "lesions": asdict(self.lesions)}


def summarise(cases: Sequence[CaseResult], options: EvaluateOptions, rng: np.random.Generator) -> Summaries:
    """Segmentation and lesion figures of one set of volumes."""
    return Summaries(
        summarise_segmentation(cases, rng=rng, resamples=options.resamples),
        summarise_lesions(cases, rng=rng, iou=options.iou, resamples=options.resamples),
    )


def tiles(summaries: Summaries) -> dict[str, str]:
    """The few figures everybody looks for first."""
    segmentation, lesions = summaries.segmentation, summaries.lesions
    found, false = lesions.sensitivity[0.1], lesions.false_positives[0.1]
    return {
        f"mean DSC of {segmentation.n_positive} volumes with lesions": segmentation.positive["dice"].text(2),
        f"of {lesions.n_lesions} lesions found (IoU >= 0.1)": found.text(2),
        f"false positives per volume ({lesions.n_volumes} volumes)": false.text(2),
        f"of {segmentation.n_negative} healthy volumes left unmarked": segmentation.negative["specificity"].text(2),
    }


def segmentation_section(
    cases: Sequence[CaseResult], summary: SegmentationSummary, options: EvaluateOptions, *, cohort: str = ""
) -> Section:
    """Outlines, volumes, and whether a patient has any lesion; every title names the cohort, if there are several."""
    tables = (segmentation_table(summary, options.tolerance_mm), patient_table(summary))
    return Section(
        _of("Segmentation", cohort),
        [replace(table, title=_of(table.title, cohort)) for table in tables],
        {_of("Bland-Altman of lesion volume", cohort): png(bland_altman_figure(cases))},
    )


def lesion_section(
    sets: Mapping[str, Sequence[CaseResult]],
    summary: LesionSummary,
    options: EvaluateOptions,
    rng: np.random.Generator,
    *,
    cohort: str = "",
) -> Section:
    """Lesions found and invented in one cohort; the FROC of every set in one figure."""
    by_size = {f"{name}": e for name, e in summary.by_size.items()} | dict(summary.by_kind)
    table = lesion_table(summary)
    return Section(
        _of("Lesions", cohort),
        (replace(table, title=_of(table.title, cohort)),),
        {
            "FROC": png(froc_figure(sets, rng=rng, iou=options.iou)),
            _of("Sensitivity by size and kind", cohort): png(forest_figure(by_size, "lesion sensitivity")),
        },
    )


def answers_section(
    heading: str,
    question: str,
    sets: Mapping[str, Predictions],
    performances: Mapping[str, Performance],
    subgroups: Sequence[Subgroup],
    rng: np.random.Generator,
) -> Section:
    """A yes-or-no question: performance of every set, ROC, calibration, subgroups."""
    tables: list[Table] = [performance_table(performances, heading)]
    if subgroups:
        tables.append(subgroup_table(subgroups, f"{heading}: subgroups"))
    threshold = next(iter(performances.values())).threshold
    figures = {f"{heading}: ROC, precision and recall": png(roc_figure(sets, rng=rng, threshold=threshold))}
    if any(p.calibration for p in performances.values()):
        figures[f"{heading}: calibration and net benefit"] = png(calibration_figure(sets))
    return Section(heading, tables, figures, question)


def site_section(
    cases: Sequence[CaseResult], patients: Mapping[str, Patient], options: EvaluateOptions, rng: np.random.Generator
) -> Section | None:
    """Dice and lesion sensitivity site by site; None where there is one site only."""
    sites = sorted({patients[case.patient].site for case in cases})
    if len(sites) < 2:
        return None
    dice: dict[str, Estimate] = {}
    found: dict[str, Estimate] = {}
    for site in sites:
        here = [case for case in cases if patients[case.patient].site == site]
        dice[site] = _mean_dice(here, options, rng)
        found[site] = summarise_lesions(here, rng=rng, iou=options.iou, resamples=options.resamples).sensitivity[0.1]
    rows = tuple((site, dice[site].text(), str(dice[site].n), found[site].text(), str(found[site].n)) for site in sites)
    return Section(
        "Sites",
        (Table("By site", ("site", "DSC, mean", "patients", "lesion sensitivity, IoU >= 0.1", "lesions"), rows),),
        {
            "DSC by site": png(forest_figure(dice, "DSC, volumes with lesions")),
            "Lesion sensitivity by site": png(forest_figure(found, "lesion sensitivity")),
        },
    )


def patients_section(patients: Mapping[str, Patient], cases: Sequence[CaseResult]) -> Section:
    """Table 1: the patients of these volumes, by site."""
    records = []
    for name in sorted({case.patient for case in cases}):
        known, theirs = patients[name], [case for case in cases if case.patient == name]
        lesions = [lesion for case in theirs for lesion in case.true_lesions]
        records.append(
            {
                "patient": name, "site": known.site, "age, years": known.age, "sex": known.sex, "origin": known.origin,
                "scanner": known.scanner, "volumes": len(theirs), "lesions": "yes" if lesions else "none",
                "lesions per patient with lesions": len(lesions) or None,
                "largest lesion, mm": max((x.longest_axial_diameter_mm for x in lesions), default=None),
                "lesion volume, mL": sum(x.volume_mm3 for x in lesions) / 1000 if lesions else None,
            }
        )  # fmt: skip
    of_diseased = ("lesions per patient with lesions", "largest lesion, mm", "lesion volume, mL")
    return Section("Patients", (table1(records, not_for_all=of_diseased),))


def worst_section(pairs: Sequence[Pair], cases: Sequence[CaseResult]) -> Section:
    """The volumes with lesions of lowest Dice, and healthy ones with most invented volume, with their pictures."""
    both = list(zip(pairs, cases, strict=True))
    worst = sorted((x for x in both if x[1].has_lesions), key=lambda x: (x[1].overlap.dice, x[1].case))[:WORST]
    marked = [x for x in both if not x[1].has_lesions and x[1].predicted_lesions]
    marked = sorted(marked, key=lambda x: (-x[1].overlap.false_positive_mm3, x[1].case))[: WORST - len(worst)]
    listed = worst + marked
    rows = tuple(
        (
            case.case,
            number(case.overlap.dice) if case.has_lesions else "healthy",
            number(case.hd95_mm),
            f"{int(case.found(0.1).sum())} of {len(case.true_lesions)}",
            str(len(case.predicted_lesions) - int(case.found(0.1).sum())),
            number(case.overlap.volume_difference_mm3 / 1000),
        )
        for _, case in listed
    )
    columns = ("volume", "DSC", "HD95, mm", "lesions found", "false positives", "volume bias, mL")
    picture = png(worst_figure([shadow_of(pair, case) for pair, case in listed]))
    return Section(
        "Worst volumes",
        (Table("Lowest DSC first, then healthy volumes by what was invented", columns, rows),),
        {"Worst volumes from the front (blue: truth, orange line: prediction)": picture} if listed else {},
    )


def _of(words: str, cohort: str) -> str:
    """A title; the cohort in it keeps two cohorts' files apart, which are named after their titles."""
    return f"{words}, {cohort}" if cohort else words


def _mean_dice(cases: Sequence[CaseResult], options: EvaluateOptions, rng: np.random.Generator) -> Estimate:
    some = [case for case in cases if case.has_lesions]
    dice = np.array([case.overlap.dice for case in some])
    who = [case.patient for case in some]
    return bootstrap(lambda rows: float(dice[rows].mean()), who, rng=rng, resamples=options.resamples)
