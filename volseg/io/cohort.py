"""Cohort files -> nouns: patients.csv (who) and a decathlon-style datalist.json (which images). Opens no image.

Readers collect what is wrong instead of stopping at the first line; `cohort_check` adds what only the images tell.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import InputError
from volseg.io.files import check_path, shown, stem_of

log = logging.getLogger(__name__)

DATALIST, PATIENTS = "datalist.json", "patients.csv"
SECTIONS = ("training", "validation", "testing")
COLUMNS = ("patient", "site", "origin", "age", "sex", "scanner", "split")
REQUIRED = ("patient", "site")
SEXES = ("F", "M", "O", "")
NO_ORIGIN = frozenset({"", "unknown", "cup", "not recorded", "none", "n/a"})  # cup: cancer of unknown primary
_OF_THE_LUNG = ("lung", "pulmon", "bronch", "sclc")
_SPLITS = {"": "", "train": "training", "val": "validation", "valid": "validation", "test": "testing"}


@dataclass(frozen=True)
class Problem:
    """One thing that must be mended: a stable reason code, where, and what in words."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class Patient:
    """One line of patients.csv; "" and None where nothing is recorded. `split` is a section's name or "".

    `origin` is "lung" or what else the line says, in lower case; "" where the origin is not known.
    """

    patient: str
    site: str
    origin: str = ""
    age: float | None = None
    sex: str = ""
    scanner: str = ""
    split: str = ""


@dataclass(frozen=True)
class CohortCase:
    """One image of the datalist. `label` is None where none is given (testing), `fold` where there is none."""

    image: Path
    label: Path | None
    section: str
    patient: str
    fold: int | None = None

    @property
    def name(self) -> str:
        return stem_of(self.image)


@dataclass(frozen=True)
class Cohort:
    """`label_values` are those the datalist declares; None if any whole number is an instance."""

    root: Path
    patients: Mapping[str, Patient]
    cases: tuple[CohortCase, ...]
    label_values: frozenset[int] | None


def read_patients(path: str | os.PathLike[str]) -> tuple[dict[str, Patient], list[Problem]]:
    """patients.csv -> patients by name, and every problem found.

    Columns: patient, site, and as known origin, age, sex, scanner, split, each once; others are ignored, whatever they
    are called. Semicolons are read too. A line with more cells than there are columns is a problem: an unquoted comma
    (a decimal one, say) moved every cell behind it.
    Raises InputError if the file cannot be read at all.
    """
    p = check_path(path)
    where = shown(p.name)
    try:
        text = p.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError("patients-unreadable", f"{where}: not a text file in UTF-8 ({e}); export it as CSV") from e
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = ";" if first.count(";") > first.count(",") else ","
    rows = csv.reader(text.splitlines(), delimiter=delimiter)
    names = [name.strip().lower() for name in next(rows, [])]
    lacking = [name for name in REQUIRED if name not in names]
    if lacking:
        return {}, [Problem("column-missing", where, f"no column {', '.join(lacking)}; it has: {', '.join(names)}")]
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        return {}, [Problem("column-twice", where, f"column {', '.join(twice)} stands there more than once; keep one")]
    patients: dict[str, Patient] = {}
    problems: list[Problem] = []
    for row in rows:
        row = [cell.strip() for cell in row]
        if not any(row):
            continue
        at = f"{where} line {rows.line_num}"
        patient, found = _patient(dict.fromkeys(names, "") | dict(zip(names, row, strict=False)), at)
        # What else is wrong with a line whose cells have moved says nothing.
        problems += [_too_long(row, names, at)] if any(row[len(names) :]) else found
        if patient is None:
            continue
        if patient.patient in patients:
            problems.append(Problem("patient-twice", at, f"patient {patient.patient} has a line already; keep one"))
            continue
        patients[patient.patient] = patient
    if not patients and not problems:
        problems.append(Problem("no-patients", where, "holds no patient"))
    return patients, problems


def read_cohort(
    path: str | os.PathLike[str], *, patients: str | os.PathLike[str] | None = None
) -> tuple[Cohort, list[Problem]]:
    """A folder with datalist.json and patients.csv (or the path of a datalist) -> the cohort, and every problem found.

    Paths in the datalist are relative to its folder. A case names its patient under "patient"; otherwise it belongs to
    the patient whose name its file name is, or starts with (followed by _, - or .).
    Raises InputError if one of the files cannot be read at all.
    """
    p = check_path(path)
    listing = check_path(p / DATALIST) if p.is_dir() else p
    root = listing.parent
    known, problems = read_patients(patients if patients is not None else root / PATIENTS)
    try:
        document = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError("datalist-unreadable", f"{shown(listing.name)}: not JSON ({e})") from e
    if not isinstance(document, dict):
        raise InputError("datalist-unreadable", f"{shown(listing.name)}: a list where an object with sections belongs")
    cases: list[CohortCase] = []
    for section in SECTIONS:
        for n, item in enumerate(document.get(section, []), start=1):
            case, found = _case(item, section, root, known, f"{shown(listing.name)} {section} {n}")
            problems += found
            if case is not None:
                cases.append(case)
    if not cases:
        problems.append(Problem("no-cases", shown(listing.name), f"lists no case under {', '.join(SECTIONS)}"))
    return Cohort(root, known, tuple(cases), _label_values(document.get("labels"))), problems


