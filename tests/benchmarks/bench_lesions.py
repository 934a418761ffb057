"""How well the shipped bundle finds lesions: held-out synthetic cases, real metastases, real healthy bone.

    python tests/benchmarks/bench_lesions.py --shared ../shared --out tests/benchmarks/results

Grows 24 cases in three CTs that training never saw (fixed seed), runs the bundle exactly as `volseg predict` does, and
counts lesions at IoU >= 0.1; then the three real patches with boxed metastases (BLDS) and the same three CTs untouched.
Synthetic and real figures stand in separate blocks. With `--beside` a second bundle looks at the same images, and what
both mark is judged as well; with `--set adapt=true` a network that can be trained on each scan before it is searched
(minutes a case), with `--set ensemble=true` its lesion map averaged with an unlike network's. Writes
one JSON with date and machine.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lesion_rows import IOU, by_diameter, by_kind, by_visibility, changes, heading, judged, summary

from volseg.evaluation.detection import DetectionCase, average_precision, froc, mean_average_precision
from volseg.geometry import spacing_mm, voxel_to_ras_mm, voxel_volume_mm3
from volseg.inference.bundle import DEFAULT_BUNDLE, LoadedBundle, find_bundle, load_bundle
from volseg.inference.segment import segment_volume
from volseg.io import read_study
from volseg.report.files import write_whole
from volseg.synth import SynthOptions, grow_case, prepare
from volseg.types import Volume

SEED = 20261121
# What a bundle's switches add to the name of its JSON.
SWITCHES = {"adapt": "adapted", "ensemble": "ensemble"}
LOOSE_SCORE = 0.02  # of a detector whose whole curve is asked for
CASES = {"rider_chest_0p8mm": 8, "sts015_ct": 8, "tptbox_vertebra": 8}


@dataclass(frozen=True, eq=False)
class Found:
    """Marks on a volume's own grid, numbered from 1, how much bone was looked at, and how long it took."""

    instances: np.ndarray
    bone_litres: float
    seconds: float


Finder = Callable[[Volume], Found]


def finder(bundle: LoadedBundle, overrides: dict[str, Any], kept: Path) -> Finder:
    """What a bundle finds. Under `kept` lies what the same weights, config and overrides said of an image before."""
    config = (bundle.files.root / "configs" / "inference.json").read_text()
    settings = json.dumps([bundle.weights_sha256, config, overrides], sort_keys=True).encode()

    def find(volume: Volume) -> Found:
        asked = hashlib.sha256(settings + np.asarray(volume.affine).tobytes() + volume.voxels.tobytes()).hexdigest()
        path = kept / f"{bundle.files.name}_{asked[:32]}.npz"
        if not path.exists():
            start = time.perf_counter()
            found = segment_volume(volume, bundle)
            seconds = time.perf_counter() - start
            litres = np.count_nonzero(found.bone) * voxel_volume_mm3(volume.affine) / 1e6
            packed = io.BytesIO()
            np.savez_compressed(packed, instances=found.instances, litres=litres, seconds=seconds)
            write_whole(path, packed.getvalue())
        with np.load(path) as saved:
            return Found(saved["instances"], float(saved["litres"]), float(saved["seconds"]))

    return find


def both(first: Finder, second: Finder) -> Finder:
    """The first one's marks that share a voxel with one of the second's."""

    def find(volume: Volume) -> Found:
        one, other = first(volume), second(volume)
        agreed = np.unique(one.instances[other.instances > 0])
        kept = np.where(np.isin(one.instances, agreed), one.instances, 0)
        numbered = np.unique(kept, return_inverse=True)[1].reshape(kept.shape).astype(np.uint16)
        return Found(numbered, one.bone_litres, one.seconds + other.seconds)

    return find


def held_out(shared: Path, work: Path) -> dict[str, Volume]:
    """The three CTs that no training case was grown in."""
    data = shared / "data"
    with tarfile.open(data / "rider_chest_0p8mm" / "rider_95slices_dicom.tar.xz") as tar:
        tar.extractall(work / "rider", filter="data")
    paths = {
        "rider_chest_0p8mm": work / "rider",
        "sts015_ct": data / "sts015_ct_mr_pet" / "nifti_reference" / "CT_image.nii.gz",
        "tptbox_vertebra": data / "tptbox_vertebra" / "sample_ct" / "sub-ct_label-22_ct.nii.gz",
    }
    return {name: read_study(path).volumes["CT"] for name, path in paths.items()}


