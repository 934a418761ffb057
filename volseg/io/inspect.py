"""`volseg info`: what lies at a path, what would be used and why the rest is left. Headers only; imports no torch.

Enters: any path. Leaves: an `Inspection`, as a table for a terminal or as a dict for JSON. Bad content is told as a
refusal inside the Inspection; only a path that cannot be opened at all raises. Of MR series it says which is T1, T1c,
T2 or STIR, as `read_mri_study` would take them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydicom.uid import UID

from volseg.errors import InputError, VolsegError
from volseg.geometry import Affine, axis_codes, spacing_mm
from volseg.io.choose import choose
from volseg.io.files import check_path, shown
from volseg.io.gather import Gathered, gather, unzipped
from volseg.io.itk import read_itk_header
from volseg.io.mri_candidates import Candidate, dicom_candidates, image_files, of_file
from volseg.io.mri_study import Plan, plan_mri
from volseg.io.nifti import read_nifti_header
from volseg.io.nifti_header import NiftiHeader
from volseg.io.series import SeriesVolume, group_frames
from volseg.io.study import dicom_notes, what_is

_FORMATS = {"nifti": "NIfTI", "itk": "NRRD or MetaImage", "zip": "zip of DICOM", "dicom": "DICOM file"}
_FORMATS |= {"folder": "DICOM folder"}


@dataclass(frozen=True)
class SeriesRow:
    """One image. Lengths in mm; None or '' where the header does not tell. Texts are one printable line each."""

    id: str
    modality: str
    description: str
    images: int
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    orientation: str
    tilt_degrees: float
    encoding: str
    contrast: str
    used: bool
    why: str
    code: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Inspection:
    """What is at `path`. `refusal` is (code, message) where `read_study` would refuse it by its headers; for a folder
    of MR sequences, where `read_mri_study` would."""

    path: str
    format: str
    series: tuple[SeriesRow, ...]
    notes: tuple[str, ...] = ()
    refusal: tuple[str, str] | None = None


def inspect(path: str | os.PathLike[str], *, series_uid: str | None = None) -> Inspection:
    """Look at headers only.

    Raises:
        InputError: the path is missing, unreadable, empty, no file, or of a format volseg does not read.
        UsageError: `series_uid` fits none or several of the series there.
    """
    p = check_path(path)
    kind = what_is(p)
    name, label = shown(p, 200), _FORMATS[kind]
    try:
        if kind == "nifti":
            header = read_nifti_header(p)
            row = _file_row(header.shape, header.affine, f"NIfTI {header.dtype.name}")
            return Inspection(name, label, (_with_channel(row, p),), header.notes)
        if kind == "itk":
            itk = read_itk_header(p)
            row = _file_row(itk.shape, itk.affine, itk.pixel_type)
            return Inspection(name, label, (_with_channel(row, p),))
        if kind == "zip":
            with unzipped(p) as folder:
                return _of_dicom(name, label, gather(folder), series_uid)
        try:
            return _of_dicom(name, label, gather(p), series_uid)
        except InputError as e:
            files = image_files(p) if e.code == "dicom-none-found" and p.is_dir() else []
            if not files:
                raise
            return _of_files(name, [of_file(file, p) for file in files], (e.code, e.message))
    except VolsegError as e:
        if e.exit_code == 2:
            raise
        return Inspection(name, label, (), refusal=(e.code, e.message))


def _file_row(shape: tuple[int, int, int], affine: Affine, encoding: str) -> SeriesRow:
    spacing = tuple(round(float(s), 4) for s in spacing_mm(affine))
    codes = axis_codes(affine)
    return SeriesRow("", "", "", shape[2], shape, spacing, codes, 0.0, encoding, "", True, "the only image")


def _with_channel(row: SeriesRow, path: Path) -> SeriesRow:
    """The same row with the MRI channel its name or sidecar speaks of; in a CT's name T1 may be a vertebra."""
    verdict = of_file(path, path.parent).verdict
    if not verdict.channel:
        return row
    return replace(row, channel=verdict.channel, why=f"{row.why}; by its name {verdict.channel}, if it is MRI")


def _of_files(name: str, found: list[Candidate], none_found: tuple[str, str]) -> Inspection:
    """A folder of image files named by sequence; without any sequence it stays a folder without DICOM."""
    plan, refusal = _mri_plan(found, name) if any(c.verdict.channel for c in found) else (None, none_found)
    rows = []
    for c in found:
        if c.problem is not None:
            rows.append(
                SeriesRow("", "", c.label, 0, (0, 0), None, "", 0.0, "", "", False, c.problem.code, c.problem.code)
            )
            continue
        path = Path(c.id)
        header = read_nifti_header(path) if what_is(path) == "nifti" else read_itk_header(path)
        encoding = f"NIfTI {header.dtype.name}" if isinstance(header, NiftiHeader) else header.pixel_type
        row = _file_row(header.shape, header.affine, encoding)
        used, why = _told(plan, c)
        rows.append(replace(row, description=c.label, used=used, why=why, channel=c.verdict.channel or ""))
    return Inspection(name, "folder of images", tuple(rows), plan.notes if plan else (), refusal)


