"""What an evaluation knows about itself, in sentences, for the reporting checklists. Says nothing it did not do."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from volseg import __version__
from volseg.evaluate.compare import EvaluateOptions
from volseg.evaluate.freeze import ValidateOptions
from volseg.evaluate.pairs import Pair, entries_of, read_result
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.checklists import checklist_tables, fill_checklists
from volseg.evaluation.external import ExternalValidation
from volseg.evaluation.page import Section
from volseg.io.cohort import Patient


def common_facts(
    pairs: Sequence[Pair],
    cases: Sequence[CaseResult],
    options: EvaluateOptions,
    patients: Mapping[str, Patient] | None,
) -> dict[str, str]:
    """What holds for any evaluation."""
    people, lesions = len({c.patient for c in cases}), sum(len(c.true_lesions) for c in cases)
    diseased = len({c.patient for c in cases if c.has_lesions})
    facts = {
        "numbers": f"{people} patients, {len(cases)} volumes; {diseased} patients with {lesions} lesions, "
        f"{people - diseased} without. Who was excluded before, and why: TODO.",
        "metrics": f"DSC, NSD at {options.tolerance_mm:g} mm, HD95, ASSD, volume bias; lesion sensitivity, precision "
        "and F1 at IoU 0.1, 0.3, 0.5 and any overlap (26-connected, one to one), FROC; per patient AUC, sensitivity, "
        "specificity, accuracy, predictive values.",
        "uncertainty": f"95 % intervals: bootstrap over patients ({options.resamples} resamples, lesions follow their "
        "patient), Wilson for proportions of patients, DeLong for AUC (Obuchowski for lesions).",
        "software": f"volseg {__version__}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}.",
        "performance": "Tables 'Segmentation', 'Lesions' and 'Any lesion', and their figures.",
        "accuracy": "Table 'Any lesion, per patient', with n and 95 % intervals.",
        "failures": "Section 'Worst volumes'; every lesion, found or not, is in lesions.csv. Medical reasons: TODO.",
        "severity": "Table 'Lesions' by size" + (", and Table 1." if patients else "."),
        "missing": _missing(pairs, patients),
        "audit": "Every compared volume is kept in cases/; the JSON beside this page holds every number shown.",
    }
    model = _model(pairs)
    if model:
        facts["model"] = model
    if patients is not None:
        facts["characteristics"] = "Table 1, by site."
        scanners = sorted({patients[c.patient].scanner for c in cases} - {""})
        if scanners:
            facts["scanners"] = f"Scanners: {', '.join(scanners)}. Protocols: TODO."
        if len({patients[c.patient].site for c in cases}) > 1:
            facts["sites"] = "Section 'Sites': DSC and lesion sensitivity site by site, with intervals."
    return facts


def validation_facts(
    options: ValidateOptions,
    frozen: Mapping[str, Any],
    answered: Mapping[tuple[str, str], ExternalValidation],
    counts: tuple[int, int],
    *,
    predicted_here: bool,
) -> dict[str, str]:
    """What an external validation adds. `counts`: volumes at the training and at the test site.

    `predicted_here`: this run predicted every volume. Of results that were there before nobody knows here what those
    who made them had seen: blinding is then for people to answer.
    """
    train, test = options.train_site, options.test_site
    facts = {
        "goal": f"External validation: thresholds fitted at site {train}, tested once at site {test}.",
        "partitions": f"By site: {counts[0]} volumes of site {train} to fit, {counts[1]} of site {test} to test.",
        "disjoint": "By patient and by image: no patient, and no image by the SHA-256 of its voxels, is in two splits; "
        "labels lie on their images' grids (cohort_check.txt).",
        "internal": f"Site {train}, in every table beside the external figures; optimistic where it was trained on.",
        "external": f"Site {test}, once, with the rule {frozen['sha256'][:12]} (frozen.json, tested.json).",
        "threshold": "; ".join(f"{name}: {r['threshold']:.3g}, {r['chosen_by']}" for name, r in frozen["rules"].items())
        or "No threshold was frozen.",
        "updating": "None: the model and its thresholds were applied as frozen.",
    }
    if predicted_here:
        facts["blinding"] = "The software read images only; clinical data and reference were not given to it."
    tests = {f"{question}, {level} level": r.test for (question, level), r in answered.items()}
    if tests:
        facts["crosstable"] = " ".join(
            f"{name}: {p.decisions.true_positive} true positive, {p.decisions.false_positive} false positive, "
            f"{p.decisions.false_negative} false negative, {p.decisions.true_negative} true negative."
            for name, p in tests.items()
        )
        facts["undecided"] = " ".join(
            f"{name}: {p.n_undecided} of {p.n_rows} without an answer, counted as wrong and left out of the AUC."
            for name, p in tests.items()
        )
    if any(r.subgroups for r in answered.values()):
        facts["subgroups"] = "Subgroup tables by " + ", ".join(
            sorted({g.variable for r in answered.values() for g in r.subgroups})
        )
    return facts


def checklist_section(facts: Mapping[str, str]) -> Section:
    """The three checklists, as far as they can be filled."""
    words = "What a machine can know is filled in; TODO is for people. Submit the guidelines' own forms."
    return Section("Reporting checklists", checklist_tables(fill_checklists(facts)), words=words)


def _missing(pairs: Sequence[Pair], patients: Mapping[str, Patient] | None) -> str:
    absent = sum(pair.predicted is None for pair in pairs)
    told = [f"{absent} volumes without prediction count as volumes in which nothing was found." if absent else
            "Every volume has a prediction."]  # fmt: skip
    if patients is not None:
        told.append("What the patients file does not record is counted in Table 1.")
    return " ".join(told)


def _model(pairs: Sequence[Pair]) -> str:
    """Bundle, version, weights and other bundles heeded, as the results name them; "" for plain masks."""
    found = set()
    for pair in pairs:
        if pair.result is not None:
            made_by = entries_of(read_result(pair.result), "provenance", pair.result)
            name = " ".join(str(made_by[key]) for key in ("bundle", "bundle_version") if made_by.get(key))
            weights = str(made_by.get("weights_sha256") or "")[:12] or "not recorded"
            settings, others = (entries_of(made_by, entry, pair.result) for entry in ("settings", "other_weights"))
            changed = "".join(f", {entry} {value}" for entry, value in settings.items())
            heeded = "".join(f", beside {name} (weights {str(sha)[:12]})" for name, sha in others.items())
            found.add(f"{name or 'bundle not recorded'}, weights {weights}{changed}{heeded}")
    return f"{'; '.join(sorted(found))} (model card in the bundle's docs/)." if found else ""
