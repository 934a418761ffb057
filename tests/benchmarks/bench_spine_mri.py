"""How well the shipped MRI bundle finds lesions with every subset of sequences: held-out phantoms, never real MRI.

    volseg synth mri-phantom -o CASES --n 36 --seed 20261121 --section testing
    python tests/benchmarks/bench_spine_mri.py --data CASES --out tests/benchmarks/results

Runs the bundle as `volseg predict` does (bias correction, z-score and grid once per case, then each subset of the
channels); a lesion is hit at IoU >= 0.1. All sequences on every case, the other subsets on the first `--subset-cases`.
The label lies on the grid of T1: subsets without T1 are compared there too, the masks brought to it by their affines.
Writes one JSON with date and machine.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from volseg.evaluation.lesions import match_lesions
from volseg.inference.bundle import LoadedBundle, find_bundle, load_bundle
from volseg.inference.datasets import listed_cases
from volseg.inference.reads import channels_of
from volseg.io import read_nifti
from volseg.io.mri_study import read_mri_study
from volseg.measure import label_lesions
from volseg.transforms.invert import to_source_grid
from volseg.transforms.mri import CorrectBiasd, ZScored, stack_sequences, study_tensors
from volseg.transforms.resample import resample_to_grid

BUNDLE = "spine_mri_unet_segmentation"


def subsets(channels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All sequences first, then every smaller subset."""
    return [c for n in range(len(channels), 0, -1) for c in itertools.combinations(channels, n)]


def normalised(path: str, config: dict[str, Any]) -> dict[str, MetaTensor]:
    """Channel -> (1, X, Y, Z) as the bundle's own preprocessing has it before the grid."""
    tensors = study_tensors(read_mri_study(path))
    corrected = CorrectBiasd(work_mm=6.0)(tensors) if config["bias_correction"] else tensors
    return ZScored()(corrected)


def probability_of(series: dict[str, MetaTensor], bundle: LoadedBundle, config: dict[str, Any]) -> MetaTensor:
    """Lesion probability (1, X, Y, Z) on the grid of the first series."""
    image, _ = stack_sequences(series, config["channels"], pixdim=config["pixdim_mm"])
    with torch.inference_mode():
        logits = bundle.inferer(image[None], bundle.network)[0]
    probability = torch.sigmoid(logits[1:2] - logits[0:1])
    return to_source_grid(MetaTensor(torch.as_tensor(probability), meta=image.meta))


def judged(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    match = match_lesions(found, truth, iou=0.1)
    overlap = int(((found > 0) & (truth > 0)).sum())
    size = int((found > 0).sum()) + int((truth > 0).sum())
    return {
        "true": match.n_true,
        "hit": len(match.hits),
        "false_positive": len(match.false_positives),
        "dice": 2 * overlap / size if truth.any() else None,
        "hit_ids": [int(i) for i, _, _ in match.hits],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    true, hit = sum(r["true"] for r in rows), sum(r["hit"] for r in rows)
    dices = [r["dice"] for r in rows if r["dice"] is not None]
    return {
        "cases": len(rows),
        "lesions": true,
        "sensitivity": round(hit / true, 3) if true else None,
        "false_positives_per_case": round(sum(r["false_positive"] for r in rows) / len(rows), 2),
        "mean_dice_over_positives": round(float(np.mean(dices)), 3) if dices else None,
    }


def by_size_and_kind(rows: list[dict[str, Any]], data: Path) -> dict[str, str]:
    """Hit of all, by diameter (of the sphere of that volume) and kind of the drawn lesion."""
    groups: dict[str, list[bool]] = {}
    for row in rows:
        drawn = json.loads((data / "parameters" / f"{row['case']}.json").read_text())["lesions"]
        for lesion in drawn:
            d = (6 * lesion["volume_mm3"] / np.pi) ** (1 / 3)
            size = "under 8 mm" if d < 8 else "8 to 15 mm" if d < 15 else "15 mm and more"
            for group in (size, lesion["kind"]):
                groups.setdefault(group, []).append(lesion["id"] in row["hit_ids"])
    return {name: f"{sum(hits)} of {len(hits)}" for name, hits in sorted(groups.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--section", default="testing")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"))
    parser.add_argument("--bundle", default=BUNDLE)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--subset-cases", type=int, default=12)
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="THRESHOLD,SEED",
                        help="thresholds to compare with all sequences, instead of writing figures")  # fmt: skip
    args = parser.parse_args()
    bundle = load_bundle(find_bundle(args.bundle, trust=True), overrides={"inferer#progress": False})
    config = json.loads((bundle.files.root / "configs" / "inference.json").read_text())
    channels = channels_of(bundle.files.metadata)
    rules = [tuple(map(float, t.split(","))) for t in args.tries] or [(config["threshold"], config["seed_threshold"])]
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, case in enumerate(listed_cases(str(args.data), args.section)[: args.cases]):
        truth = read_nifti(Path(case["label"]), channel="mask")[0]
        series = normalised(case["image"], config)
        chosen = subsets(channels) if number < args.subset_cases and not args.tries else [channels]
        for subset in chosen:
            start = time.perf_counter()
            probability = probability_of({c: series[c] for c in subset}, bundle, config)
            if subset[0] != "T1":
                probability = resample_to_grid(probability, affine=truth.affine, shape=truth.voxels.shape, outside=0.0)
            seconds = round(time.perf_counter() - start, 2)
            for threshold, seed in rules:
                found = label_lesions(
                    probability[0].numpy(), truth.affine, threshold=threshold, seed_threshold=seed,
                    min_volume_mm3=config["min_volume_mm3"],
                )  # fmt: skip
                name = "+".join(subset) + (f" at {threshold:g}, {seed:g}" if args.tries else "")
                row = judged(found, truth.voxels) | {"case": Path(case["image"]).name, "seconds": seconds}
                rows.setdefault(name, []).append(row)
        print(
            Path(case["image"]).name,
            {k: v for k, v in rows[next(iter(rows))][-1].items() if k != "hit_ids"},
            flush=True,
        )
    for name, of_subset in rows.items():
        print(f"{name:24s}", json.dumps(summary(of_subset)))
    if args.tries:
        return
    full = rows["+".join(channels)]
    document = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, CPU",
        "bundle": f"{bundle.files.name} {bundle.files.version}",
        "weights_sha256": bundle.weights_sha256,
        "data": "computed phantoms, volseg synth mri-phantom; never real MRI",
        "iou": 0.1,
        "all_sequences": summary(full),
        "found": by_size_and_kind(full, args.data),
        "first_cases_by_subset": {name: summary(r[: args.subset_cases]) for name, r in rows.items()},
        "cases": full,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{document['date']}_spine_mri.json"
    path.write_text(json.dumps(document, indent=1))
    print(json.dumps(document["found"]), path)


if __name__ == "__main__":
    main()
