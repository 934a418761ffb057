"""A folder, a zip or a file -> the series in it that could be sequences of an MRI study. Headers only.

DICOM series, or (where there is no DICOM) NIfTI, NRRD and MetaImage files named by their sequence, as BIDS does; the
times of a JSON beside such a file (BIDS's sidecar) count as a header's do.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import InputError
from volseg.geometry import Affine, closest_axes, spacing_mm
from volseg.io.files import check_path, shown, stem_of, suffix_of
from volseg.io.frames import Frame
from volseg.io.gather import gather, unzipped
from volseg.io.itk import ITK_SUFFIXES, read_itk_header
from volseg.io.mri_rules import Evidence, Verdict, channel_of, says_something
from volseg.io.nifti import read_nifti_header
from volseg.io.pixels import read_voxels
from volseg.io.series import SeriesVolume, group_frames
from volseg.io.study import dicom_notes, read_volume, what_is
from volseg.io.voxels import check_finite
from volseg.types import Volume

MOST_FILES = 2000
_NO_AGENT = {"", "none", "no", "n", "0", "nil", "ohne", "without", "unknown", "na", "n/a"}
_LARGEST_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Candidate:
    """One series. `label` names it for a person; `id` is its SeriesInstanceUID or path.

    `patient`, `study_uid` and `frame_of_reference` are '' where nothing tells; `plane` is 'sagittal', 'coronal',
    'axial' or, for cubic voxels, 'volume'. `problem` is why it cannot be used. `read` decodes the voxels.
    """

    id: str
    label: str
    verdict: Verdict
    patient: str
    study_uid: str
    frame_of_reference: str
    plane: str
    notes: tuple[str, ...]
    problem: InputError | None
    read: Callable[[], Volume]


def candidates_at(path: str | os.PathLike[str], open_zips: contextlib.ExitStack) -> list[Candidate]:
    """Every series at a path. A zip stays unpacked until `open_zips` is closed.

    Raises:
        InputError: those of `check_path`, `what_is` and `gather`; folder-too-large.
    """
    p = check_path(path)
    kind = what_is(p)
    if kind in ("nifti", "itk"):
        return [of_file(p, p.parent)]
    if kind == "zip":
        return dicom_candidates(group_frames(gather(open_zips.enter_context(unzipped(p))).frames))
    files = image_files(p) if kind == "folder" else []
    try:
        return dicom_candidates(group_frames(gather(p).frames))
    except InputError as e:
        if e.code != "dicom-none-found" or not files:
            raise
    return [of_file(file, p) for file in files]


def image_files(folder: Path) -> list[Path]:
    """NIfTI, NRRD and MetaImage files under a folder, sorted; links are not followed."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            file = Path(where) / name
            if name.startswith(".") or suffix_of(file) not in (".nii", ".nii.gz", *ITK_SUFFIXES):
                continue
            if not file.is_symlink() or folder.resolve() in file.resolve().parents:
                found.append(file)
        if len(found) > MOST_FILES:
            raise InputError("folder-too-large", f"{shown(folder)}: over {MOST_FILES} images; give one study's folder")
    return found


def dicom_candidates(volumes: Iterable[SeriesVolume]) -> list[Candidate]:
    """Every volume of a DICOM folder; what is no grey MR scan has a `problem`."""
    return [_of_series(v) for v in volumes]


def evidence_of(frame: Frame) -> Evidence:
    """What a DICOM header says of the contrast: the first of its names that speaks of one, and the times."""
    texts = [frame.description, *frame.mr.names, *frame.mr.techniques]
    return Evidence(
        text=next((t for t in texts if says_something(t)), frame.description),
        tr_ms=frame.mr.tr_ms,
        te_ms=frame.mr.te_ms,
        ti_ms=frame.mr.ti_ms or None,
        agent=frame.contrast.strip().lower() not in _NO_AGENT,
        fat_saturated="FS" in frame.mr.options,
        gradient_echo="GR" in frame.mr.techniques and "SE" not in frame.mr.techniques,
    )


