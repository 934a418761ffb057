"""Synthetic MRI studies on disk: phantoms of the spine with lesions of exactly known mask, several sequences each.

Leaves a folder laid out as data/README.md says: imagesTr/<case>/ holds one file per sequence, each on its own grid;
labelsTr/<case>.nii.gz lies on the grid of the first (T1). Every case is a site of its own: coil, noise, scale, spacing
and field of view are drawn. It depends on (seed, number) alone, so a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from volseg import __version__
from volseg.io import write_nifti
from volseg.io.cohort import DATALIST, with_cases
from volseg.labels import MRI_CHANNELS
from volseg.phantoms import Region
from volseg.phantoms.mri import MriOptions, MriPhantom, mri_phantom
from volseg.report.files import write_whole
from volseg.report.tables import as_json

MRI_PHANTOM = "mri-phantom"
REGIONS: tuple[Region, ...] = ("abdomen", "thorax", "pelvis")


@dataclass(frozen=True)
class MriSynthOptions:
    """How many cases and what they hold. Ranges are inclusive; `healthy` is the fraction of cases without lesions."""

    n: int = 10
    seed: int = 0
    lesions: tuple[int, int] = (1, 6)
    lookalikes: tuple[int, int] = (0, 3)
    healthy: float = 0.15
    section: str = "training"


def mri_case(options: MriSynthOptions, number: int) -> tuple[MriPhantom, MriOptions]:
    """One case in memory, and the examination that was drawn for it."""
    rng = np.random.default_rng([options.seed, 77, number])
    in_plane = float(rng.uniform(0.8, 1.4))
    healthy = bool(rng.random() < options.healthy)
    examination = MriOptions(
        region=REGIONS[number % len(REGIONS)],
        spacing_mm=(float(rng.uniform(3.0, 4.8)), in_plane, in_plane),
        size_mm=(float(rng.uniform(60, 96)), float(rng.uniform(130, 180)), float(rng.uniform(130, 190))),
        lesions=0 if healthy else int(rng.integers(options.lesions[0], options.lesions[1] + 1)),
        lookalikes=int(rng.integers(options.lookalikes[0], options.lookalikes[1] + 1)),
        diameters_mm=(8.0, 30.0),
        bias=float(rng.uniform(0.05, 0.35)),
        noise=float(rng.uniform(0.015, 0.07)),
        motion_mm=float(rng.uniform(0, 1.8)),
        motion_degrees=float(rng.uniform(0, 1.2)),
    )
    return mri_phantom(rng, examination), examination


def write_mri_cases(
    folder: Path,
    options: MriSynthOptions,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write `options.n` cases and list them in `folder`/datalist.json; returns the studies' folders.

    Cases already there are kept.
    """
    studies: list[Path] = []
    hidden = not progress if progress is not None else None
    with tqdm(total=options.n, desc="MRI phantoms", unit="case", disable=hidden, file=sys.stderr) as bar:
        for number in range(options.n):
            name = f"mri_s{options.seed}_{number:03d}"
            label = folder / "labelsTr" / f"{name}.nii.gz"
            # The label comes last: a case that has one is complete.
            if not label.is_file():
                _write_case(folder, name, label, options, number)
            studies.append(folder / "imagesTr" / name)
            bar.update()
    _list_cases(folder, studies, options.section)
    say(f"{len(studies)} MRI studies in {folder}, listed in {DATALIST} under {options.section!r}")
    return studies


def _write_case(folder: Path, name: str, label: Path, options: MriSynthOptions, number: int) -> None:
    phantom, examination = mri_case(options, number)
    study = folder / "imagesTr" / name
    study.mkdir(parents=True, exist_ok=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    for channel, volume in phantom.volumes.items():
        write_nifti(study / f"{channel}.nii.gz", volume.voxels, volume.affine, dtype=np.int16)
    parameters = {
        "case": name,
        "synthetic": True,
        "source": MRI_PHANTOM,
        "volseg": __version__,
        "options": asdict(options),
        "examination": as_json(asdict(examination)),
        "fat_fraction": phantom.fat_fraction,
        "lesions": [as_json(asdict(lesion)) for lesion in phantom.lesions],
        "lookalikes": list(phantom.lookalikes),
    }
    write_whole(folder / "parameters" / f"{name}.json", json.dumps(parameters, indent=1))
    affine = phantom.volumes[examination.channels[0]].affine
    write_nifti(label, phantom.instances, affine, dtype=np.uint16)


def _list_cases(folder: Path, studies: list[Path], section: str) -> None:
    about = {
        "name": "volseg synthetic spine MRI",
        "description": "SYNTHETIC: computed phantoms with lesions; not clinical data. An image is a folder",
        "labels": {"0": "background", "1...": "lesion instances"},
        "modality": {str(n): channel for n, channel in enumerate(MRI_CHANNELS)},
    }
    cases = [
        {"image": study.relative_to(folder).as_posix(), "label": f"labelsTr/{study.name}.nii.gz"} for study in studies
    ]
    path = folder / DATALIST
    write_whole(path, json.dumps(with_cases(path, section, cases, about), indent=1))
