"""What lies in a bundle's `dataset_dir`, as MONAI data dictionaries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from volseg.errors import InputError

FILES = ("image", "label", "bone")  # what of a datalist's case is a file; it may say more
SECTIONS = ("training", "validation", "testing")
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip", ".dcm")


def listed_cases(dataset_dir: str, section: str, *, required: bool = True) -> list[dict[str, str]]:
    """Files of one section of `dataset_dir`/datalist.json (decathlon style), by key of `FILES`, made absolute.

    `dataset_dir` may also be a list of cases itself: OUT/fold.json of `volseg train --folds`, say. A case may be the
    name of its image alone; what else a case says (its patient, an age) is not handed on.

    Raises:
        InputError: no datalist, none that can be read, no such section, or files that are not there (all are named).
    """
    root = Path(dataset_dir).expanduser().resolve()
    path = root if root.is_file() else root / "datalist.json"
    if not path.is_file():
        raise InputError("datalist-missing", f"{path} does not exist; `volseg synth` writes one, see data/README.md")
    document = _read(path)
    cases = document.get(section) or []
    if not isinstance(cases, list):
        raise InputError("datalist-unreadable", f"{path}: {section!r} is no list of cases; see data/README.md")
    if not cases and required:
        lists = {name: listed for name, listed in document.items() if isinstance(listed, list) and listed}
        there = ", ".join(f"{name} ({len(listed)})" for name, listed in lists.items()) or "none at all"
        raise InputError("datalist-empty", f"{path} lists no case under {section!r}; it has {there}")
    absolute = [_files(case, path, f"{section} {n}") for n, case in enumerate(cases, start=1)]
    gone = [value for case in absolute for value in case.values() if not Path(value).exists()]
    if gone:
        raise InputError("datalist-files-missing", f"{path} lists {len(gone)} files that are not there: {gone[:5]}")
    return absolute


def files_of(case: Mapping[str, Any] | str) -> dict[str, Any]:
    """What of a datalist's case names a file; a key without a value names none."""
    return {"image": case} if isinstance(case, str) else {key: case[key] for key in FILES if case.get(key)}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("datalist-unreadable", f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError("datalist-unreadable", f"{path}: an object with sections belongs here; see data/README.md")
    return document


def _files(case: Any, path: Path, at: str) -> dict[str, str]:
    named = files_of(case) if isinstance(case, dict | str) else {}
    if not isinstance(named.get("image"), str):
        raise InputError("datalist-unreadable", f'{path}, {at}: no "image" that is one file name; see data/README.md')
    wrong = next((key for key, value in named.items() if not isinstance(value, str)), None)
    if wrong:
        raise InputError("datalist-unreadable", f'{path}, {at}: "{wrong}" is not one file name; see data/README.md')
    return {key: str(path.parent / value) for key, value in named.items()}


def found_studies(dataset_dir: str) -> list[dict[str, str]]:
    """Every study in a folder: its datalist's cases if there is one, else image files and sub-folders.

    Of a datalist, the `testing` cases; where it has none, those of every section. A folder that holds DICOM files
    itself is one study.

    Raises InputError: path-missing, no-studies; names-collide where two masks would be saved under one name.
    """
    root = Path(dataset_dir).expanduser().resolve()
    if not root.is_dir():
        raise InputError("path-missing", f"{root} is not a folder; dataset_dir names the folder of studies")
    studies = _listed(root) if (root / "datalist.json").is_file() else _lying_in(root)
    _refuse_twins(studies)
    return [{"image": str(path)} for path in studies]


def name_to_save(meta: dict[Any, Any], saver: Any) -> dict[str, Any]:
    """What SaveImaged names a result after: the study's whole name, of which MONAI would take what follows a dot.

    Folders of DICOM are often called by a UID, whose last number is no file suffix.
    """
    named = default_name_formatter(meta, saver)
    return named | {"subject": f"{_name(Path(str(named['subject'])))}.nii"}


def _listed(root: Path) -> list[Path]:
    cases = listed_cases(str(root), "testing", required=False)
    if not cases:
        cases = [case for name in SECTIONS for case in listed_cases(str(root), name, required=False)]
    return [Path(case["image"]) for case in cases or listed_cases(str(root), "testing")]


def _lying_in(root: Path) -> list[Path]:
    items = [p for p in sorted(root.iterdir()) if not p.name.startswith(".")]
    studies = [p for p in items if p.is_dir() or p.name.lower().endswith(IMAGE_SUFFIXES[:-1])]
    if not studies and items:
        studies = [root]
    if not studies:
        raise InputError("no-studies", f"{root} holds no image and no folder")
    return studies


def _refuse_twins(studies: Sequence[Path]) -> None:
    first: dict[str, Path] = {}
    for path in studies:
        other = first.setdefault(_name(path), path)
        if other != path:
            raise InputError("names-collide", f"{other} and {path} would be saved under one name; rename one")


def _name(study: Path) -> str:
    """Of a file without its image suffix, of a folder whole."""
    suffix = next((one for one in IMAGE_SUFFIXES if study.name.lower().endswith(one)), "")
    return study.name[: len(study.name) - len(suffix)]
