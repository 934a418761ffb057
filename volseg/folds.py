"""Cross-validation over patients: a datalist enters, one fold's training and validation cases leave as fold.json.

A patient's cases stay together, and so do patients that were grown in one CT; every fold has its share of each site and
origin where patients.csv tells them. The same data, number of folds and seed give the same folds, whatever the order of
the files.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import InputError, UsageError
from volseg.inference.datasets import files_of
from volseg.io.bmseg import SLICES
from volseg.io.cohort import DATALIST, PATIENTS, one_line, patient_of, read_patients
from volseg.io.files import stem_of
from volseg.io.pictures import SUFFIXES
from volseg.report.files import write_whole

FOLD = "fold.json"
PHANTOM = "phantom"  # as a `source`: `volseg synth cohort` draws each of its patients a body of its own


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
        InputError: the datalist, patients.csv or slices.csv cannot be read, a case belongs to nobody, fewer patients
            (or CTs that they were grown in) than folds.
        UsageError: `out` was begun with another fold or other cases.
    """
    cases, strata = _cases_by_patient(data)
    body_of = _bodies(data, cases)
    bodies: dict[str, list[str]] = defaultdict(list)
    for patient, body in body_of.items():
        bodies[body].append(patient)
    if len(bodies) < options.folds:
        who = f"{len(cases)} patients"
        if len(bodies) < len(cases):
            who += f" of {len(bodies)} bodies (patients of one `source` in {PATIENTS} show the same bones)"
        raise InputError("folds-too-many", f"{data}: {who} cannot be dealt into {options.folds} folds")
    commonest = {body: Counter(strata[p] for p in theirs).most_common(1)[0][0] for body, theirs in bodies.items()}
    dealt = deal(commonest, options.folds, seed=options.seed)
    fold_of = {patient: dealt[body_of[patient]] for patient in cases}
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for patient, theirs in cases.items():
        section = "validation" if fold_of[patient] == options.fold else "training"
        sections[section] += [
            {"patient": patient} | {k: str((data / v).resolve()) for k, v in files_of(case).items()} for case in theirs
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
    """{patient: stratum} -> {patient: fold}. Folds differ by one at most, in all and in every stratum.

    Patients that belong together go in as one of them.
    """
    rng = np.random.default_rng(seed)
    fold_of: dict[str, int] = {}
    for stratum in sorted(set(strata.values())):
        who = sorted(patient for patient, theirs in strata.items() if theirs == stratum)
        for n in rng.permutation(len(who)):
            fold_of[who[n]] = len(fold_of) % folds  # goes on counting where the last stratum stopped
    return fold_of


def _cases_by_patient(data: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Training cases by patient, and each patient's stratum: site and origin, nothing where there is no patients.csv.

    A case's own "patient" counts, then slices.csv, then the name of its file among those in patients.csv; where there
    is none of them, the case is a patient.
    """
    try:
        listed = json.loads((data / DATALIST).read_text(encoding="utf-8")).get("training", [])
        listed = [{"image": case} if isinstance(case, str) else case for case in listed]
        images = [(case, stem_of(Path(case["image"]))) for case in listed]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("datalist-unreadable", f"{data / DATALIST}: {error!r}; see data/README.md") from error
    known, problems = read_patients(data / PATIENTS) if (data / PATIENTS).is_file() else ({}, [])
    if problems:
        raise InputError("patients-refused", one_line(problems))
    sliced = (data / SLICES).is_file()
    owners = {_slice(name): patient for name, patient in _column(data / SLICES, "slice", "patient").items()}
    cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for case, stem in images:
        named = patient_of(stem, known) if known else None if sliced else stem
        patient = case.get("patient") or owners.get(_slice(stem)) or named
        if patient is None or (known and str(patient) not in known):
            where = PATIENTS if known else SLICES
            raise InputError("patients-incomplete", f"{stem}: its patient is not in {where}; folds are over patients")
        cases[str(patient)].append(case)
    strata = {p: f"{known[p].site}/{known[p].origin == 'lung'}" if p in known else "" for p in sorted(cases)}
    return {p: cases[p] for p in sorted(cases)}, strata


def _bodies(data: Path, patients: Mapping[str, Any]) -> dict[str, str]:
    """Patient -> the first patient who was grown in the same CT: column `source` of patients.csv."""
    source = _column(data / PATIENTS, "patient", "source")
    first: dict[str, str] = {}
    return {p: p if source.get(p, PHANTOM) == PHANTOM else first.setdefault(source[p], p) for p in sorted(patients)}


def _slice(name: str) -> str:
    """A picture's name without its suffix, as slices.csv may have it or not."""
    return Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name


def _column(path: Path, key: str, value: str) -> dict[str, str]:
    """`key` -> `value` of every line of a CSV that has both; nothing where the file or a column is missing."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("patients-unreadable", f"{path}: not a text file in UTF-8 ({error})") from error
    delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    rows = csv.reader(lines, delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows, [])]
    told = (dict(zip(names, (cell.strip() for cell in row), strict=False)) for row in rows)
    return {row[key]: row[value] for row in told if row.get(key) and row.get(value)}
