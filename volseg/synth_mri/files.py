"""Synthetic MRI cases -> a folder laid out as data/README.md says.

imagesTr/<case>/ holds one file per sequence, each on its own grid; labelsTr/<case>.nii.gz lies on the grid of the
first. A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
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
from volseg.errors import InputError
from volseg.io import write_nifti
from volseg.io.cohort import DATALIST, with_cases
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
        _refuse_another(folder / "parameters" / f"{name}.json", recipe)
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


def fingerprint(volumes: Mapping[str, Volume], mask: NDArray[np.bool_], mask_affine: NDArray[np.float64]) -> str:
    """Of an examination's sequences, in their order (the first is the reference), and where lesions may grow in it."""
    digest = hashlib.sha256()
    for channel, volume in volumes.items():
        digest.update(channel.encode() + np.asarray(volume.voxels).tobytes() + volume.affine.tobytes())
    digest.update(np.packbits(mask).tobytes() + mask_affine.tobytes())
    return digest.hexdigest()


def _refuse_another(parameters: Path, recipe: Recipe) -> None:
    """A case that is there may only be kept if the same recipe made it. What it does not say is believed."""
    if not parameters.is_file():
        return
    try:
        before = json.loads(parameters.read_text(encoding="utf-8"))
        source, how = before.get("source_sha256", recipe.source_sha256), dict(before.get("options", {}))
    except (ValueError, TypeError, AttributeError):
        return  # cut off while it was written: the case is made again
    advice = "choose another --seed or folder"
    if source != recipe.source_sha256:
        told = "was made from another examination of that name, or with another --marrow mask"
        raise InputError("cases-of-another", f"{parameters.stem} {told}; {advice}")
    now = as_json(recipe.options)
    if other := [key for key in now if key not in ("n", "section") and how.get(key, now[key]) != now[key]]:
        told = ", ".join(f"{key} {how[key]}, not {now[key]}" for key in other)
        raise InputError("cases-of-another", f"{parameters.stem} was made otherwise ({told}); {advice}")


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
