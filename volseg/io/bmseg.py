"""A BM-Seg folder -> slices: an axial CT picture, its bone mask and its lesion mask, and whose they are.

BM-Seg (Afnouch et al. 2023, doi 10.1016/j.eswa.2023.120376) is 1,517 axial CT slices of 23 patients as JPEGs, already
windowed, without geometry, in three folders that share their file names. The archive does not say which slice is whose:
`slices.csv` (columns slice, patient) beside the folders says it, or a pattern that finds the patient in a file's name.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError, UsageError
from volseg.io.cohort import Problem
from volseg.io.cohort_check import CohortReport
from volseg.io.files import check_path, shown
from volseg.io.pictures import SUFFIXES, read_mask, read_picture

IMAGE, BONE, LESION = "image", "bone mask", "lesion mask"
FOLDERS = (IMAGE, BONE, LESION)
SLICES = "slices.csv"


@dataclass(frozen=True)
class SliceFiles:
    """One slice: three pictures of `shape` (rows, columns). `patient` is "" where nobody says whose it is."""

    name: str
    image: Path
    bone: Path
    lesion: Path
    patient: str
    shape: tuple[int, int]

    def item(self) -> dict[str, str]:
        """For a MONAI dataset; `volseg.transforms.slices2d` reads these keys."""
        paths = {"image": str(self.image), "bone": str(self.bone), "lesion": str(self.lesion)}
        return {"name": self.name, "patient": self.patient, **paths}


@dataclass(frozen=True)
class BmSeg:
    """Slices in the order in which Windows lists them (the public split counts in that order)."""

    root: Path
    slices: tuple[SliceFiles, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """One entry per slice."""
        return tuple(s.patient for s in self.slices)


def read_bmseg(folder: str | os.PathLike[str], *, pattern: str | None = None, grey_rgb: bool = False) -> BmSeg:
    """The slices of a folder in which nothing is wrong. Arguments as in `check_bmseg`.

    Raises InputError("cohort-refused") with the first problems and their number.
    """
    found, report = check_bmseg(folder, pattern=pattern, grey_rgb=grey_rgb)
    report.refuse_if_bad()
    return found


def check_bmseg(
    folder: str | os.PathLike[str],
    *,
    pattern: str | None = None,
    grey_rgb: bool = False,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[BmSeg, CohortReport]:
    """Decode every picture of a BM-Seg folder and collect all problems; `report.text` has one line for each.

    Args:
        folder: holds `image`, `bone mask` and `lesion mask` (case, spaces, _, - and a plural s do not matter).
        pattern: a regular expression with one group, the patient, found in a slice's name: r"^(P[0-9]+)_".
        grey_rgb: take RGB pictures whose three channels are the same picture as grey ones.
        tick: called with (slices done, slices in all).

    Raises InputError if the folder cannot be read, UsageError for a pattern without exactly one group.
    """
    root = check_path(folder)
    problems: list[Problem] = []
    files = {name: _pictures(root, name, problems) for name in FOLDERS}
    names = sorted(set().union(*files.values()), key=lambda name: (f"{name}.jpg".upper(), name))
    owners, notes = _owners(root, names, pattern, problems)
    slices: list[SliceFiles] = []
    same: dict[str, list[int]] = defaultdict(list)
    for n, name in enumerate(names):
        tick(n, len(names))
        if not all(files.values()) or not _complete(name, files, problems):
            continue
        pixels, found = _decode({kind: files[kind][name] for kind in FOLDERS}, root, grey_rgb)
        problems += found
        if not found:
            same[hashlib.sha256(np.ascontiguousarray(pixels[IMAGE]).tobytes()).hexdigest()].append(len(slices))
            rows, columns = pixels[IMAGE].shape
            image, bone, lesion = (files[kind][name] for kind in FOLDERS)
            slices.append(SliceFiles(name, image, bone, lesion, owners.get(name, ""), (rows, columns)))
    tick(len(names), len(names))
    for twins in (twins for twins in same.values() if len(twins) > 1):
        named = " and ".join(shown(slices[n].name) for n in twins[:3])
        people = sorted({slices[n].patient or "unknown" for n in twins})
        if len(people) > 1:
            told = f"the same picture belongs to patients {', '.join(people)}; mend {SLICES} or remove one"
            problems.append(Problem("image-twice", named, told))
        else:
            notes.append(f"{named} are the same picture")
    report = CohortReport(len({*owners.values()}), len(slices), tuple(problems), tuple(notes))
    return BmSeg(root, tuple(slices)), report


def _pictures(root: Path, kind: str, problems: list[Problem]) -> dict[str, Path]:
    """Name -> file of one of the three folders; hidden files and other formats are passed over."""
    if not root.is_dir():
        raise InputError("not-a-folder", f"{shown(root)}: a file; give the folder that holds {_listed(FOLDERS)}")
    there = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    fitting = [p for p in there if _plain(p.name) == _plain(kind)]
    if len(fitting) != 1:
        inside = [p for p in there if p.is_dir() and any(_plain(q.name) == _plain(kind) for q in p.iterdir())]
        way = f"; give {shown(inside[0].name)} inside it" if inside else f"; it holds {_listed(p.name for p in there)}"
        told = (
            f"no folder {kind!r}{way}" if not fitting else f"{_listed(p.name for p in fitting)} are one name; keep one"
        )
        problems.append(Problem("folder-missing", shown(root.name), told))
        return {}
    found: dict[str, Path] = {}
    for path in sorted(fitting[0].iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            told = f"{shown(found[path.stem].name)} has the same name; keep one"
            problems.append(Problem("picture-twice", f"{fitting[0].name}/{shown(path.name)}", told))
            continue
        found[path.stem] = path
    if not found:
        told = f"holds no picture ({', '.join(SUFFIXES)}); unpack the archive again"
        problems.append(Problem("folder-empty", shown(fitting[0].name), told))
    return found


def _complete(name: str, files: Mapping[str, Mapping[str, Path]], problems: list[Problem]) -> bool:
    lacking = [kind for kind in FOLDERS if name not in files[kind]]
    if lacking:
        has = next(files[kind][name] for kind in FOLDERS if name in files[kind])
        told = f"nothing of that name under {_listed(lacking)}; add it, or remove the slice from every folder"
        problems.append(Problem("picture-missing", f"{has.parent.name}/{shown(has.name)}", told))
    return not lacking


def _decode(paths: Mapping[str, Path], root: Path, grey_rgb: bool) -> tuple[dict[str, NDArray], list[Problem]]:
    pixels: dict[str, NDArray] = {}
    problems: list[Problem] = []
    for kind, path in paths.items():
        try:
            pixels[kind] = (read_picture if kind == IMAGE else read_mask)(path, grey_rgb=grey_rgb)
        except InputError as e:
            told = e.message.removeprefix(f"{shown(path.name)}: ").removeprefix(f"{shown(path)}: ")
            problems.append(Problem(e.code, _where(path, root), told))
    if IMAGE in pixels:
        rows, columns = pixels[IMAGE].shape
        for kind in (BONE, LESION):
            if kind in pixels and pixels[kind].shape != (rows, columns):
                r, c = pixels[kind].shape
                told = (
                    f"{c} x {r} pixels, its image {columns} x {rows}; export both from the same slice, do not stretch"
                )
                problems.append(Problem("size-differs", _where(paths[kind], root), told))
    return pixels, problems


def _owners(
    root: Path, names: list[str], pattern: str | None, problems: list[Problem]
) -> tuple[dict[str, str], list[str]]:
    """Slice -> patient from the pattern, else from slices.csv, else nothing and a note."""
    if pattern is not None:
        return _by_pattern(names, pattern, problems), []
    listing = root / SLICES
    if not listing.is_file():
        note = f"whose slice is whose is unknown: add {SLICES} (columns slice, patient) or give a pattern"
        return {}, [f"{note}; without it no split by patient"]
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        problems.append(
            Problem("slices-unreadable", SLICES, f"not a text file in UTF-8 ({shown(e)}); export it as CSV")
        )
        return {}, []
    delimiter = ";" if lines and lines[0].count(";") > lines[0].count(",") else ","
    table = csv.reader(lines, delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(table, [])]
    if not {"slice", "patient"} <= set(header):
        told = f"columns slice and patient are due; it has: {_listed(header)}"
        problems.append(Problem("column-missing", SLICES, told))
        return {}, []
    owners: dict[str, str] = {}
    for cells in table:
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        name, patient = Path(row.get("slice", "")), row.get("patient", "")
        stem = name.stem if name.suffix.lower() in SUFFIXES else name.name
        if stem and patient and owners.setdefault(stem, patient) != patient:
            told = f"slice {shown(stem)} belongs to {shown(owners[stem])} and to {shown(patient)}; keep one"
            problems.append(Problem("patient-twice", f"{SLICES} line {table.line_num}", told))
    without = [name for name in names if name not in owners]
    if without:
        told = f"no patient for {len(without)} of {len(names)} slices, the first {shown(without[0])}; add them"
        problems.append(Problem("patient-unknown", SLICES, told))
    return {name: owners[name] for name in names if name in owners}, []


def _by_pattern(names: list[str], pattern: str, problems: list[Problem]) -> dict[str, str]:
    try:
        rule = re.compile(pattern)
    except re.error as e:
        raise UsageError("pattern-wrong", f"{shown(pattern)}: no regular expression ({e})") from e
    if rule.groups != 1:
        raise UsageError("pattern-wrong", f"{shown(pattern)}: one group (the patient) is due, it has {rule.groups}")
    found = {name: hit.group(1) for name in names if (hit := rule.search(name)) and hit.group(1)}
    without = [name for name in names if name not in found]
    if without:
        told = f"no patient in {len(without)} of {len(names)} names, the first {shown(without[0])}"
        problems.append(Problem("patient-unknown", f"pattern {shown(pattern)}", told))
    elif len(names) > 1 and len(set(found.values())) == len(names):
        # Each slice its own patient: the pattern took the slice number, and a split "by patient" would leak.
        told = f"{len(names)} patients for {len(names)} slices: it finds the slice's number, not the patient"
        problems.append(Problem("patient-unknown", f"pattern {shown(pattern)}", told))
    return found


def _where(path: Path, root: Path) -> str:
    return shown(path.relative_to(root).as_posix())


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower()).removesuffix("s")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(shown(name)) for name in names) or "nothing"
