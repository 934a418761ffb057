"""Which weights to ship, decided without the held-out CTs: cases in training CTs, and in real patches never trained on.

    volseg synth lidc0314 vhf totalseg.nii.gz acrin.nii -o VAL --n 7 --seed 77 --block-mm 128 --lesions 1-4 \
        --distractors 0-2 --healthy 0
    volseg synth phantom -o VAL --n 6 --seed 909 --block-mm 128 --lesions 1-4 --distractors 0-2 --healthy 0
    python tests/benchmarks/bench_versions.py --shared ../shared --cases VAL --bundle FOLDER --out FILE.json

Prints sensitivity at several rates of false positives per case, each with the threshold that gives it, for three sets:
VAL's cases (bodies that training saw, lesions it did not), lesions grown in the BLDS patches (bodies it never saw;
marks on the boxed real metastases count neither way), and the real boxes themselves.

All of these are quiet scans (5 to 9 HU on a 2 mm grid). `--noise-hu 70` asks the same of a noisy scanner: white noise
of that deviation in cubes of 1.5 mm, more in smaller voxels and less in larger ones, as quanta have it.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from bench_lesions import LOOSE_SCORE, blds_patches, boxes_ras_mm, config_overrides, touches
from lesion_rows import IOU, heading
from numpy.typing import NDArray
from scipy import ndimage

from volseg.evaluation.detection import DetectionCase, froc
from volseg.geometry import voxel_volume_mm3
from volseg.inference.bundle import LoadedBundle, find_bundle, load_bundle
from volseg.inference.segment import segment_volume
from volseg.io import read_study
from volseg.synth import SynthOptions, grow_case, prepare
from volseg.types import Volume

RATES = (0.5, 0.8, 1.2, 2.0, 3.0)
IN_PATCHES = SynthOptions(n=6, seed=78, lesions=(1, 3), distractors=(0, 2), healthy=0.0)
Case = tuple[str, Volume, NDArray, list[NDArray]]
NOISE_CUBE_MM3 = 1.5**3


def cases_on_disk(folder: Path) -> Iterator[Case]:
    """The cases of a `volseg synth` folder: (name, CT, true instances, nothing to overlook)."""
    for entry in json.loads((folder / "datalist.json").read_text())["training"]:
        truth = np.asarray(nib.load(folder / entry["label"]).dataobj).astype(np.uint16)
        yield Path(entry["image"]).name, read_study(folder / entry["image"]).volumes["CT"], truth, []


def cases_in_patches(shared: Path) -> Iterator[Case]:
    """Lesions grown in the real patches; a grown lesion that meets a box is not asked for."""
    for name, volume, boxes in blds_patches(shared):
        source = prepare(f"blds{name}", volume)
        for number in range(IN_PATCHES.n):
            case, truth, _ = grow_case(source, IN_PATCHES, number)
            for lesion in boxes_ras_mm(truth, case):
                if any(touches(lesion, box) for box in boxes):
                    truth = np.where(truth == lesion["id"], 0, truth)
            yield f"blds{name} {number}", case, truth, boxes


def with_noise(cases: Iterator[Case], hu: float) -> Iterator[Case]:
    """The same cases with white noise of `hu` in cubes of 1.5 mm; the same noise for the same case."""
    for name, volume, truth, overlooked in cases:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        deviation = hu * (NOISE_CUBE_MM3 / voxel_volume_mm3(volume.affine)) ** 0.5
        noise = deviation * rng.standard_normal(volume.voxels.shape, dtype=np.float32)
        yield name, replace(volume, voxels=(volume.voxels + noise).astype(np.float32)), truth, overlooked


def scored(bundle: LoadedBundle, case: Volume) -> tuple[NDArray, dict[int, float]]:
    """Instances and their scores: a detector's own, or the peak of the probability."""
    found = segment_volume(case, bundle)
    if found.scores is not None:
        return found.instances, dict(enumerate(found.scores, start=1))
    ids = np.arange(1, int(found.instances.max()) + 1)
    peaks = np.atleast_1d(ndimage.maximum(found.probability, found.instances, ids)) if ids.size else []
    return found.instances, dict(zip(ids.tolist(), map(float, peaks), strict=True))


def curve(cases: Iterator[Case], bundle: LoadedBundle) -> dict[str, Any]:
    """Sensitivity and the threshold for it at each of `RATES`."""
    judged = []
    for name, case, truth, overlooked in cases:
        instances, scores = scored(bundle, case)
        hit = set(np.unique(instances[truth > 0]).tolist())
        for mark in boxes_ras_mm(instances, case):
            if mark["id"] not in hit and any(touches(mark, box) for box in overlooked):
                instances = np.where(instances == mark["id"], 0, instances)
        judged.append(DetectionCase.from_instances(instances, scores, truth, patient=name))
    of_all = froc(judged, iou=IOU, rates=RATES)
    points = {
        f"{rate:g}": {"sensitivity": round(of_all.at[rate], 3), "threshold": round(of_all.threshold_for(rate), 4)}
        for rate in RATES
    }
    return {"cases": of_all.n_volumes, "lesions": of_all.n_lesions, "at": points}


def boxes_found(shared: Path, bundle: LoadedBundle) -> dict[str, Any]:
    """Per real box the best score of a mark that hits it (box IoU 0.1, or its center inside); scores of false marks."""
    best, false = {}, {}
    for name, volume, boxes in blds_patches(shared):
        instances, scores = scored(bundle, volume)
        marks = boxes_ras_mm(instances, volume)
        for number, box in enumerate(boxes, start=1):
            hits = [scores[m["id"]] for m in marks if touches(m, box)]
            best[f"{name} box {number}"] = round(max(hits, default=0.0), 4)
        of_none = [scores[m["id"]] for m in marks if not any(touches(m, box) for box in boxes)]
        false[name] = sorted((round(s, 4) for s in of_none), reverse=True)
    return {"best_of_box": best, "false_marks": false}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cases", type=Path, action="append", default=[], help="a folder of volseg synth")
    parser.add_argument("--noise-hu", type=float, default=0.0, help="add noise to the grown cases (default: none)")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="ID=VALUE", help="override a config entry")
    args = parser.parse_args()
    files = find_bundle(args.bundle, trust=True)
    config = json.loads((files.root / "configs" / "inference.json").read_text())
    loose = {"operating_score": LOOSE_SCORE} if "operating_score" in config else {"seed_threshold": 0.5}
    overrides = loose | config_overrides(args.set)
    bundle = load_bundle(files, overrides=overrides)
    document = {**heading(bundle), "overrides": overrides, "noise_hu": args.noise_hu}
    start = time.perf_counter()
    document["real_boxes"] = boxes_found(args.shared, bundle)
    print(json.dumps(document["real_boxes"], indent=1))
    document["grown_in_blds_patches"] = curve(with_noise(cases_in_patches(args.shared), args.noise_hu), bundle)
    print(json.dumps(document["grown_in_blds_patches"]))
    for folder in args.cases:
        document[folder.name] = curve(with_noise(cases_on_disk(folder), args.noise_hu), bundle)
        print(folder.name, json.dumps(document[folder.name]))
    document["seconds"] = round(time.perf_counter() - start)
    args.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
