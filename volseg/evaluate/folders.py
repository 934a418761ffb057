"""A folder of predictions against a folder of truths: what `volseg evaluate` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from volseg.evaluate.answers import origin_predictions, taken_for_not_lung
from volseg.evaluate.compare import DEFAULTS, EvaluateOptions, compare_pairs
from volseg.evaluate.facts import checklist_section, common_facts
from volseg.evaluate.pairs import pair_folders, read_patients_strictly
from volseg.evaluate.sections import (
    answers_section,
    lesion_section,
    patients_section,
    segmentation_section,
    site_section,
    summarise,
    tiles,
    worst_section,
)
from volseg.evaluate.write import file_name, write_case_tables, write_report
from volseg.evaluation.external import performance, subgroups
from volseg.evaluation.page import Section
from volseg.evaluation.paired import compare_cases, paired_table
from volseg.io.files import shown


def evaluate_folders(
    predicted: Path,
    truth: Path,
    out: Path,
    options: EvaluateOptions = DEFAULTS,
    *,
    against: Path | None = None,
    patients_csv: Path | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Compare every volume, write evaluation.html, evaluation.json, CSV tables and figures; returns the page's path.

    Args:
        predicted: masks, or the output folder of `volseg predict` (its scores and origin probabilities are used).
        truth: true masks of the same names, or a decathlon folder with labelsTr.
        out: folder for the results; compared volumes lie in `out`/cases and are not compared twice.
        against: predictions of a second model on the same volumes, to compare with in pairs.
        patients_csv: who is who (see `io.cohort`): several volumes per patient, sites, origin.

    Raises InputError naming every volume that cannot be compared, and every patient that is not known.
    """
    patients = None if patients_csv is None else read_patients_strictly(patients_csv)
    pairs, notes = pair_folders(predicted, truth, patients=patients)
    cases = compare_pairs(pairs, out / "cases", options, progress=progress)
    rng = np.random.default_rng(options.seed)
    if not all(case.scored for case in cases):
        notes.append("masks came without scores (no result.json): FROC and AUC rest on a single operating point")
    if options.missing_is_empty and (missing := sum(pair.predicted is None for pair in pairs)):
        notes.append(f"{missing} volumes had no prediction and count as volumes in which nothing was found")

    say(f"resampling patients, {options.resamples} times for every figure")
    summaries = summarise(cases, options, rng)
    document = {"options": asdict(options), **summaries.document(), "cases": [case.to_json() for case in cases]}
    sections = [
        segmentation_section(cases, summaries.segmentation, options),
        lesion_section({"all volumes": cases}, summaries.lesions, options, rng),
    ]
    if patients is not None:
        sections.insert(0, patients_section(patients, cases))
        by_site = site_section(cases, patients, options, rng)
        sections += [by_site] if by_site else []
        answers, threshold = origin_predictions(pairs, cases, patients, iou=options.iou)
        for level, rows in answers.items():
            assert threshold is not None
            result = performance(rows, threshold, rng=rng, resamples=options.resamples)
            groups = subgroups(rows, threshold, rng=rng, resamples=options.resamples)
            heading = f"Origin, {level} level"
            question = (
                "Did the tumour start in the lung? The threshold is the one frozen in the results. "
                + taken_for_not_lung([rows], patients)
            )
            sections.append(answers_section(heading, question, {"all": rows}, {"all": result}, groups, rng))
            document[f"origin_{level}"] = {**asdict(result), "subgroups": [asdict(g) for g in groups]}
    if against is not None:
        other, more = pair_folders(against, truth, patients=patients)
        notes += [f"{against}: {note}" for note in more if note not in notes]
        others = compare_pairs(other, out / "cases_against", options, progress=progress)
        compared = compare_cases(cases, others, rng=rng, iou=options.iou, resamples=options.resamples)
        sections.append(Section("Two models", (paired_table(compared, *told_apart(predicted, against)),)))
        document["paired"] = asdict(compared)
    sections += [worst_section(pairs, cases), checklist_section(common_facts(pairs, cases, options, patients))]
    write_case_tables(cases, out, iou=options.iou)
    headline = tiles(summaries)
    people = len({case.patient for case in cases})
    page = write_report(
        out,
        "evaluation",
        title="Evaluation",
        lead=f"{len(cases)} volumes of {people} patients. Predictions: {predicted}. Truth: {truth}.",
        sections=sections,
        tiles=headline,
        notes=notes,
        document=document,
    )
    for note in notes:
        say(f"note: {note}")
    for words, value in headline.items():
        say(f"{value}  {words}")
    return page


def told_apart(first: Path, second: Path) -> tuple[str, str]:
    """Names for two folders: the shortest trailing parts of their paths that differ, as file names too.

    `runs/a/pred` and `runs/b/pred` are a/pred and b/pred. One folder against itself keeps its one name.
    """
    one, other = first.resolve(), second.resolve()
    names = [(_last(one, n), _last(other, n)) for n in range(1, max(len(one.parts), len(other.parts)) + 1)]
    as_files = [pair for pair in names if "" not in map(file_name, pair) and file_name(pair[0]) != file_name(pair[1])]
    in_print = [pair for pair in names if pair[0] != pair[1]]
    return (as_files or in_print or names)[0]


def _last(path: Path, n: int) -> str:
    return shown(Path(*path.parts[-n:]).as_posix())