def held_out_cases(
    volumes: dict[str, Volume], seed: int
) -> Iterator[tuple[str, int, Volume, np.ndarray, dict[str, Any]]]:
    """(CT, number, volume, true instances, parameters) of every case, grown anew: they would not all fit in memory."""
    for name, volume in volumes.items():
        source = prepare(name, volume)
        options = SynthOptions(n=CASES[name], seed=seed, lesions=(1, 4), distractors=(0, 2), healthy=0.0)
        for number in range(options.n):
            yield name, number, *grow_case(source, options, number)


def synthetic_block(volumes: dict[str, Volume], find: Finder, *, seed: int, say: Any = print) -> dict[str, Any]:
    """Sensitivity, false positives and Dice on cases grown in `volumes`, per CT and together."""
    rows = []
    for name, number, case, truth, parameters in held_out_cases(volumes, seed):
        found = find(case)
        row = {"ct": name, "case": number, **judged(found.instances, truth, parameters["lesions"])}
        change = changes(volumes[name].voxels, case.voxels, truth, spacing_mm(case.affine))
        for lesion, drawn in zip(row["lesions"], parameters["lesions"], strict=True):
            lesion["change"] = round(change[drawn["id"]], 2)
        rows.append(row | {"seconds": round(found.seconds, 1)})
        say(json.dumps({k: v for k, v in rows[-1].items() if k != "lesions"}))
    return {
        "iou": IOU,
        "seed": seed,
        "all": summary(rows),
        "by_ct": {name: summary([r for r in rows if r["ct"] == name]) for name in volumes},
        "sensitivity_by_diameter": by_diameter(rows),
        "sensitivity_by_kind": by_kind(rows),
        "sensitivity_by_visibility": by_visibility(rows),
        "cases": rows,
    }


def detector_curves(volumes: dict[str, Volume], bundle: LoadedBundle, *, seed: int) -> dict[str, Any]:
    """FROC and COCO's average precision (overlap of masks) of a detector that keeps nearly all it finds."""
    cases = []
    for name, number, case, truth, _ in held_out_cases(volumes, seed):
        found = segment_volume(case, bundle)
        scores = dict(enumerate(found.scores or (), start=1))
        cases.append(DetectionCase.from_instances(found.instances, scores, truth, patient=f"{name} {number}"))
    curve = froc(cases, iou=IOU)
    return {
        "detections": sum(case.scores.size for case in cases),
        "froc": {f"{rate:g}": round(sensitivity, 3) for rate, sensitivity in curve.at.items()},
        "froc_mean": round(curve.mean_sensitivity, 3),
        "AP_10": round(average_precision(cases, iou=IOU), 3),
        "mAP_10_50": round(mean_average_precision(cases), 3),
    }


