"""What lies in a bundle's `dataset_dir`, as MONAI data dictionaries."""

from __future__ import annotations

import json
from pathlib import Path

from volseg.errors import InputError

NOT_FILES = ("patient", "site", "fold")  # what a datalist may say of a case beside its files
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip", ".dcm")


def listed_cases(dataset_dir: str, section: str, *, required: bool = True) -> list[dict[str, str]]:
    """Image and label paths of one section of `dataset_dir`/datalist.json (decathlon style), made absolute.

    `dataset_dir` may also be a list of cases itself: OUT/fold.json of `volseg train --folds`, say.

    Raises:
        InputError: no datalist, no such section, or files that are not there (all of them are named).
    """
    root = Path(dataset_dir).expanduser().resolve()
    path = root if root.is_file() else root / "datalist.json"
    if not path.is_file():
        raise InputError("datalist-missing", f"{path} does not exist; `volseg synth` writes one, see data/README.md")
    cases = json.loads(path.read_text(encoding="utf-8")).get(section, [])
    if not cases and required:
        raise InputError("datalist-empty", f"{path} lists no case under {section!r}")
    absolute = [
        {key: str(path.parent / value) for key, value in case.items() if key not in NOT_FILES} for case in cases
    ]
    gone = [value for case in absolute for value in case.values() if not Path(value).exists()]
    if gone:
        raise InputError("datalist-files-missing", f"{path} lists {len(gone)} files that are not there: {gone[:5]}")
    return absolute


def found_studies(dataset_dir: str) -> list[dict[str, str]]:
    """Every study in a folder: the datalist's `testing` cases if there is one, else image files and sub-folders.

    A folder that holds DICOM files itself is one study.
    """
    root = Path(dataset_dir).expanduser().resolve()
    if not root.is_dir():
        raise InputError("path-missing", f"{root} is not a folder; dataset_dir names the folder of studies")
    if (root / "datalist.json").is_file():
        return [{"image": case["image"]} for case in listed_cases(str(root), "testing")]
    items = [p for p in sorted(root.iterdir()) if not p.name.startswith(".")]
    studies = [p for p in items if p.is_dir() or p.name.lower().endswith(IMAGE_SUFFIXES[:-1])]
    if not studies and items:
        studies = [root]
    if not studies:
        raise InputError("no-studies", f"{root} holds no image and no folder")
    return [{"image": str(p)} for p in studies]
