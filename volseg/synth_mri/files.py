"""Synthetic MRI cases -> a folder laid out as data/README.md says.

imagesTr/<case>/ holds one file per sequence, each on its own grid; labelsTr/<case>.nii.gz lies on the grid of the
first. A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg import __version__
from volseg.io import write_nifti
from volseg.io.cohort import DATALIST, with_cases
from volseg.io.kept_cases import refuse_another
from volseg.labels import MRI_CHANNELS, MriChannel
from volseg.phantoms.mri import MriLesion
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.types import Volume


@dataclass(frozen=True, eq=False)
class MriCase:
    """One examination in memory. `volumes` int16, the reference first; `instances` (uint16) on its grid; `facts` are
    what else its JSON says."""

    volumes: Mapping[MriChannel, Volume]
    instances: NDArray[np.uint16]
    lesions: Sequence[MriLesion]
    facts: Mapping[str, Any]


ELSEWHERE = "from another examination of that name, or with another --marrow mask"


@dataclass(frozen=True)
class Recipe:
    """What all cases of one run are made by. `options` as the case's JSON keeps them, with n and section;
    `source_sha256` is of the examination and its mask, "" for phantoms; `patient` is whose body all of them show, None
    where each shows one of its own."""

    options: Mapping[str, Any]
    source_sha256: str = ""
    patient: str | None = None


def write_cases(
    folder: Path,
    names: Sequence[str],
    make: Callable[[int], MriCase],
    recipe: Recipe,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the cases `make(0)`, `make(1)` ... under their names and list them in `folder`/datalist.json.

    Returns the studies' folders. Cases already there are kept and not made again; those that another section lists are
    moved from there.

    Raises InputError: cases-of-another where cases of these names were made from another examination or mask, or with
    other options.
    """
    for name in names:
        parameters = folder / "parameters" / f"{name}.json"
        refuse_another(parameters, recipe.source_sha256, as_json(recipe.options), made="made", elsewhere=ELSEWHERE)
    section = str(recipe.options["section"])
    studies: list[Path] = []
    hidden = not progress if progress is not None else None
    for number, name in enumerate(tqdm(names, desc="MRI cases", unit="case", disable=hidden, file=sys.stderr)):
        label = folder / "labelsTr" / f"{name}.nii.gz"
        # The label comes last: a case that has one is complete.
        if not label.is_file():
            _write_case(folder, name, label, make(number), recipe)
        studies.append(folder / "imagesTr" / name)
    _list_cases(folder, studies, section, recipe.patient)
    say(f"{len(studies)} MRI studies in {folder}, listed in {DATALIST} under {section!r}")
    return studies


def _write_case(folder: Path, name: str, label: Path, case: MriCase, recipe: Recipe) -> None:
    study = folder / "imagesTr" / name
    study.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    for channel, volume in case.volumes.items():
        write_nifti(study / f"{channel}.nii.gz", volume.voxels, volume.affine, dtype=np.int16)
    lesions = [as_json(asdict(lesion)) for lesion in case.lesions]
    parameters = {
        "case": name,
        "synthetic": True,
        "volseg": __version__,
        "source_sha256": recipe.source_sha256,
        **case.facts,
        "options": recipe.options,
        "lesions": lesions,
    }
    write_whole(folder / "parameters" / f"{name}.json", json.dumps(parameters, indent=1))
    affine = next(iter(case.volumes.values())).affine
    write_nifti(label, case.instances, affine, dtype=np.uint16)


def _list_cases(folder: Path, studies: list[Path], section: str, patient: str | None) -> None:
    about = {
        "name": "volseg synthetic spine MRI",
        "description": "SYNTHETIC lesions in phantoms or grown in MRI; not clinical data. An image is a folder",
        "labels": {"0": "background", "1...": "lesion instances"},
        "modality": {str(n): channel for n, channel in enumerate(MRI_CHANNELS)},
    }
    cases = [
        {
            "image": study.relative_to(folder).as_posix(),
            "label": f"labelsTr/{study.name}.nii.gz",
            "patient": patient or study.name,
        }
        for study in studies
    ]
    path = folder / DATALIST
    write_whole(path, json.dumps(with_cases(path, section, cases, about), indent=1))