def patient_of(name: str, patients: Iterable[str]) -> str | None:
    """The patient a file name belongs to: the longest that equals it, or that it starts with before a _, - or ."""
    fitting = [p for p in patients if p and (name == p or (name.startswith(p) and name[len(p)] in "_-."))]
    return max(fitting, key=len, default=None)


def one_line(problems: Sequence[Problem], most: int = 3) -> str:
    """The first few problems and how many there are, for an error of one line."""
    told = "; ".join(str(p) for p in problems[:most])
    rest = len(problems) - most
    return f"{len(problems)} problem{'s' * (len(problems) != 1)}: {told}" + (f"; and {rest} more" if rest > 0 else "")


def _patient(cells: Mapping[str, str], at: str) -> tuple[Patient | None, list[Problem]]:
    name = cells["patient"]
    if not name:
        return None, [Problem("patient-unnamed", at, "no patient")]
    problems = []
    if not cells["site"]:
        problems.append(Problem("site-missing", at, f"patient {name} has no site"))
    age: float | None = None
    if cells.get("age"):
        try:
            age = float(cells["age"].replace(",", "."))
        except ValueError:
            age = math.nan
        if not 0 <= age <= 130:
            problems.append(Problem("age-wrong", at, f"patient {name}: age {shown(cells['age'])} is no age in years"))
            age = None
    sex = cells.get("sex", "").upper()[:1]
    if sex not in SEXES:
        problems.append(Problem("sex-wrong", at, f"patient {name}: sex {shown(cells['sex'])}; use F, M, O or nothing"))
        sex = ""
    written = cells.get("split", "").lower()
    split = _SPLITS.get(written, written)
    if split and split not in SECTIONS:
        problems.append(
            Problem("split-wrong", at, f"patient {name}: split {shown(written)}; use {', '.join(SECTIONS)}")
        )
        split = ""
    origin, wrong = _origin(cells.get("origin", ""), name, at)
    return Patient(name, cells["site"], origin, age, sex, cells.get("scanner", ""), split), problems + wrong


def _origin(written: str, patient: str, at: str) -> tuple[str, list[Problem]]:
    """The origin in lower case, "" where it is not known. A lung in other words would be counted as not lung."""
    origin = written.lower()
    if origin in NO_ORIGIN:
        return "", []
    if origin != "lung" and any(part in origin for part in _OF_THE_LUNG):
        way_out = "write lung, or the other organ's name"
        return "", [Problem("origin-wrong", at, f"patient {patient}: origin {shown(written)}; {way_out}")]
    return origin, []


def _too_long(row: Sequence[str], names: Sequence[str], at: str) -> Problem:
    last = max(n for n, cell in enumerate(row, start=1) if cell)
    told = f"{last} cells under {len(names)} columns, the last {shown(row[last - 1])}"
    return Problem("row-too-long", at, f"{told}; put what is one cell into quotes")


def _case(
    item: Any, section: str, root: Path, patients: Mapping[str, Patient], at: str
) -> tuple[CohortCase | None, list[Problem]]:
    if isinstance(item, str):
        item = {"image": item}
    image = item.get("image") if isinstance(item, dict) else None
    if not isinstance(image, str) or not image:
        return None, [Problem("case-unreadable", at, 'no "image"')]
    label = item.get("label")
    if label is not None and not isinstance(label, str):
        return None, [Problem("case-unreadable", at, '"label" is not one file name')]
    path = root / image
    named = item.get("patient")
    patient = str(named) if named is not None else patient_of(stem_of(path), patients)
    problems = []
    if patient is None or patient not in patients:
        who = f"patient {shown(patient)}" if patient is not None else "its patient"
        problems.append(Problem("patient-unknown", at, f"{who} of {shown(image)} is not in the patients file"))
    fold = item.get("fold")
    return CohortCase(
        image=path,
        label=root / label if label else None,
        section=section,
        patient=patient if patient is not None else stem_of(path),
        fold=fold if isinstance(fold, int) else None,
    ), problems


def _label_values(declared: Any) -> frozenset[int] | None:
    """{"0": "background", "1": "lesion"} -> {0, 1}; None if nothing is declared or "1..." numbers instances."""
    if not isinstance(declared, dict):
        return None
    keys = [str(key).strip() for key in declared]
    return frozenset(int(key) for key in keys) if keys and all(key.isdigit() for key in keys) else None


def _image_of(case: Mapping[str, str] | str) -> str:
    """A datalist may name a case by its image alone."""
    return case if isinstance(case, str) else case.get("image", "")


def _gaining(case: Mapping[str, str] | str, new: dict[str, dict[str, str]]) -> Mapping[str, str] | str:
    gained = new.pop(_image_of(case), {})
    return case if isinstance(case, str) else gained | dict(case)


def with_cases(
    path: Path, section: str, cases: Iterable[Mapping[str, str]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The datalist at `path`, or a new one that begins with `about`, with `cases` in one section.

    Other cases stay. An image stands in one section only: what another one lists is moved from there, with a warning.
    What the section lists already stays as it is, and gains what it does not say yet ("patient", where an older volseg
    wrote it).
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else dict(about)
    new = {case["image"]: dict(case) for case in cases}
    for other in [name for name in SECTIONS if name != section and name in document]:
        kept = [case for case in document[other] if _image_of(case) not in new]
        if moved := len(document[other]) - len(kept):
            log.warning("%d cases of %s stood under %r and stand under %r now", moved, path, other, section)
        document[other] = kept
    listed = [_gaining(case, new) for case in document.get(section, [])]
    document[section] = [*listed, *new.values()]
    return document
