"""Two sites' results and the frozen rule -> the page of an external validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from volseg.evaluate.answers import taken_for_not_lung
from volseg.evaluate.facts import checklist_section, common_facts, validation_facts
from volseg.evaluate.freeze import SiteResults, ValidateOptions, frozen_table
from volseg.evaluate.sections import (
    Summaries,
    answers_section,
    lesion_section,
    patients_section,
    segmentation_section,
    site_section,
    summarise,
    tiles,
    worst_section,
)
from volseg.evaluate.write import write_case_tables, write_report
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.external import ExternalValidation, FrozenRule, validate
from volseg.evaluation.lesion_summary import LesionSummary, summarise_lesions
from volseg.evaluation.page import Section
from volseg.evaluation.tables import SeedRow, Table, lesion_dice, number, seed_table, text
from volseg.io.cohort import Cohort

QUESTIONS = {"any lesion": "Does the patient have any lesion?", "lung origin": "Did the tumour start in the lung?"}


def site_report(
    out: Path,
    cohort: Cohort,
    options: ValidateOptions,
    fitted: SiteResults,
    tested: SiteResults,
    frozen: Mapping[str, Any],
    say: Callable[[str], None],
) -> Path:
    rng = np.random.default_rng(options.evaluate.seed)
    names = (f"training (site {options.train_site})", f"external (site {options.test_site})")
    both = dict(zip(names, (fitted, tested), strict=True))
    say(f"resampling patients, {options.evaluate.resamples} times for every figure")
    summaries = {name: summarise(site.cases, options.evaluate, rng) for name, site in both.items()}
    at_score = {name: _at_operating_score(site.cases, frozen, options, rng) for name, site in both.items()}
    answered = _answers(fitted, tested, frozen, options, rng)

    sections = [
        patients_section(cohort.patients, [*fitted.cases, *tested.cases]),
        Section(
            "Summary",
            (
                _seed(both, summaries, answered, options, rng),
                _operating_table(at_score, frozen, options),
                frozen_table(frozen, predicted_after=tested.predicted_here),
            ),
        ),
    ]
    for name in reversed(names):
        summary = summaries[name].segmentation
        sections.append(segmentation_section(both[name].cases, summary, options.evaluate, cohort=name))
    external = summaries[names[1]].lesions
    sets = {name: site.cases for name, site in both.items()}
    sections.append(lesion_section(sets, external, options.evaluate, rng, cohort=names[1]))
    for (question, level), result in answered.items():
        rows = {name: site.answers[question, level] for name, site in both.items()}
        words = f"{QUESTIONS[question]} Threshold: {result.rule.chosen_by}."
        if question == "lung origin":
            words = f"{words} {taken_for_not_lung(rows.values(), cohort.patients)}"
        sections.append(
            answers_section(
                f"{question.capitalize()}, {level} level",
                words,
                rows,
                dict(zip(names, (result.training, result.test), strict=True)),
                result.subgroups,
                rng,
            )
        )
    by_site = site_section([*fitted.cases, *tested.cases], cohort.patients, options.evaluate, rng)
    sections += [by_site] if by_site else []
    sections.append(worst_section(tested.pairs, tested.cases))
    pairs, cases = [*fitted.pairs, *tested.pairs], [*fitted.cases, *tested.cases]
    facts = common_facts(pairs, cases, options.evaluate, cohort.patients)
    counts, here = (len(fitted.cases), len(tested.cases)), fitted.predicted_here and tested.predicted_here
    sections.append(checklist_section(facts | validation_facts(options, frozen, answered, counts, predicted_here=here)))
    write_case_tables([*fitted.cases, *tested.cases], out, iou=options.evaluate.iou)
    notes = _notes(cohort, fitted, tested, answered, options)
    headline = tiles(summaries[names[1]])
    weights = frozen["weights_sha256"][:12] or "not recorded"
    page = write_report(
        out,
        "validation",
        title=f"External validation: site {options.train_site} to site {options.test_site}",
        lead=f"{len(fitted.cases)} volumes at site {options.train_site}, {len(tested.cases)} at site "
        f"{options.test_site}. Frozen rule {frozen['sha256'][:12]}, weights {weights}.",
        sections=sections,
        tiles=headline,
        notes=notes,
        document={
            "options": asdict(options),
            "frozen": frozen,
            **{name: s.document() for name, s in summaries.items()},
            "operating_point": {name: asdict(s) for name, s in at_score.items()},
            "answers": {f"{question}, {level} level": asdict(r) for (question, level), r in answered.items()},
        },
    )
    for words, value in headline.items():
        say(f"{value}  {words}")
    return page


def _answers(
    fitted: SiteResults,
    tested: SiteResults,
    frozen: Mapping[str, Any],
    options: ValidateOptions,
    rng: np.random.Generator,
) -> dict[tuple[str, str], ExternalValidation]:
    answered = {}
    for key, rows in fitted.answers.items():
        rule = frozen["rules"].get(f"{key[0]}, {key[1]} level")
        if rule is None or key not in tested.answers:
            continue
        all_rows = rows.joined(tested.answers[key])
        answered[key] = validate(
            all_rows,
            FrozenRule(**rule),
            test_site=options.test_site,
            rng=rng,
            resamples=options.evaluate.resamples,
        )
    return answered


def _at_operating_score(
    cases: Sequence[CaseResult], frozen: Mapping[str, Any], options: ValidateOptions, rng: np.random.Generator
) -> LesionSummary:
    """Lesion figures with the predictions below the frozen score left out (all of them if no score was allowed)."""
    score = frozen["operating_score"]
    return summarise_lesions(
        [case.at_score(np.inf if score is None else score) for case in cases],
        rng=rng,
        iou=options.evaluate.iou,
        resamples=options.evaluate.resamples,
    )


def _operating_table(
    at_score: Mapping[str, LesionSummary], frozen: Mapping[str, Any], options: ValidateOptions
) -> Table:
    iou = options.evaluate.iou if options.evaluate.iou in (0.1, 0.3, 0.5) else 0.1
    rows = tuple(
        (
            name,
            text(s.sensitivity[iou]),
            f"{s.n_lesions} lesions",
            text(s.precision[iou]),
            text(s.false_positives[iou]),
            f"{s.n_volumes} volumes",
        )
        for name, s in at_score.items()
    )
    score = frozen["operating_score"]
    return Table(
        "Lesions at the frozen score",
        ("cohort", f"sensitivity, IoU >= {iou:g}", "of", "precision", "false positives per volume", "in"),
        rows,
        f"Score >= {number(np.inf if score is None else score)}, chosen for {frozen['operating_score_chosen_by']}.",
    )


def _seed(
    both: Mapping[str, SiteResults],
    summaries: Mapping[str, Summaries],
    answered: Mapping[tuple[str, str], ExternalValidation],
    options: ValidateOptions,
    rng: np.random.Generator,
) -> Table:
    rows = []
    for n, (name, site) in enumerate(both.items()):
        segmentation, lesions = summaries[name].segmentation, summaries[name].lesions
        present = answered.get(("any lesion", "patient"))
        metrics = segmentation.patients if present is None else (present.training, present.test)[n].metrics
        people = f"{segmentation.n_patients} patients"
        rows.append(SeedRow(name, "patient", "any lesion", people, segmentation.positive["dice"], metrics))
        dice = lesion_dice(site.cases, rng=rng, iou=options.evaluate.iou, resamples=options.evaluate.resamples)
        found = {"sensitivity": lesions.sensitivity[0.1]}
        rows.append(SeedRow(name, "lesion", "found, IoU >= 0.1", f"{lesions.n_lesions} lesions", dice, found))
        for (question, level), result in answered.items():
            if question == "lung origin":
                part = (result.training, result.test)[n]
                unit = f"{part.n_rows} {'patients' if level == 'patient' else 'lesions'}"
                rows.append(SeedRow(name, level, question, unit, None, part.metrics))
    return seed_table(rows)


def _notes(
    cohort: Cohort,
    fitted: SiteResults,
    tested: SiteResults,
    answered: Mapping[tuple[str, str], ExternalValidation],
    options: ValidateOptions,
) -> list[str]:
    notes = [
        f"Figures of site {options.train_site} are optimistic where the model was trained on these patients: give "
        "out-of-fold predictions for honest ones."
    ]
    if not all(case.scored for case in (*fitted.cases, *tested.cases)):
        notes.append("Masks came without scores (no result.json): FROC and AUC rest on a single operating point.")
    for site, results in ((options.train_site, fitted), (options.test_site, tested)):
        if missing := sum(pair.predicted is None for pair in results.pairs):
            lacking = f"{missing} volumes of site {site} had no prediction"
            notes.append(f"{lacking} and count as volumes in which nothing was found.")
    unused = len(cohort.cases) - len(fitted.cases) - len(tested.cases)
    notes += [f"{unused} images of the cohort were not used: another site, or no label."] if unused else []
    unruled = [f"{q}, {level} level" for q, level in fitted.answers if (q, level) not in answered]
    notes += [f"No rule for '{name}': one of the sites knows only one answer or none." for name in unruled]
    return notes
