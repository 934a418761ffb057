"""A cohort's files -> everything that is wrong with them, in one report: before a training, and before a test.

Leaks first: the same patient, or the same voxels (a re-saved copy under another name included), in two splits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.errors import InputError, VolsegError
from volseg.geometry import spacing_mm, to_ras
from volseg.io.cohort import Cohort, CohortCase, Problem, one_line, read_cohort
from volseg.io.files import safe_name, shown
from volseg.io.mri_study import read_mri_study
from volseg.io.study import NOT_ONE_IMAGE, read_volume
from volseg.types import Volume

GRID_TOLERANCE_VOXELS = 0.1
CACHE_FORM = 2  # of what `_facts` keeps; a cache of another form is not believed


@dataclass(frozen=True)
class CohortReport:
    """`problems` must be mended, `notes` are worth knowing."""

    n_patients: int
    n_cases: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line per problem, grouped by reason code; then the notes."""
        lines = [
            f"{self.n_cases} cases of {self.n_patients} patients: " + ("no problem found" if self.ok else "refused")
        ]
        for code in dict.fromkeys(p.code for p in self.problems):
            lines += [f"  {code}: {p}" for p in self.problems if p.code == code]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    @property
    def ok(self) -> bool:
        return not self.problems

    def refuse_if_bad(self) -> None:
        """Raises InputError("cohort-refused") naming the first problems and their number."""
        if self.problems:
            raise InputError("cohort-refused", one_line(self.problems))


def check_cohort(
    path: str | os.PathLike[str],
    *,
    patients: str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Cohort, CohortReport]:
    """Read a cohort and every image and label in it; collect all problems instead of stopping at one.

    Args:
        path, patients: as in `read_cohort`.
        cache: JSON file that keeps what was read (by name, size and time of change), so that a second check is quick.
        tick: called with (files done, files in all).

    Raises InputError only if patients.csv or datalist.json themselves cannot be read.
    """
    cohort, problems = read_cohort(path, patients=patients)
    known = _load(cache)
    files = [(c.image, False) for c in cohort.cases] + [(c.label, True) for c in cohort.cases if c.label is not None]
    facts: dict[Path, dict[str, Any]] = {}
    try:
        for n, (file, is_label) in enumerate(files):
            tick(n, len(files))
            if file not in facts:
                facts[file] = _facts(file, is_label, known)
    finally:
        if cache is not None:
            cache.write_text(json.dumps(known), encoding="utf-8")
    tick(len(files), len(files))
    for case in cohort.cases:
        problems += _of_files(case, facts, cohort)
    problems += _leaks(cohort, {case: facts[case.image].get("sha256", []) for case in cohort.cases})
    unused = sorted(set(cohort.patients) - {case.patient for case in cohort.cases})
    notes = [f"{len(unused)} patients have no image, among them {unused[0]}"] if unused else []
    without = sum(case.label is None for case in cohort.cases if case.section != "testing")
    notes += [f"{without} training or validation cases have no label"] if without else []
    people = len({case.patient for case in cohort.cases})
    return cohort, CohortReport(people, len(cohort.cases), tuple(problems), tuple(notes))


def voxels_sha256(voxels: NDArray, affine: ArrayLike) -> str:
    """A hash of the image itself: the same for every file type, compression, axis order and number type.

    Turned to RAS order, whole numbers as such, others as float32. A cropped, resampled or rescaled copy differs.
    """
    upright, _ = to_ras(voxels, affine)
    whole = upright.dtype.kind in "iub" or bool(np.array_equal(upright, np.rint(upright)))
    digest = hashlib.sha256(f"{upright.shape} {'whole' if whole else 'float32'}".encode())
    for slab in upright:
        digest.update(np.ascontiguousarray(slab, dtype="<i4" if whole else "<f4").data)
    return digest.hexdigest()


def same_grid(shape: ArrayLike, affine: ArrayLike, other_shape: ArrayLike, other_affine: ArrayLike) -> str:
    """ "" if both grids are one, otherwise what differs, in words: shape, or how far a corner lies off (in mm)."""
    a, b = np.asarray(shape), np.asarray(other_shape)
    if not np.array_equal(a, b):
        return f"{' x '.join(map(str, b))} voxels against {' x '.join(map(str, a))}"
    corners = np.array([[i, j, k, 1] for i in (0, a[0] - 1) for j in (0, a[1] - 1) for k in (0, a[2] - 1)], float)
    moved = corners @ (np.asarray(affine, float) - np.asarray(other_affine, float)).T
    off = float(np.linalg.norm(moved[:, :3], axis=1).max())
    if off > GRID_TOLERANCE_VOXELS * float(spacing_mm(affine).min()):
        return f"the same shape, but a corner lies {off:.3g} mm off"
    return ""


