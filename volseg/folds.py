"""Cross-validation over patients: a datalist enters, one fold's training and validation cases leave as fold.json.

A patient's cases stay together, and every fold has its share of each site and origin where patients.csv tells them. The
same data, number of folds and seed give the same folds, whatever the order of the files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import InputError, UsageError
from volseg.io.cohort import DATALIST, PATIENTS, one_line, patient_of, read_patients
from volseg.io.files import stem_of
from volseg.report.files import write_whole

FOLD = "fold.json"


@dataclass(frozen=True)
class FoldOptions:
    """Which of how many. `seed` deals the patients."""

    folds: int
    fold: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise UsageError(
                "fold-wrong", f"fold {self.fold} of {self.folds}: folds count from 0, and there are at least 2"
            )


def write_fold(data: Path, out: Path, options: FoldOptions) -> Path:
    """Deal the cases of `data`/datalist.json's training section and write `out`/fold.json, itself a datalist.

    Its sections are training and validation, with absolute paths; `patients` lists every fold's. Cases of the
    datalist's own validation section stay out. A fold that lies there already must be the same one.

    Raises:
        InputError: the datalist or patients.csv cannot be read, a case belongs to nobody, fewer patients than folds.
        UsageError: `out` was begun with another fold or other cases.
    """
    cases, strata = _cases_by_patient(data)
    if len(cases) < options.folds:
        raise InputError("folds-too-many", f"{data}: {len(cases)} patients cannot be dealt into {options.folds} folds")
    fold_of = deal(strata, options.folds, seed=options.seed)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for patient, theirs in cases.items():
        section = "validation" if fold_of[patient] == options.fold else "training"
        sections[section] += [
            {"patient": patient} | {k: str((data / v).resolve()) for k, v in case.items() if k in ("image", "label")}
            for case in theirs
        ]
    document = {
        "folds": options.folds,
        "fold": options.fold,
        "seed": options.seed,
        "patients": [sorted(p for p, n in fold_of.items() if n == fold) for fold in range(options.folds)],
        **sections,
    }
    path = out / FOLD
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != document:
        raise UsageError(
            "fold-differs", f"{path} holds another fold, or other cases; a fold is trained in a folder of its own"
        )
    return write_whole(path, json.dumps(document, indent=1))


def deal(strata: dict[str, str], folds: int, *, seed: int) -> dict[str, int]:
    """{patient: stratum} -> {patient: fold}. Folds differ by one patient at most, in all and in every stratum."""
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for stratum in sorted(set(strata.values())):
        who = sorted(patient for patient, theirs in strata.items() if theirs == stratum)
        for n in rng.permutation(len(who)):
            fold_of[who[n]] = len(fold_of) % folds  # goes on counting where the last stratum stopped
    return fold_of


def _cases_by_patient(data: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Training cases by patient, and each patient's stratum: site and origin, nothing where there is no patients.csv.

    Without patients.csv a case's own "patient" counts, else the case is a patient.
    """
    try:
        listed = json.loads((data / DATALIST).read_text(encoding="utf-8")).get("training", [])
        images = [(case, stem_of(Path(case["image"]))) for case in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("datalist-unreadable", f"{data / DATALIST}: {error!r}; see data/README.md") from error
    known, problems = read_patients(data / PATIENTS) if (data / PATIENTS).is_file() else ({}, [])
    if problems:
        raise InputError("patients-refused", one_line(problems))
    cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case, stem in images:
        patient = case.get("patient") or (patient_of(stem, known) if known else stem)
        if patient is None or (known and patient not in known):
            raise InputError(
                "patients-incomplete", f"{stem}: its patient is not in {PATIENTS}; folds are over patients"
            )
        cases[str(patient)].append(case)
    strata = {p: f"{known[p].site}/{known[p].origin == 'lung'}" if p in known else "" for p in sorted(cases)}
    return {p: cases[p] for p in sorted(cases)}, strata
