"""Two folders of masks -> pairs of files. Opens no image."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from volseg.errors import InputError
from volseg.io.cohort import Patient, Problem, one_line, patient_of, read_patients
from volseg.io.files import check_path, safe_name, shown, stem_of, suffix_of

Found = TypeVar("Found")
MASK, RESULT = "lesions.nii.gz", "result.json"


@dataclass(frozen=True)
class Pair:
    """Two masks of one volume. `predicted` is None where there is none; `result` is what `volseg predict` wrote."""

    case: str
    patient: str
    truth: Path
    predicted: Path | None
    result: Path | None = None
    parameters: Path | None = None


def pair_folders(
    predicted: Path, truth: Path, *, patients: Mapping[str, Patient] | None = None
) -> tuple[list[Pair], list[str]]:
    """Find each true mask's prediction: PRED/<name>.nii.gz, or PRED/<name>/lesions.nii.gz as `volseg predict` writes.

    Of a decathlon folder the labelsTr is taken. Returns (pairs by name, notes). What lacks a prediction has None.
    Raises InputError if a folder is missing, empty, holds two masks of one name, or if no name occurs in both.
    """
    for folder in (predicted, truth):
        if not check_path(folder).is_dir():
            raise InputError("not-a-folder", f"{folder} is a file; give the folder that holds the masks")
    labels = truth / "labelsTr" if (truth / "labelsTr").is_dir() else truth
    truths: dict[str, Path] = {}
    for p in sorted(labels.iterdir()):
        if p.is_file() and suffix_of(p) and p.name[0] != ".":
            _put(truths, stem_of(p), p, p)
    if not truths:
        raise InputError("no-masks", f"{labels} holds no image file volseg reads; give the folder with the true masks")
    predictions = find_predictions(predicted)
    if not predictions:
        raise InputError("no-masks", f"{predicted} holds neither masks nor results of volseg predict")
    problems: list[Problem] = []
    pairs: list[Pair] = []
    for name, path in truths.items():
        mask, result = predictions.get(name) or predictions.get(safe_name(name)) or (None, None)
        patient = name if patients is None else patient_of(name, patients)
        if patient is None:
            problems.append(Problem("patient-unknown", name, "belongs to no patient of the patients file"))
            continue
        parameters = labels.parent / "parameters" / f"{name}.json"
        pairs.append(Pair(name, patient, path, mask, result, parameters if parameters.is_file() else None))
    if problems:
        raise InputError("patients-incomplete", one_line(problems))
    if not any(pair.predicted for pair in pairs):
        example = f"{next(iter(truths))} there, {next(iter(predictions))} here"
        raise InputError("no-pairs", f"no mask in {predicted} has the name of one in {labels} ({example})")
    used = {pair.predicted for pair in pairs}
    left = sorted(name for name, (mask, _) in predictions.items() if mask not in used)
    notes = [f"{len(left)} predictions have no truth and were left out: {', '.join(left[:5])}"] if left else []
    if patients is None:
        notes.append("no patients file: every volume was taken for a patient of its own")
    return pairs, notes


def read_patients_strictly(path: Path) -> dict[str, Patient]:
    """patients.csv, or InputError("patients-refused") naming what is wrong with it."""
    patients, problems = read_patients(path)
    if problems:
        raise InputError("patients-refused", one_line(problems))
    return patients


def read_result(path: Path) -> dict[str, Any]:
    """A result.json (or a case's parameters); InputError("result-unreadable") where it is not what predict writes."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        lesions = document.get("lesions", [])
        ids = [lesion["id"] for lesion in lesions]
        numbered = {int(id_) for id_ in ids}
    except (OSError, ValueError, OverflowError, AttributeError, KeyError, TypeError) as error:
        told = f"{_where(path)}: {type(error).__name__} ({error}); write it again"
        raise InputError("result-unreadable", told) from error
    fractions = [id_ for id_ in ids if isinstance(id_, float) and not id_.is_integer()]
    if fractions:
        raise InputError("result-unreadable", f"{_where(path)}: a lesion of number {fractions[0]}; write it again")
    if len(numbered) != len(lesions):
        raise InputError("result-unreadable", f"{_where(path)}: two lesions of one number")
    return dict(document)


def entries_of(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The object called `name`, {} where it is not there; InputError("result-unreadable") where it is none (null)."""
    entries = document.get(name, {})
    if not isinstance(entries, dict):
        told = f"{_where(path)}: {name} is {shown(json.dumps(entries))} where an object belongs; predict again"
        raise InputError("result-unreadable", told)
    return entries


def number_of(entries: Mapping[str, Any], name: str, path: Path, *, of: str) -> float:
    """The number called `name`; InputError("result-unreadable") where it is none or not finite ("0,8", NaN)."""
    value = entries[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        told = f"{_where(path)}: {name} of {of} is {shown(json.dumps(value))}, no number; predict again"
        raise InputError("result-unreadable", told)
    return number


def probability_of(entries: Mapping[str, Any], name: str, path: Path, *, of: str) -> float:
    """As `number_of`, within 0..1; nan where there is none (null), which is an answer not given."""
    if entries.get(name) is None:
        return math.nan
    number = number_of(entries, name, path, of=of)
    if not 0 <= number <= 1:
        told = f"{_where(path)}: {name} of {of} is {number:g}, outside 0 to 1; predict again"
        raise InputError("result-unreadable", told)
    return number


def find_predictions(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """name -> (mask, result.json or None): masks lying in the folder, and results of `volseg predict` below it."""
    found: dict[str, tuple[Path, Path | None]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() and suffix_of(path):
            _put(found, stem_of(path), (path, None), path)
        elif (path / MASK).is_file():
            _put(found, path.name, (path / MASK, path / RESULT if (path / RESULT).is_file() else None), path)
    return found


def _where(path: Path) -> str:
    """A result lies in a folder called after its case."""
    return f"{path.parent.name}/{path.name}"


def _put(found: dict[str, Found], name: str, what: Found, path: Path) -> None:
    """Which of two masks of one name is meant nobody knows: the last one found must not win in silence."""
    if name in found:
        raise InputError("masks-of-one-name", f"{path.parent} holds two masks called {name}; remove one: {path.name}")
    found[name] = what