def _facts(path: Path, is_label: bool, known: dict[str, Any]) -> dict[str, Any]:
    """What the checks need to know of one file; {"problem": [code, message]} if it cannot be read."""
    try:
        key, stamp = str(path.resolve()), [CACHE_FORM, *_size_and_change(path), is_label]
    except OSError:
        return {"problem": ["file-missing", "no such file"]}
    if known.get(key, {}).get("stamp") == stamp:
        return dict(known[key])
    try:
        volume, *others = _volumes(path)
    except VolsegError as error:
        return {"problem": [error.code, error.message]}
    facts: dict[str, Any] = {"stamp": stamp, "shape": volume.voxels.shape, "affine": volume.affine.tolist()}
    if is_label:
        values = np.unique(volume.voxels)
        facts["whole"] = bool(np.array_equal(values, np.rint(values)))
        facts["lowest"] = float(values[0])
        facts["values"] = [float(v) for v in values[:300]]
    else:
        facts["sha256"] = [voxels_sha256(v.voxels, v.affine) for v in (volume, *others)]
    known[key] = facts
    return facts


def _size_and_change(path: Path) -> list[int]:
    """Bytes and the last change of a file, or of all that lie in a folder."""
    files = [path, *(f for f in path.rglob("*") if f.is_file())] if path.is_dir() else [path]
    states = [f.stat() for f in files]
    return [sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)]


def _volumes(path: Path) -> list[Volume]:
    """The one image at a path, or the sequences of an MRI study, the one that labels lie on first."""
    try:
        return [read_volume(path)[0]]
    except InputError as error:
        if error.code not in NOT_ONE_IMAGE:
            raise
        try:
            return list(read_mri_study(path).volumes.values())
        except InputError as of_mri:
            raise error if of_mri.code == "mri-no-channel" else of_mri from None


def _of_files(case: CohortCase, facts: Mapping[Path, dict[str, Any]], cohort: Cohort) -> list[Problem]:
    """Missing or unreadable files, label on another grid, label values that should not be there."""
    problems = []
    for file in (case.image, case.label):
        if file is not None and "problem" in facts[file]:
            code, message = facts[file]["problem"]
            problems.append(Problem(code, _shown(file, cohort), message))
    if problems or case.label is None:
        return problems
    where, image, label = _shown(case.label, cohort), facts[case.image], facts[case.label]
    differs = same_grid(image["shape"], image["affine"], label["shape"], label["affine"])
    if differs:
        problems.append(Problem("grid-differs", where, f"not on its image's grid: {differs}"))
    if not label["whole"]:
        problems.append(
            Problem("label-not-whole", where, "holds fractions; a label map was resampled or is a probability")
        )
    elif label["lowest"] < 0:
        problems.append(Problem("label-negative", where, f"holds {label['lowest']:g}"))
    elif cohort.label_values is not None:
        other = sorted(set(map(int, label["values"])) - cohort.label_values)
        if other:
            declared = ", ".join(map(str, sorted(cohort.label_values)))
            problems.append(Problem("label-undeclared", where, f"holds {other[:5]}; the datalist declares {declared}"))
    return problems


def _leaks(cohort: Cohort, hashes: Mapping[CohortCase, list[str]]) -> list[Problem]:
    problems = []
    of_patient: dict[str, list[CohortCase]] = defaultdict(list)
    of_image: dict[str, list[CohortCase]] = defaultdict(list)
    of_name: dict[str, dict[Path, None]] = defaultdict(dict)
    for case in cohort.cases:
        of_patient[case.patient].append(case)
        of_name[safe_name(case.name)][case.image] = None
        for digest in hashes[case]:
            of_image[digest].append(case)
    for patient, cases in of_patient.items():
        sections = sorted({case.section for case in cases})
        if len(sections) > 1:
            problems.append(Problem("patient-in-two-splits", f"patient {patient}", f"is in {' and '.join(sections)}"))
        folds = sorted({case.fold for case in cases if case.fold is not None and case.section == "training"})
        if len(folds) > 1:
            problems.append(Problem("patient-in-two-folds", f"patient {patient}", f"is in folds {folds}"))
        told = cohort.patients[patient].split if patient in cohort.patients else ""
        if told and sections != [told]:
            message = f"the patients file says {told}, the datalist {' and '.join(sections)}"
            problems.append(Problem("split-contradicts", f"patient {patient}", message))
    for cases in of_image.values():
        if len(cases) > 1:
            names = " and ".join(_shown(case.image, cohort) for case in cases[:3])
            sections = sorted({case.section for case in cases})
            code = "image-in-two-splits" if len(sections) > 1 else "image-twice"
            problems.append(Problem(code, names, f"hold the same voxels ({' and '.join(sections)})"))
    # Results are filed by name: of two images with one name, one would be scored with the other's masks.
    for name, images in of_name.items():
        if len(images) > 1:
            names = " and ".join(_shown(image, cohort) for image in list(images)[:3])
            more = f" and {len(images) - 3} more" * (len(images) > 3)
            problems.append(Problem("name-twice", names + more, f"share the name {name}, and so one result; rename"))
    return problems


def _shown(path: Path, cohort: Cohort) -> str:
    return shown(path.relative_to(cohort.root).as_posix() if path.is_relative_to(cohort.root) else path)


def _load(cache: Path | None) -> dict[str, Any]:
    if cache is None or not cache.is_file():
        return {}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def as_document(report: CohortReport) -> dict[str, Any]:
    """The report as JSON types."""
    return asdict(report) | {"ok": report.ok}