def _mri_plan(found: list[Candidate], name: str) -> tuple[Plan | None, tuple[str, str] | None]:
    try:
        return plan_mri(found, where=name), None
    except InputError as e:
        return None, (e.code, e.message)


def _told(plan: Plan | None, c: Candidate) -> tuple[bool, str]:
    """Whether `read_mri_study` would use a series, and why or why not."""
    if plan is None:
        return False, f"rule '{c.verdict.rule}'" if c.verdict.channel else c.verdict.why
    channel = next((channel for channel, used in plan.used.items() if used is c), None)
    return channel is not None, f"used as {channel}" if channel else next(why for one, why in plan.left if one is c)


def _of_dicom(name: str, label: str, gathered: Gathered, series_uid: str | None) -> Inspection:
    volumes = group_frames(gathered.frames)
    used: SeriesVolume | None = None
    why: dict[int, str] = {}
    notes = list(gathered.notes)
    refusal: tuple[str, str] | None = None
    try:
        choice = choose(volumes, series=series_uid, where=name)
        used = choice.used
        why = {id(v): reason for v, reason in choice.left}
        notes += dicom_notes(used)
    except VolsegError as e:
        if e.exit_code == 2:
            raise
        refusal = (e.code, e.message)
    rows = [_series_row(v, used=v is used, why=why.get(id(v), "")) for v in volumes]
    found = dicom_candidates(volumes)
    rows = [replace(row, channel=c.verdict.channel or "") for row, c in zip(rows, found, strict=True)]
    scans = {v.modality for v in volumes if not v.left_because}
    if series_uid is None and "MR" in scans and "CT" not in scans and any(c.verdict.channel for c in found):
        plan, refusal = _mri_plan(found, name)
        told = [_told(plan, c) for c in found]
        rows = [replace(row, used=u, why=row.code or w) for row, (u, w) in zip(rows, told, strict=True)]
        notes = [*gathered.notes, *(plan.notes if plan else ())]
        notes += [f"{channel}: {note}" for channel, c in (plan.used if plan else {}).items() for note in c.notes]
    elif series_uid is None and "MR" in scans and (serves := _mri_plan(found, name)[0]) is not None:
        told_mri = ", ".join(f"{channel} ({c.label})" for channel, c in serves.used.items())
        notes.append(f"a bundle that reads MRI takes {told_mri}")
    return Inspection(name, label, tuple(rows), tuple(notes), refusal)


def _series_row(v: SeriesVolume, *, used: bool, why: str) -> SeriesRow:
    first = v.frames[0]
    affine = v.stack.affine if v.stack else None
    problem = v.problem.code if v.problem else ""
    return SeriesRow(
        id=shown(v.id),
        modality=shown(v.modality, 16),
        description=shown(first.description, 64),
        images=len(v.frames),
        shape=v.stack.shape if v.stack else (first.columns, first.rows),
        spacing_mm=None if affine is None else tuple(round(float(s), 4) for s in spacing_mm(affine)),
        orientation="" if affine is None else axis_codes(affine),
        tilt_degrees=round(v.stack.tilt_degrees, 2) if v.stack else 0.0,
        encoding=UID(first.transfer_syntax).name,
        contrast=shown(first.contrast, 40),
        used=used,
        why="used" if used else why or v.left_because or problem,
        code=problem,
    )


def to_dict(inspection: Inspection) -> dict[str, Any]:
    """For `--json`: plain lists, numbers and strings."""
    out = asdict(inspection)
    if inspection.refusal:
        out["refusal"] = {"code": inspection.refusal[0], "message": inspection.refusal[1]}
    return out


def format_table(inspection: Inspection) -> str:
    """For a terminal: one row per image, then notes and the refusal."""
    head = ("", "series", "what", "channel", "shape", "spacing mm", "axes", "tilt", "encoding", "description", "why")
    rows = [head, *(_cells(r) for r in inspection.series)]
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in keep]
    lines = [f"{inspection.path}: {inspection.format}, {len(inspection.series)} image(s)"]
    if inspection.series:
        lines.append(_line([head[i] for i in keep], widths))
        lines.append(_line(["-" * w for w in widths], widths))
        lines += [_line([row[i] for i in keep], widths) for row in rows[1:]]
    lines += [f"note: {note}" for note in inspection.notes]
    if inspection.refusal:
        lines.append(f"refused: {inspection.refusal[0]}: {inspection.refusal[1]}")
    return "\n".join(lines)


def _cells(r: SeriesRow) -> tuple[str, ...]:
    tail = f"...{r.id[-14:]}" if len(r.id) > 17 else r.id
    spacing = " x ".join(f"{s:.3g}" for s in r.spacing_mm) if r.spacing_mm else ""
    tilt = f"{r.tilt_degrees:.1f}°" if r.tilt_degrees > 0.1 else ""
    shape = " x ".join(str(n) for n in r.shape) if r.spacing_mm else f"{r.images} of {r.shape[0]} x {r.shape[1]}"
    what = f"{r.modality}{' +contrast' if r.contrast else ''}"
    return (
        "*" if r.used else "",
        tail,
        what,
        r.channel,
        shape,
        spacing,
        r.orientation,
        tilt,
        r.encoding,
        r.description[:32],
        r.why,
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
