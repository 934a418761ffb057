"""How well the shipped MRI bundle finds lesions with every subset of sequences: held-out phantoms, never real MRI.

    volseg synth mri-phantom -o CASES --n 36 --seed 20261121 --section testing
    python tests/benchmarks/bench_spine_mri.py --data CASES --out tests/benchmarks/results

Runs the bundle as `volseg predict` does; a lesion is hit at IoU >= 0.1. All sequences on every case, the other subsets
on the first `--subset-cases`. The label lies on the grid of T1: subsets without T1 are compared there too, their
probabilities brought to it by the affines.
Writes one JSON with date and machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lesion_rows import IOU, by_diameter, by_kind, heading, judged, summary
from monai.data import MetaTensor
from numpy.typing import NDArray

from volseg.inference.bundle import LoadedBundle, find_bundle, load_bundle
from volseg.inference.datasets import listed_cases
from volseg.inference.reads import channels_of
from volseg.inference.segment import segment_sequences
from volseg.io import read_nifti
from volseg.io.mri_study import read_mri_study
from volseg.measure import label_lesions
from volseg.transforms.resample import resample_to_grid
from volseg.types import Study, Volume

BUNDLE = "spine_mri_unet_segmentation"


def subsets(channels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All sequences first, then every smaller subset."""
    return [c for n in range(len(channels), 0, -1) for c in itertools.combinations(channels, n)]


def probability_at(truth: Volume, study: Study, bundle: LoadedBundle) -> NDArray[np.float32]:
    """Lesion probability as `volseg predict` has it, on the grid of the truth: the first series, or T1's."""
    found = segment_sequences(study, bundle).probability
    affine = next(iter(study.volumes.values())).affine
    if found.shape == truth.voxels.shape and np.allclose(affine, truth.affine):
        return found
    tensor = MetaTensor(torch.from_numpy(found[None]), affine=torch.from_numpy(affine))
    return resample_to_grid(tensor, affine=truth.affine, shape=truth.voxels.shape, outside=0.0)[0].numpy()


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
        study = read_mri_study(case["image"])
        drawn = json.loads((args.data / "parameters" / f"{study.name}.json").read_text())["lesions"]
        chosen = subsets(channels) if number < args.subset_cases and not args.tries else [channels]
        for subset in chosen:
            start = time.perf_counter()
            part = replace(study, volumes={channel: study.volumes[channel] for channel in subset})
            probability = probability_at(truth, part, bundle)
            seconds = round(time.perf_counter() - start, 2)
            for threshold, seed in rules:
                found = label_lesions(
                    probability, truth.affine, threshold=threshold, seed_threshold=seed,
                    min_volume_mm3=config["min_volume_mm3"],
                )  # fmt: skip
                name = "+".join(subset) + (f" at {threshold:g}, {seed:g}" if args.tries else "")
                row = {"case": study.name, **judged(found, truth.voxels, drawn), "seconds": seconds}
                rows.setdefault(name, []).append(row)
        print(json.dumps({k: v for k, v in rows[next(iter(rows))][-1].items() if k != "lesions"}), flush=True)
    for name, of_subset in rows.items():
        print(f"{name:24s}", json.dumps(summary(of_subset)))
    if args.tries:
        return
    full = rows["+".join(channels)]
    document = {
        **heading(bundle),
        "data": "computed phantoms, volseg synth mri-phantom; never real MRI",
        "iou": IOU,
        "all_sequences": summary(full),
        "sensitivity_by_diameter": by_diameter(full),
        "sensitivity_by_kind": by_kind(full),
        "first_cases_by_subset": {name: summary(r[: args.subset_cases]) for name, r in rows.items()},
        "cases": full,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{document['date']}_spine_mri.json"
    path.write_text(json.dumps(document, indent=1))
    print(path)


if __name__ == "__main__":
    main()
