"""Reception: any path a user may give -> one `Study`, or one refusal. Says which series was used and why.

Reads NIfTI, NRRD, MHA/MHD, a DICOM folder, a zip of DICOM, or one enhanced multi-frame DICOM file.
"""

from __future__ import annotations

import os
from pathlib import Path

from volseg.errors import InputError
from volseg.io.choose import choose
from volseg.io.files import check_path, recorded, safe_name, shown, stem_of, suffix_of
from volseg.io.frames import looks_like_dicom
from volseg.io.gather import Gathered, gather, unzipped
from volseg.io.itk import ITK_SUFFIXES, read_itk
from volseg.io.nifti import GZIP_MAGIC, read_nifti
from volseg.io.pixels import read_voxels
from volseg.io.series import SeriesVolume, group_frames, not_hounsfield
from volseg.io.voxels import check_finite, check_not_constant, ct_notes
from volseg.types import Study, Volume

FORMATS = "NIfTI (.nii, .nii.gz), NRRD, MHA/MHD, a DICOM folder, a .zip of DICOM, one multi-frame DICOM file"


# What `read_study` says of a folder of MRI sequences.
NOT_ONE_IMAGE = ("dicom-none-found", "dicom-several-series", "dicom-several-volumes", "dicom-several-studies")


def read_study(path: str | os.PathLike[str], *, series_uid: str | None = None, name: str | None = None) -> Study:
    """Read one study from a file or folder.

    Args:
        path: see the module's first lines.
        series_uid: which DICOM series to use: its UID or a unique ending of it. By default `choose` decides.
        name: the study's name; by default the file's or folder's. Made safe as a folder name either way.

    Returns:
        A Study with one Volume under its channel ("CT", or the DICOM modality). CT voxels are HU.

    Raises:
        InputError, UsageError: one line with a reason code; see bad_inputs in tests/io.
    """
    volume, notes = read_volume(path, series_uid=series_uid)
    where = shown(Path(path).name)
    check_not_constant(volume.voxels, where)
    if volume.channel == "CT":
        notes += ct_notes(volume.voxels)
    return Study(
        name=safe_name(name if name is not None else stem_of(Path(path))),
        volumes={volume.channel: volume},
        source=recorded(path),
        notes=notes,
    )


def read_volume(path: str | os.PathLike[str], *, series_uid: str | None = None) -> tuple[Volume, tuple[str, ...]]:
    """Read one image or label map: (Volume, notes). Integers stay integers; a constant image is allowed."""
    p = check_path(path)
    kind = what_is(p)
    if kind == "nifti":
        return read_nifti(p)
    if kind == "itk":
        return read_itk(p)
    if kind == "zip":
        with unzipped(p) as folder:
            return _read_dicom(gather(folder), series_uid, shown(p.name))
    return _read_dicom(gather(p), series_uid, shown(p.name or p))


def what_is(path: Path) -> str:
    """'nifti', 'itk', 'zip', 'dicom' or 'folder', by suffix first and content second.

    Raises:
        InputError: format-unknown.
    """
    if path.is_dir():
        return "folder"
    suffix = suffix_of(path)
    if suffix in (".nii", ".nii.gz"):
        return "nifti"
    if suffix in ITK_SUFFIXES:
        return "itk"
    try:
        with path.open("rb") as f:
            head = f.read(4)
        if head in (b"PK\3\4", b"PK\5\6") or suffix == ".zip":
            return "zip"
        if looks_like_dicom(path):
            return "dicom"
    except OSError as e:
        raise InputError("path-unreadable", f"{shown(path)}: {e.strerror or e}") from e
    if suffix == ".dcm":
        raise InputError("dicom-file-damaged", f"{shown(path.name)}: named .dcm but not DICOM; copy it again")
    what = "gzip; name it .nii.gz if it is NIfTI" if head[:2] == GZIP_MAGIC else "none volseg reads"
    raise InputError("format-unknown", f"{shown(path.name)}: the format is {what}; volseg reads {FORMATS}")


def _read_dicom(gathered: Gathered, series_uid: str | None, where: str) -> tuple[Volume, tuple[str, ...]]:
    choice = choose(group_frames(gathered.frames), series=series_uid, where=where)
    used = choice.used
    assert used.stack is not None
    voxels = read_voxels(used.stack, used.label)
    check_finite(voxels, used.label)
    notes = [*gathered.notes, f"used {used.label}"]
    notes += [f"left {v.label}: {why}" for v, why in choice.left]
    notes += dicom_notes(used)
    uid = used.frames[0].series_uid or None
    return Volume(voxels, used.stack.affine, used.modality, uid), tuple(notes)


def dicom_notes(volume: SeriesVolume) -> list[str]:
    """What is odd about a usable series, in words."""
    notes = []
    first = volume.frames[0]
    empty = [
        name
        for name, lacks in (
            ("StudyInstanceUID", not first.study_uid),
            ("SeriesInstanceUID", not first.series_uid),
            ("SOPInstanceUID", any(not f.sop_uid for f in volume.frames)),
        )
        if lacks
    ]
    if empty:
        notes.append(f"{', '.join(empty)} empty: the image is read, but DICOM outputs will not be possible")
    if volume.stack is not None and volume.stack.tilt_degrees > 0.1:
        notes.append(f"gantry tilt of {volume.stack.tilt_degrees:.1f} degrees, kept in the affine as shear")
    if volume.modality == "CT" and not all(f.has_rescale for f in volume.frames):
        notes.append("no RescaleSlope: values are used as stored and may not be Hounsfield units")
    if not_hounsfield(first):
        notes.append(f"values are in {shown(first.rescale_type, 16)}, not in Hounsfield units")
    if first.photometric == "MONOCHROME1":
        notes.append("MONOCHROME1 (shown inverted on screens): values are used as they are")
    if len(volume.frames) < 3:
        notes.append(f"only {len(volume.frames)} slices")
    if any(f.burned_in for f in volume.frames):
        notes.append("annotations are burned into the images")
    if first.contrast:
        notes.append("contrast agent was given")
    return notes
