"""A BM-Seg-shaped folder of pictures of known truth: axial slices of phantoms or of synthetic cases with grown lesions.

The real archive cannot be shipped; this stands in for it in tests, the demo and the benchmark, and is never a stand-in
for its figures. Every patient depends on (seed, number) alone, so a run that was cut off goes on where it stopped and
gives the same files. Unlike the archive, `slices.csv` says whose each slice is.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from volseg import __version__
from volseg.errors import UsageError
from volseg.inference.datasets import listed_cases
from volseg.io.bmseg import BONE, FOLDERS, IMAGE, LESION, SLICES
from volseg.io.cohort import DATALIST
from volseg.io.files import shown, stem_of
from volseg.io.monai_reader import LoadStudyd
from volseg.phantoms import BUILDS, Region, ct_phantom
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.transforms.bone import BoneMask
from volseg.transforms.ct import BoneMaskd, RasIsotropicd
from volseg.transforms.slices2d import WINDOW_HU, as_rows, axial_picture
from volseg.transforms.synthesis import grow_lesions

ABOUT = "synthetic.json"
REGIONS: tuple[Region, ...] = ("abdomen", "thorax", "pelvis")
PIXELS_MM = (0.75, 1.05)  # edge of a pixel: so sizes vary between patients, as in the archive
THICKEST_MM, THINNEST_MM, SPAN_MM = 5.0, 1.0, 150.0
SPARE_SLICES = 6
MOST_SLICES = int(SPAN_MM / THINNEST_MM) - SPARE_SLICES
QUALITY = 95  # of the JPEGs; masks get ripples at their edges, as real ones have


def write_bmseg_like(
    folder: Path | str, patients: int, slices_per_patient: int, seed: int, *, progress: bool | None = None
) -> list[Path]:
    """Write `patients` x `slices_per_patient` slices and say whose they are; returns the image paths.

    Each patient is one phantom (abdomen, thorax and pelvis in turn) with 3 to 8 lesions and up to 2 benign look-alikes;
    kept are the neighbouring slices that hold most lesion. Patients already there are kept.

    Args:
        folder: made if need be; `image`, `bone mask`, `lesion mask`, slices.csv and synthetic.json go there.
        slices_per_patient: 1 to 144 neighbouring slices, 1 to 5 mm thick.
        progress: a bar on stderr (None: where it is a terminal).

    Raises UsageError for numbers that cannot be, and where the folder holds anything made otherwise.
    """
    root = Path(folder)
    if patients < 1 or not 1 <= slices_per_patient <= MOST_SLICES:
        told = f"{patients} patients of {slices_per_patient} slices; at least 1 patient of 1 to {MOST_SLICES} slices"
        raise UsageError("synth-size", told)
    _claim(root, {"slices_per_patient": slices_per_patient, "seed": seed})
    images: list[Path] = []
    rows: list[tuple[str, str]] = []
    hidden = not progress if progress is not None else None
    with tqdm(total=patients, desc="growing patients", unit="patient", disable=hidden, file=sys.stderr) as bar:
        for number in range(patients):
            patient = f"P{number + 1:03d}"
            names = [f"{patient}_{n + 1:03d}" for n in range(slices_per_patient)]
            paths = [root / kind / f"{name}.jpg" for name in names for kind in FOLDERS]
            about = root / "parameters" / f"{patient}.json"
            # The parameters come last: a patient with them is complete, unless somebody removed a picture.
            if not (about.is_file() and all(path.is_file() for path in paths)):
                parameters = _write_patient(root, names, number, slices_per_patient, seed)
                write_whole(about, json.dumps({"patient": patient, "slices": names, **parameters}, indent=1))
            images += [root / IMAGE / f"{name}.jpg" for name in names]
            rows += [(name, patient) for name in names]
            bar.update()
    _list_slices(root, rows)
    return images


def cut_cases(
    cases: Path | str,
    folder: Path | str,
    slices_per_case: int,
    seed: int,
    *,
    spacing_mm: float = 1.5,
    section: str = "training",
    progress: bool | None = None,
) -> list[Path]:
    """Cut axial slices out of the cases that `volseg synth` wrote; returns the image paths.

    Three of four slices are drawn by how much lesion they hold, the fourth (all, in a case without) by how much bone.
    The patient of a slice is the CT its case was grown in: all cases of one CT belong together. Cases already cut are
    kept. PNG, because JPEG's ripples at the edges would be ours and not the data's.

    Args:
        cases: a folder with datalist.json; `section` of it is cut.
        spacing_mm: edge of a pixel, and distance of slices.

    Raises UsageError where the folder holds anything made otherwise, InputError for cases that cannot be read.
    """
    root = Path(folder)
    if slices_per_case < 1 or not spacing_mm > 0:
        told = f"{slices_per_case} slices per case of {spacing_mm} mm; at least 1 slice, of a size above 0"
        raise UsageError("synth-size", told)
    options = {"cases": str(Path(cases).resolve()), "section": section, "slices_per_case": slices_per_case}
    _claim(root, options | {"seed": seed, "spacing_mm": spacing_mm})
    listed = {stem_of(Path(case["image"])): case for case in listed_cases(str(cases), section)}
    images: list[Path] = []
    rows: list[tuple[str, str]] = []
    hidden = not progress if progress is not None else None
    for stem, case in tqdm(listed.items(), desc="cutting cases", unit="case", disable=hidden, file=sys.stderr):
        about = root / "parameters" / f"{stem}.json"
        if not about.is_file():
            places = _cut_case(root, stem, case, slices_per_case, seed, spacing_mm)
            write_whole(about, json.dumps({"synthetic": True, "case": stem, "slices": places}, indent=1))
        names = [f"{stem}_{k:03d}" for k in json.loads(about.read_text(encoding="utf-8"))["slices"]]
        images += [root / IMAGE / f"{name}.png" for name in names]
        # `volseg synth` names cases <CT>_s<seed>_<number>.
        rows += [(name, re.sub(r"_s-?[0-9]+_[0-9]+$", "", stem)) for name in names]
    _list_slices(root, rows)
    return images


def _cut_case(root: Path, stem: str, case: Mapping[str, str], slices: int, seed: int, spacing_mm: float) -> list[int]:
    keys = ("image", "label")
    paths: dict[Any, Any] = dict(case)
    data: dict[Any, Any] = LoadStudyd(keys)(paths)
    data = RasIsotropicd(keys, spacing_mm=spacing_mm, mode=("bilinear", "nearest"))(data)
    data = BoneMaskd()(data)
    hu, lesion, bone = (np.asarray(data[key][0]) for key in ("image", "label", "bone"))
    lesion, bone = lesion > 0, (bone > 0) | (lesion > 0)
    rng = np.random.default_rng([seed, zlib.crc32(stem.encode())])
    places: list[int] = []
    for n in range(slices):
        area = (bone if n % 4 == 3 or not lesion.any() else lesion).sum((0, 1), dtype=float)
        area[places] = 0
        if area.any():
            places.append(int(rng.choice(area.size, p=area / area.sum())))
    for k in sorted(places):
        pictures = {IMAGE: axial_picture(hu[..., k])}
        pictures |= {BONE: as_rows(bone[..., k]) * np.uint8(255), LESION: as_rows(lesion[..., k]) * np.uint8(255)}
        for kind, picture in pictures.items():
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "PNG")
            write_whole(root / kind / f"{stem}_{k:03d}.png", content.getvalue())
    return sorted(places)


def grow_patient(number: int, slices: int, seed: int) -> tuple[dict[str, NDArray[np.uint8]], dict[str, Any]]:
    """One patient in memory: folder name -> pictures (slices, rows, columns), 0..255; and what was drawn."""
    rng = np.random.default_rng([seed, number])
    region = REGIONS[number % len(REGIONS)]
    pixel_mm = round(float(rng.uniform(*PIXELS_MM)), 3)
    thick_mm = min(THICKEST_MM, round(SPAN_MM / (slices + SPARE_SLICES), 3))
    x_mm, y_mm, _ = BUILDS[region].size_mm
    size_mm = (x_mm, y_mm, thick_mm * (slices + SPARE_SLICES))
    phantom = ct_phantom(rng, region=region, spacing_mm=(pixel_mm, pixel_mm, thick_mm), size_mm=size_mm)
    grown = grow_lesions(
        phantom.volume,
        n=int(rng.integers(3, 9)),
        rng=rng,
        bone=BoneMask(bone=phantom.bone, marrow=phantom.marrow, cortex=phantom.cortex),
        distractors=int(rng.integers(0, 3)),
    )
    lesion = grown.instances > 0
    area = np.concatenate([[0], lesion.sum((0, 1)).cumsum()])
    first = int(np.argmax(area[slices:] - area[:-slices]))
    volumes = {IMAGE: grown.volume.voxels, BONE: phantom.bone | lesion, LESION: lesion}
    pictures = {
        kind: np.stack(
            [
                _square(axial_picture(v[..., k]) if kind == IMAGE else as_rows(v[..., k]) * np.uint8(255))
                for k in range(first, first + slices)
            ]
        )
        for kind, v in volumes.items()
    }
    parameters = {
        "synthetic": True,
        "volseg": __version__,
        "region": region,
        "spacing_mm": [pixel_mm, pixel_mm, thick_mm],
        "window_hu": list(WINDOW_HU),
        "first_slice": first,
        "lesions": [as_json(asdict(one)) for one in grown.lesions],
        "distractors": [as_json(asdict(one)) for one in grown.distractors],
    }
    return pictures, parameters


def _write_patient(root: Path, names: list[str], number: int, slices: int, seed: int) -> dict[str, Any]:
    pictures, parameters = grow_patient(number, slices, seed)
    for kind in FOLDERS:
        for name, picture in zip(names, pictures[kind], strict=True):
            content = io.BytesIO()
            Image.fromarray(picture).save(content, "JPEG", quality=QUALITY)
            write_whole(root / kind / f"{name}.jpg", content.getvalue())
    return parameters


def _square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Black margins, so that rows equal columns: scanners reconstruct squares."""
    side = max(picture.shape)
    before = [(side - n) // 2 for n in picture.shape]
    return np.pad(picture, [(b, side - n - b) for b, n in zip(before, picture.shape, strict=True)])


def _claim(root: Path, options: Mapping[str, Any]) -> None:
    """A folder made by the same options may be gone on with, an empty one begun; any other is left alone."""
    path = root / ABOUT
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8")).get("options")
        if before != dict(options):
            told = f"{shown(root)}: made with {before}, asked for {dict(options)}; choose another folder"
            raise UsageError("synth-folder", told)
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        told = f"{shown(root)}: not empty and not made by this command; choose another folder"
        raise UsageError("synth-folder", told)
    about = {
        "name": "BM-Seg-shaped synthetic slices",
        "description": "SYNTHETIC: lesions grown in phantoms or CTs; not clinical data, not BM-Seg",
        "volseg": __version__,
        "options": dict(options),
    }
    write_whole(path, json.dumps(about, indent=1))


def _list_slices(root: Path, rows: list[tuple[str, str]]) -> None:
    """slices.csv and datalist.json with these and every earlier slice (a second run may ask for fewer patients)."""
    listed: dict[str, str] = {}
    if (root / SLICES).is_file():
        with (root / SLICES).open(encoding="utf-8", newline="") as file:
            listed = {row["slice"]: row["patient"] for row in csv.DictReader(file)}
    listed.update(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slice", "patient"))
    writer.writerows(sorted(listed.items()))
    write_whole(root / SLICES, text.getvalue())
    suffix = next((root / IMAGE).iterdir()).suffix if rows else ""
    items = [
        {key: f"{kind}/{name}{suffix}" for key, kind in (("image", IMAGE), ("bone", BONE), ("label", LESION))}
        | {"patient": patient}
        for name, patient in sorted(listed.items())
    ]
    about = {"name": "BM-Seg-shaped synthetic slices", "training": items}
    write_whole(root / DATALIST, json.dumps(about, indent=1))