def _of_series(v: SeriesVolume) -> Candidate:
    first = v.frames[0]
    problem = v.problem
    if v.left_because:
        problem = InputError("mri-not-a-scan", f"{v.label}: {v.left_because}; a grey MR series is due")
    elif v.modality != "MR":
        problem = InputError("mri-not-mr", f"{v.label}: its modality is not MR; give an MR series")

    def read() -> Volume:
        assert v.stack is not None
        voxels = read_voxels(v.stack, v.label)
        check_finite(voxels, v.label)
        return Volume(voxels, v.stack.affine, "MR", first.series_uid or None)

    return Candidate(
        id=v.id,
        label=v.label,
        verdict=channel_of(evidence_of(first)) if v.modality == "MR" else Verdict(None, "", "not MR"),
        patient=first.patient,
        study_uid=first.study_uid,
        frame_of_reference=first.frame_of_reference,
        plane=plane_of(v.stack.affine, 2) if v.stack else "",
        notes=tuple(dicom_notes(v)),
        problem=problem,
        read=read,
    )


def of_file(file: Path, root: Path) -> Candidate:
    """One image file; its patient is BIDS's `sub-` entity in its name or in a folder below `root`, if there is one."""
    problem: InputError | None = None
    affine: Affine | None = None
    try:
        header = read_nifti_header(file) if what_is(file) == "nifti" else read_itk_header(file)
        affine = header.affine
    except InputError as e:
        problem = e
    inner = file.relative_to(root).as_posix() if root in file.parents else file.name
    subject = re.findall(r"(?:^|[/_])sub-([A-Za-z0-9]+)", inner)
    return Candidate(
        id=str(file.resolve()),
        label=shown(inner),
        verdict=channel_of(_file_evidence(file)),
        patient=subject[-1] if subject else "",
        study_uid="",
        frame_of_reference="",
        plane="" if affine is None else plane_of(affine),
        notes=(),
        problem=problem,
        read=lambda: read_volume(file)[0],
    )


def _file_evidence(file: Path) -> Evidence:
    name = stem_of(file)
    beside = file.with_name(f"{name}.json")
    sidecar: Any = None
    with contextlib.suppress(OSError, ValueError):  # a sidecar that cannot be read leaves the name to decide
        if beside.is_file() and beside.stat().st_size <= _LARGEST_SIDECAR_BYTES:
            sidecar = json.loads(beside.read_text(encoding="utf-8"))
    known = sidecar if isinstance(sidecar, dict) else {}

    def ms(key: str) -> float | None:
        """BIDS writes seconds."""
        value = known.get(key)
        return 1000.0 * value if isinstance(value, int | float) and value > 0 else None

    texts = [name, *(str(known.get(k, "")) for k in ("SeriesDescription", "ProtocolName"))]
    agent = str(known.get("ContrastBolusIngredient", "")).strip().lower()
    return Evidence(
        text=next((t for t in texts if says_something(t)), name),
        tr_ms=ms("RepetitionTime"),
        te_ms=ms("EchoTime"),
        ti_ms=ms("InversionTime"),
        agent=agent not in _NO_AGENT,
        fat_saturated="FS" in str(known.get("ScanOptions", "")).upper().replace("\\", "_").split("_"),
        gradient_echo=str(known.get("ScanningSequence", "")).upper() == "GR",
    )


def plane_of(affine: Affine, slice_axis: int | None = None) -> str:
    """The plane of the slices. Without a known slice axis it is that of the largest spacing."""
    steps = spacing_mm(affine)
    if steps.max() < 1.2 * steps.min():
        return "volume"
    axis = int(steps.argmax()) if slice_axis is None else slice_axis
    return ("sagittal", "coronal", "axial")[closest_axes(affine)[0].index(axis)]
