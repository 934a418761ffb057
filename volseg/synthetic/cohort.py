"""A site's patients on disk: imagesTr, labelsTr, parameters, datalist.json, patients.csv, as `volseg validate` reads.

Several sites go into one folder by one call each. Every patient depends on (site, seed, number, background) alone: a
run that was cut off goes on where it stopped and gives the same files.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg import __version__
from volseg.errors import InputError, UsageError
from volseg.geometry import to_ras, voxel_volume_mm3
from volseg.inference.datasets import found_studies
from volseg.io import read_study, write_nifti
from volseg.io.cohort import COLUMNS, DATALIST, PATIENTS, SECTIONS
from volseg.io.files import safe_name, stem_of
from volseg.io.kept_cases import fingerprint
from volseg.phantoms import ct_phantom
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.synth import PHANTOM, Source, cut_block, prepare
from volseg.synthetic.patients import CohortOptions, PatientPlan, painting_rng, plan_patients
from volseg.synthetic.scan import scanned
from volseg.synthetic.sites import Site
from volseg.transforms.bone import BoneMask
from volseg.transforms.synthesis import PAINTERS, grow_distractors
from volseg.transforms.synthesis_canvas import Canvas, GrownLesion
from volseg.transforms.synthesis_scanner import Scanner, measure_scanner
from volseg.types import Volume

# Phantoms are drawn finer than most sites see, but not finer than 1 mm: above 1.3 mm they would be drawn twice as fine.
SCENE_MM = (1.0, 1.3)
SCENE_NOISE_HU = 3.0


def write_cohort(
    site: Site,
    cts: Mapping[str, Path],
    folder: Path,
    options: CohortOptions,
    *,
    share_cts: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write a site's patients into `folder` and list them; returns the image paths. Patients already there are kept.

    Args:
        cts: healthy CTs by name (see `find_cts`), dealt out in turn; empty for phantoms, one fresh one per patient.
        share_cts: allow a CT that is already the background of another site's patients, or of another section's.
            Training and test then show the same bones: fine for a trial, not for a figure.

    Raises:
        UsageError: the folder holds patients of this name made otherwise, or a CT serves two sites or sections.
        InputError: a CT cannot be read or shows no bone; the folder's lists are damaged.
    """
    plans = plan_patients(site, options)
    backgrounds = _dealt_cts(plans, sorted(cts))
    rows = _read_rows(folder / PATIENTS)
    if not share_cts:
        mine = {plan.name for plan in plans}  # they may be moved from another section
        _refuse_shared({name: row for name, row in rows.items() if name not in mine}, site, options.section, cts)
    for sub in ("imagesTr", "labelsTr", "parameters"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    design = _design(site, options, sorted(cts))
    # Patients of one CT come together: it is read once.
    read = lru_cache(maxsize=1)(lambda name: None if name == PHANTOM else _read_ct(name, cts[name]))
    ready = lru_cache(maxsize=1)(lambda name: prepare(name, read(name)))
    source_sha256 = lru_cache(maxsize=1)(lambda name: fingerprint(read(name)))
    bar = tqdm(total=len(plans), desc=f"site {site.name}", unit="patient", file=sys.stderr,
               disable=not progress if progress is not None else None)  # fmt: skip
    with bar:
        for plan in sorted(plans, key=lambda p: (backgrounds[p.number], p.number)):
            paths = _paths(folder, plan.name)
            background = backgrounds[plan.number]
            made_from = {"source": background, "source_sha256": source_sha256(background)}
            if all(path.is_file() for path in paths.values()):
                _refuse_other(paths["parameters"], {"design": design} | made_from, plan.name)
            else:
                source = body_of(plan, site, options) if background == PHANTOM else ready(background)
                _write(plan, site, source, options, paths, {"design": design} | made_from)
            bar.update()
    _write_rows(folder / PATIENTS, rows, plans, site, backgrounds, options)
    images = [_paths(folder, plan.name)["image"] for plan in plans]
    _list_cases(folder, plans, site, options)
    lung = sum(plan.lung for plan in plans)
    diseased = sum(bool(plan.lesions) for plan in plans)
    say(
        f"site {site.name}: {len(plans)} synthetic patients in {folder} ({lung} with a lung primary, {diseased} with "
        f"lesions; Bayes AUC {options.bayes_auc:.2f} by construction), listed under {options.section!r}"
    )
    return images


def find_cts(item: str) -> dict[str, Path]:
    """What `--ct` names -> CTs by name: a volume, a DICOM folder, a folder of either; none for the word 'phantom'."""
    if item == PHANTOM:
        return {}
    path = Path(item)
    found = [Path(case["image"]) for case in found_studies(item)] if path.is_dir() else [path]
    return {safe_name(stem_of(p)): p for p in found}


def paint(
    plan: PatientPlan, site: Site, source: Source, options: CohortOptions
) -> tuple[Volume, NDArray[np.uint16], list[dict[str, Any]], list[dict[str, Any]]]:
    """One planned patient in memory: the site's picture, instances on its grid, lesions and look-alikes as recorded.

    A lesion for which no bone had room, or that is too small for the site's grid, is missing from both.
    """
    rng = painting_rng(site, options, plan.number)
    volume, bone, scanner = source.volume, source.bone, source.scanner
    assert volume is not None and bone is not None and scanner is not None
    if source.name != PHANTOM and options.block_mm is not None:
        volume, bone = cut_block(volume, bone, options.block_mm, rng)
    canvas = Canvas(volume, bone, scanner, 1)
    grown: list[GrownLesion] = []
    for wanted in plan.lesions:
        one = canvas.grow(
            wanted.kind, PAINTERS[wanted.kind], wanted.diameter_mm, "marrow", canvas.instances, len(grown) + 1, rng
        )
        grown += [one] if one else []
    benign = grow_distractors(canvas, plan.distractors, rng)
    scene = Volume(canvas.voxels, volume.affine, channel=volume.channel)
    picture, truth, kept = scanned(scene, canvas.instances, scanner, site, plan.noise_hu, rng)
    counts = np.bincount(truth.ravel(), minlength=len(kept) + 1)
    lesions = [
        as_json(asdict(grown[old - 1]))
        | {"id": new, "volume_mm3": float(counts[new]) * voxel_volume_mm3(picture.affine)}
        for new, old in enumerate(kept.tolist(), start=1)
    ]
    return picture, truth, lesions, [as_json(asdict(one)) for one in benign]


def _write(
    plan: PatientPlan,
    site: Site,
    source: Source,
    options: CohortOptions,
    paths: Mapping[str, Path],
    made_by: Mapping[str, str],
) -> None:
    picture, truth, lesions, benign = paint(plan, site, source, options)
    document = {
        "case": plan.name,
        "synthetic": True,
        "patient": plan.name,
        "site": asdict(site),
        "volseg": __version__,
        **made_by,
        "origin": plan.origin,
        "bayes_auc": options.bayes_auc,
        "planned": as_json(asdict(plan)),
        "lesions": lesions,
        "distractors": benign,
    }
    write_nifti(paths["image"], picture.voxels, picture.affine, dtype=np.int16)
    write_whole(paths["parameters"], json.dumps(document, indent=1))
    # The label comes last: a patient with all three files is a complete one.
    write_nifti(paths["label"], truth, picture.affine, dtype=np.uint16)


def body_of(plan: PatientPlan, site: Site, options: CohortOptions) -> Source:
    """A fresh body for this patient, drawn finely and almost without noise: the site's scanner comes later."""
    rng = np.random.default_rng([options.seed, 3, plan.number, *site.name.encode()])
    step = float(np.clip(min(site.spacing_mm), *SCENE_MM))
    phantom = ct_phantom(
        rng, region=plan.region, spacing_mm=(step,) * 3, size_mm=options.phantom_mm, noise_hu=SCENE_NOISE_HU
    )
    bone = BoneMask(bone=phantom.bone, marrow=phantom.marrow, cortex=phantom.cortex)
    return Source(PHANTOM, phantom.volume, bone, _phantom_scanner(step))


@lru_cache(maxsize=4)
def _phantom_scanner(step: float) -> Scanner:
    """Measured once, on a body that no patient has: every phantom of one step passes the same scanner."""
    phantom = ct_phantom(
        np.random.default_rng(0), spacing_mm=(step,) * 3, size_mm=(90, 100, 70), noise_hu=SCENE_NOISE_HU
    )
    return measure_scanner(phantom.volume.voxels, phantom.volume.affine)


def _read_ct(name: str, path: Path) -> Volume:
    volume = next(iter(read_study(path, name=name).volumes.values()))
    voxels, affine = to_ras(volume.voxels, volume.affine)
    return Volume(np.ascontiguousarray(voxels), affine, channel=volume.channel)


def _dealt_cts(plans: Sequence[PatientPlan], names: Sequence[str]) -> dict[int, str]:
    return {plan.number: names[plan.number % len(names)] if names else PHANTOM for plan in plans}


def _design(site: Site, options: CohortOptions, cts: Sequence[str]) -> str:
    """A hash of all that shapes a patient; the number of patients and their section do not."""
    shaping = {k: v for k, v in asdict(options).items() if k not in ("patients", "section")}
    text = json.dumps([asdict(site), shaping, list(cts)], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]


def _refuse_other(parameters: Path, made_by: Mapping[str, str], name: str) -> None:
    """A patient who is there may only be kept if the same design and CT made it; what its file lacks is believed."""
    try:
        made = json.loads(parameters.read_text(encoding="utf-8"))
        differ = [key for key, value in made_by.items() if made.get(key, value) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            "cohort-damaged", f"{parameters}: {error}; remove the patient's files to make it anew"
        ) from error
    if differ:
        how = "with other options" if "design" in differ else f"in another CT of the name {made_by['source']}"
        raise UsageError("cohort-differs", f"{name} is there already, made {how}; choose another --seed or folder")


def _refuse_shared(rows: Mapping[str, Mapping[str, str]], site: Site, section: str, cts: Mapping[str, Path]) -> None:
    """`rows` are those of the patients who stay as they are."""
    for name in sorted(cts):
        for row in (row for row in rows.values() if row.get("source") == name):
            where = (row.get("site", ""), row.get("split") or section)
            if where != (site.name, section):
                raise UsageError(
                    "ct-shared",
                    f"CT {name} is the background of patients of site {where[0]} under {where[1]!r} already, and would "
                    f"be at site {site.name} under {section!r}: the same bones on both sides; give each its own CTs, "
                    "or --share-ct for a trial",
                )


def _paths(folder: Path, name: str) -> dict[str, Path]:
    return {
        "image": folder / "imagesTr" / f"{name}.nii.gz",
        "parameters": folder / "parameters" / f"{name}.json",
        "label": folder / "labelsTr" / f"{name}.nii.gz",
    }


def _read_rows(path: Path) -> dict[str, dict[str, str]]:
    """The lines of patients.csv as they are, by patient."""
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {row["patient"]: row for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise InputError("cohort-damaged", f"{path}: {error!r}; remove it to list the patients anew") from error


def _write_rows(
    path: Path,
    rows: dict[str, dict[str, str]],
    plans: Sequence[PatientPlan],
    site: Site,
    backgrounds: Mapping[int, str],
    options: CohortOptions,
) -> None:
    rows |= {
        plan.name: {
            "patient": plan.name, "site": site.name, "origin": plan.origin, "age": str(plan.age_years),
            "sex": plan.sex, "scanner": site.scanner, "split": options.section, "source": backgrounds[plan.number],
        }
        for plan in plans
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, "source"), lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows.values())
    write_whole(path, text.getvalue())


def _list_cases(folder: Path, plans: Sequence[PatientPlan], site: Site, options: CohortOptions) -> None:
    path = folder / DATALIST
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for section in SECTIONS:  # a patient stands in one section only
            if section in document:
                mine = {f"imagesTr/{plan.name}.nii.gz" for plan in plans}
                document[section] = [case for case in document[section] if case["image"] not in mine]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("cohort-damaged", f"{path}: {error!r}; remove it to list the patients anew") from error
    document = {
        "name": "volseg synthetic cohort",
        "description": "SYNTHETIC: lesions grown in CT; not clinical data",
        "labels": {"0": "background", "1...": "lesion instances"},
        "modality": {"0": "CT"},
    } | document
    document.setdefault("synthetic_sites", {})[site.name] = as_json(
        asdict(site) | {"bayes_auc": options.bayes_auc, "seed": options.seed}
    )
    document.setdefault(options.section, []).extend(
        {
            "image": f"imagesTr/{plan.name}.nii.gz",
            "label": f"labelsTr/{plan.name}.nii.gz",
            "patient": plan.name,
        }
        for plan in plans
    )
    write_whole(path, json.dumps(document, indent=1))