def blds_patches(shared: Path) -> Iterator[tuple[str, Volume, list[np.ndarray]]]:
    """The three public patches: name, CT, boxes of its real metastases as RAS corners (2, 3) in mm."""
    folder = shared / "data" / "blds_bone_lesions"
    with (folder / "image_bone_lesions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for name in ("1", "6", "7"):
        boxes = [_true_box(row) for row in rows if row["image_path"] == f"{name}.nii.gz"]
        yield name, read_study(folder / f"{name}.nii.gz").volumes["CT"], boxes


def touches(mark: dict[str, Any], box: np.ndarray) -> bool:
    """Whether one of `boxes_ras_mm` hits a box: box IoU 0.1 or more, or its center inside."""
    return _box_iou(mark["box"], box) >= IOU or _inside(mark["center"], box)


def config_overrides(given: list[str]) -> dict[str, Any]:
    """ID=JSON of the command line as config entries; no progress bars."""
    return {"inferer#progress": False} | {k: json.loads(v) for k, v in (s.split("=", 1) for s in given)}


def real_block(shared: Path, find: Finder, *, say: Any = print) -> dict[str, Any]:
    """Boxes hit and false positives on the three public patches with real metastases, as they are."""
    patches = []
    for name, volume, true in blds_patches(shared):
        predicted = boxes_ras_mm(find(volume).instances, volume)
        by_iou = [any(_box_iou(p["box"], t) >= IOU for p in predicted) for t in true]
        by_center = [any(_inside(p["center"], t) for p in predicted) for t in true]
        false = [p for p in predicted if not any(touches(p, t) for t in true)]
        patches.append(
            {
                "patch": name,
                "boxes": len(true),
                "hit_iou_0.1": sum(by_iou),
                "hit_center_in_box": sum(by_center),
                "hit_either": sum(a or b for a, b in zip(by_iou, by_center, strict=True)),
                "false_positive": len(false),
                "false_centers_ras_mm": [np.round(p["center"], 1).tolist() for p in false],
            }
        )
        say(json.dumps(patches[-1]))
    keys = ("boxes", "hit_iou_0.1", "hit_center_in_box", "hit_either", "false_positive")
    return {"all": {k: sum(p[k] for p in patches) for k in keys}, "patches": patches}


def healthy_block(volumes: dict[str, Volume], find: Finder) -> dict[str, Any]:
    """False positives on real CTs without metastases, per litre of bone."""
    rows = {}
    for name, volume in volumes.items():
        found = find(volume)
        rows[name] = {"false_positive": int(found.instances.max()), "bone_litres": round(found.bone_litres, 3)}
    total = sum(r["false_positive"] for r in rows.values())
    bone = sum(r["bone_litres"] for r in rows.values())
    return {"by_ct": rows, "false_positive": total, "per_litre_of_bone": round(total / bone, 2) if bone else None}


def blocks(shared: Path, volumes: dict[str, Volume], find: Finder) -> dict[str, Any]:
    """Everything that is asked of a finder."""
    return {
        "synthetic_held_out": synthetic_block(volumes, find, seed=SEED),
        "real_metastases_blds": real_block(shared, find),
        "real_healthy_held_out": healthy_block(volumes, find),
    }


def boxes_ras_mm(instances: np.ndarray, volume: Volume) -> list[dict[str, Any]]:
    found = []
    for i in range(1, int(instances.max()) + 1):
        voxels = np.argwhere(instances == i)
        corners = voxel_to_ras_mm(volume.affine, np.stack([voxels.min(0) - 0.5, voxels.max(0) + 0.5]))
        box = np.stack([corners.min(0), corners.max(0)])
        found.append({"id": i, "box": box, "center": voxel_to_ras_mm(volume.affine, voxels.mean(0))})
    return found


def _true_box(row: dict[str, str]) -> np.ndarray:
    """Box center in LPS mm and edge lengths -> (2, 3) RAS corners."""
    center = np.array([-float(row["x"]), -float(row["y"]), float(row["z"])])
    half = np.array([float(row["width"]), float(row["height"]), float(row["depth"])]) / 2
    return np.stack([center - half, center + half])


def _box_iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
    return float(overlap / (np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - overlap))


def _inside(point: np.ndarray, box: np.ndarray) -> bool:
    return bool((point >= box[0]).all() and (point <= box[1]).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"))
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE)
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", help="override a config entry")
    parser.add_argument("--kept", type=Path, help="folder for what was found: a bench that was cut off goes on")
    parser.add_argument("--beside", metavar="BUNDLE", help="judge what this bundle marks as well, too")
    args = parser.parse_args()
    overrides = config_overrides(args.set)
    bundle = load_bundle(find_bundle(args.bundle, trust=True), overrides=overrides)
    document = {**heading(bundle), "overrides": overrides}
    with tempfile.TemporaryDirectory() as work:
        volumes = held_out(args.shared, Path(work))
        kept = args.kept or Path(work)
        find = finder(bundle, overrides, kept)
        document |= blocks(args.shared, volumes, find)
        if args.beside:
            plain = config_overrides([])
            other = load_bundle(find_bundle(args.beside, trust=True), overrides=plain)
            agreed = blocks(args.shared, volumes, both(find, finder(other, plain, kept)))
            document["marked_by_both"] = {"beside": f"{other.files.name} {other.files.version}"} | agreed
    if "operating_score" in json.loads((bundle.files.root / "configs" / "inference.json").read_text()):
        loose = load_bundle(bundle.files, overrides=overrides | {"operating_score": LOOSE_SCORE})
        document["synthetic_held_out_curves"] = detector_curves(volumes, loose, seed=SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    of_bundle = "" if bundle.files.name == DEFAULT_BUNDLE else f"_{bundle.files.name}"
    switched = "".join(f"_{word}" for name, word in SWITCHES.items() if overrides.get(name))
    path = args.out / f"{document['date']}_lesions{of_bundle}{switched}.json"
    path.write_text(json.dumps(document, indent=1))
    for block in ("synthetic_held_out", "real_metastases_blds"):
        print(block, json.dumps(document[block]["all"]))
        if args.beside:
            print("marked by both:", json.dumps(document["marked_by_both"][block]["all"]))
    print("curves", json.dumps(document.get("synthetic_held_out_curves")))
    print("real_healthy_held_out", json.dumps(document["real_healthy_held_out"]))
    print(path)


if __name__ == "__main__":
    main()
