"""Synthetic cases on disk: lesions of exactly known mask, grown in real CTs or in phantoms.

Enters: named volumes. Leaves: a folder laid out like a Medical Segmentation Decathlon task (imagesTr, labelsTr,
datalist.json), one JSON of parameters per case. Every case depends on (seed, source, number) alone, so a run that was
cut off goes on where it stopped and gives the same files.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from volseg import __version__
from volseg.errors import InputError
from volseg.geometry import spacing_mm, voxel_to_ras_mm
from volseg.io import write_nifti
from volseg.io.cohort import DATALIST, with_cases
from volseg.io.kept_cases import fingerprint, refuse_another
from volseg.phantoms import ct_phantom
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.transforms.bone import BoneMask, bone_mask
from volseg.transforms.synthesis import grow_lesions
from volseg.transforms.synthesis_scanner import Scanner, measure_scanner
from volseg.types import Volume

PHANTOM = "phantom"
PHANTOM_REGIONS: tuple[Literal["abdomen", "thorax", "pelvis"], ...] = ("abdomen", "thorax", "pelvis")


@dataclass(frozen=True)
class SynthOptions:
    """How many cases to grow and what they hold.

    `lesions` and `distractors` are inclusive ranges per case; `healthy` is the fraction of cases without lesions;
    `block_mm` crops a cube of that size around a random bone voxel (None keeps the whole CT).
    """

    n: int = 10
    seed: int = 0
    lesions: tuple[int, int] = (1, 6)
    distractors: tuple[int, int] = (0, 2)
    healthy: float = 0.1
    block_mm: float | None = None
    section: str = "training"


@dataclass(frozen=True, eq=False)
class Source:
    """What cases are grown in: a CT, its bone and scanner measured once; or (all None) a fresh phantom per case."""

    name: str
    volume: Volume | None = None
    bone: BoneMask | None = None
    scanner: Scanner | None = None


def write_cases(
    sources: Mapping[str, Volume | None],
    folder: Path,
    options: SynthOptions,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Grow `options.n` cases in each source and list them in `folder`/datalist.json; returns the image paths.

    `sources` maps a name (safe for files) to a CT in HU, or to None for phantoms. Cases already there are kept; those
    that another section lists are moved from there. The cases of one CT are one patient's, named as the CT is.

    Raises InputError: no-bone; cases-of-another where cases of these names were grown in another CT or otherwise.
    """
    for sub in ("imagesTr", "labelsTr", "parameters"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    images: list[Path] = []
    patients: dict[Path, str] = {}
    bar = tqdm(
        total=len(sources) * options.n,
        desc="growing lesions",
        unit="case",
        disable=not progress if progress is not None else None,
        file=sys.stderr,
    )
    asked = as_json(asdict(options))
    made_from = {name: fingerprint(volume) for name, volume in sources.items()}
    for name in sources:
        for number in range(options.n):
            parameters = _paths(folder, _stem(name, options, number))["parameters"]
            refuse_another(parameters, made_from[name], asked, made="grown", elsewhere="in another CT of that name")
    with bar:
        for name, volume in sources.items():
            source: Source | None = None
            for number in range(options.n):
                stem = _stem(name, options, number)
                paths = _paths(folder, stem)
                if not all(path.is_file() for path in paths.values()):
                    source = source or prepare(name, volume)
                    _write_case(source, stem, paths, options, number, made_from[name])
                images.append(paths["image"])
                # All cases of a CT show one body and belong together; every phantom is a body of its own.
                patients[paths["image"]] = stem if volume is None else name
                bar.update()
    _list_cases(folder, patients, options.section)
    say(f"{len(images)} cases in {folder}, listed in {DATALIST} under {options.section!r}")
    return images


def prepare(name: str, volume: Volume | None) -> Source:
    """Find a CT's bone and measure its scanner; a phantom (None) brings its own.

    Raises:
        InputError: there is no bone in view.
    """
    if volume is None:
        return Source(name)
    bone = bone_mask(volume.voxels, volume.affine)
    if not bone.bone.any():
        raise InputError("no-bone", f"{name}: no bone in view, so there is nothing to grow lesions in")
    return Source(name, volume, bone, measure_scanner(volume.voxels, volume.affine))


def grow_case(source: Source, options: SynthOptions, number: int) -> tuple[Volume, np.ndarray, dict[str, Any]]:
    """One case in memory: (volume, instances uint16 on its grid, parameters). See `SynthOptions`."""
    rng = np.random.default_rng([options.seed, zlib.crc32(source.name.encode()), number])
    if source.volume is None or source.bone is None:
        phantom = ct_phantom(rng, region=PHANTOM_REGIONS[number % len(PHANTOM_REGIONS)])
        volume, bone = phantom.volume, BoneMask(bone=phantom.bone, marrow=phantom.marrow, cortex=phantom.cortex)
    else:
        volume, bone = source.volume, source.bone
    if options.block_mm is not None:
        volume, bone = cut_block(volume, bone, options.block_mm, rng)
    n_lesions = 0 if rng.random() < options.healthy else int(rng.integers(options.lesions[0], options.lesions[1] + 1))
    n_distractors = int(rng.integers(options.distractors[0], options.distractors[1] + 1))
    grown = grow_lesions(volume, n=n_lesions, rng=rng, bone=bone, scanner=source.scanner, distractors=n_distractors)
    parameters = {
        "synthetic": True,
        "source": source.name,
        "number": number,
        "volseg": __version__,
        "options": asdict(options),
        "lesions": [as_json(asdict(lesion)) for lesion in grown.lesions],
        "distractors": [as_json(asdict(d)) for d in grown.distractors],
    }
    return grown.volume, grown.instances, parameters


def _write_case(
    source: Source, stem: str, paths: dict[str, Path], options: SynthOptions, number: int, made_from: str
) -> None:
    volume, instances, parameters = grow_case(source, options, number)
    voxels = np.rint(np.clip(volume.voxels, -1024, 8000)).astype(np.int16)
    write_nifti(paths["image"], voxels, volume.affine, dtype=np.int16)
    write_whole(paths["parameters"], json.dumps({"case": stem, "source_sha256": made_from, **parameters}, indent=1))
    # The label comes last: a case with all three files is a complete one.
    write_nifti(paths["label"], instances, volume.affine, dtype=np.uint16)


def cut_block(volume: Volume, bone: BoneMask, size_mm: float, rng: np.random.Generator) -> tuple[Volume, BoneMask]:
    """Crop about `size_mm` around a random marrow (else bone) voxel, kept inside the volume."""
    candidates = np.flatnonzero(bone.marrow if bone.marrow.any() else bone.bone)
    center = np.unravel_index(candidates[rng.integers(candidates.size)], bone.bone.shape)
    lengths = [
        min(n, max(1, round(size_mm / s))) for n, s in zip(bone.bone.shape, spacing_mm(volume.affine), strict=True)
    ]
    starts = [
        int(np.clip(c - length // 2, 0, n - length))
        for c, length, n in zip(center, lengths, bone.bone.shape, strict=True)
    ]
    box = tuple(slice(s, s + length) for s, length in zip(starts, lengths, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = voxel_to_ras_mm(volume.affine, starts)
    cropped = Volume(np.ascontiguousarray(volume.voxels[box]), affine, channel=volume.channel)
    return cropped, BoneMask(bone=bone.bone[box], marrow=bone.marrow[box], cortex=bone.cortex[box])


def _stem(name: str, options: SynthOptions, number: int) -> str:
    return f"{name}_s{options.seed}_{number:03d}"


def _paths(folder: Path, stem: str) -> dict[str, Path]:
    return {
        "image": folder / "imagesTr" / f"{stem}.nii.gz",
        "parameters": folder / "parameters" / f"{stem}.json",
        "label": folder / "labelsTr" / f"{stem}.nii.gz",
    }


def _list_cases(folder: Path, patients: Mapping[Path, str], section: str) -> None:
    """`patients` are those of the images."""
    about = {
        "name": "volseg synthetic bone lesions",
        "description": "SYNTHETIC: lesions grown in CT; not clinical data",
        "labels": {"0": "background", "1...": "lesion instances"},
        "modality": {"0": "CT"},
    }
    cases = [
        {"image": f"imagesTr/{image.name}", "label": f"labelsTr/{image.name}", "patient": patient}
        for image, patient in patients.items()
    ]
    path = folder / DATALIST
    write_whole(path, json.dumps(with_cases(path, section, cases, about), indent=1))
