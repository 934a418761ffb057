"""The study, from seeds to pages: train on site B, freeze, test once on site A.

    python tests/benchmarks/study.py --scale small      # phantoms only, minutes on one core
    python tests/benchmarks/study.py --scale full --shared ../shared      # within the hour; 3 seeds; resumable

Stages: cohorts of both sites; the lung-origin head with its controls; every arm and seed trained by the same recipe on
site B, frozen into a bundle and validated once on site A (`volseg.evaluate.validate_sites`); all arms compared in pairs
on the same patients. What is done lies in --work and is not done again. Everything is synthetic.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import pickle
import platform
import signal
import sys
import tarfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from study_arms import Recipe, freeze_arm, network_defs, parameters_of, predictor, slug, train_arm
from study_origin import Seen, origin_study, see_patients
from study_page import compare_arms, describe_arm, write_pages

from volseg import __version__
from volseg.evaluate import ValidateOptions, validate_sites
from volseg.evaluate.compare import EvaluateOptions
from volseg.evaluation.cases import CaseResult
from volseg.origin.shipped import heads_document
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.synthetic import SITES, CohortOptions, Site, write_cohort
from volseg.synthetic.cohort import find_cts

TRAIN, FIT, TEST = 7, 8, 9  # seeds of the cohorts: the threshold is frozen on patients that training never saw


@dataclass(frozen=True)
class Scale:
    """How much of it. `train`, `fit` patients of site B, `test` of site A; `origin` patients of B and A."""

    recipe: Recipe
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    train: int
    fit: int
    test: int
    origin: tuple[int, int]
    bodies: int
    shuffles: int
    resamples: int
    sites: Mapping[str, Site]
    phantom_mm: tuple[float, float, float]


SMALL = Scale(
    recipe=Recipe(
        epochs=6, iterations=40, batch_size=2, learning_rate=2e-3, ema_decay=0.97, roi=32, overlap=0.25,
        dims=(8, 16, 32, 48), hidden_dim=48, depths=(1, 1, 1, 1), filters=(8, 16, 32, 64, 64),
    ),
    arms=("SegMamba", "no-Mamba twin", "DynUNet"),
    seeds=(1,),
    train=24, fit=12, test=20, origin=(240, 200), bodies=8, shuffles=20, resamples=500,
    sites={
        "B": replace(SITES["B"], spacing_mm=(1.3, 1.3, 1.5)),
        "A": replace(SITES["A"], spacing_mm=(1.3, 1.3, 3.0)),
    },
    phantom_mm=(90.0, 100.0, 80.0),
)  # fmt: skip
# Sized to end within the hour on two cores: 9 trainings of 360 steps, 52 patients judged by each.
FULL = replace(
    SMALL,
    recipe=replace(SMALL.recipe, epochs=9, ema_decay=0.98, overlap=0.5),
    seeds=(1, 2, 3),
    train=48, fit=20, test=32, origin=(600, 300), bodies=12, shuffles=50, resamples=2000,
    sites={name: SITES[name] for name in "BA"},
    phantom_mm=(130.0, 140.0, 120.0),
)  # fmt: skip
SCALES = {"small": SMALL, "full": FULL}

# Each CT serves one site. (What bench_lesions holds out is A's.)
SHARED_CTS = {
    "B": ("totalseg_ct/example_ct.nii.gz", "vhf_pelvis_1mm/vhf_pelvis_150slices_dicom.tar.xz",
          "lidc0314_chest_1mm/LIDC-IDRI-0314_dicom.tar.xz"),
    "A": ("rider_chest_0p8mm/rider_95slices_dicom.tar.xz", "sts015_ct_mr_pet/nifti_reference/CT_image.nii.gz"),
}  # fmt: skip


def run(scale: Scale, work: Path, out: Path, *, shared: Path | None, words: str) -> Path:
    """Every stage that is not done yet; returns the page."""
    clock = Clock(work / "seconds.json", 3 + len(scale.arms) * len(scale.seeds))
    try:
        return _stages(scale, work, out, shared, words, clock)
    finally:
        clock.stop()  # what was cut off took its time, too


def _stages(scale: Scale, work: Path, out: Path, shared: Path | None, words: str, clock: Clock) -> Path:
    stage = clock.start

    stage("cohorts of both sites")
    cts = shared_cts(shared, work / "cts") if shared is not None else {"B": {}, "A": {}}
    phantoms = CohortOptions(phantom_mm=scale.phantom_mm)
    for site, seed, patients, folder in (
        ("B", TRAIN, scale.train, work / "train"), ("B", FIT, scale.fit, work / "test"),
        ("A", TEST, scale.test, work / "test"),
    ):  # fmt: skip
        options = replace(phantoms, seed=seed, patients=patients)
        write_cohort(scale.sites[site], cts[site], folder, options, say=print)

    stage("origin: fitted at B, frozen, tested at A, with its controls")
    seen = {
        site: kept(
            work / f"origin_{site}.pickle",
            [scale.sites[site], replace(phantoms, seed=seed, patients=patients, distractors=(0, 0)), scale.bodies],
        )
        for site, seed, patients in (("B", 21, scale.origin[0]), ("A", 22, scale.origin[1]))
    }
    image, clinical, origin, drawn = origin_study(
        seen["B"], seen["A"], folds=5, shuffles=scale.shuffles, resamples=scale.resamples, seed=0
    )

    definitions = network_defs(scale.recipe)
    results: dict[str, dict[int, list[CaseResult]]] = {arm: {} for arm in scale.arms}
    first_seed: dict[str, list[CaseResult]] = {}
    arms: dict[str, dict[str, Any]] = {}
    for arm in scale.arms:
        arms[arm] = {"parameters": parameters_of(definitions[arm]), "seeds": {}}
        for seed in scale.seeds:
            stage(f"{arm}, seed {seed}: train on B, freeze, test once on A")
            home = work / f"{slug(arm)}_{seed}"
            if not (home / "validation" / "validation.json").is_file():
                _train_and_test(definitions[arm], seed, scale, work, home, heads_document(image, clinical))
            told, compared, results[arm][seed] = describe_arm(home / "validation", scale.resamples)
            first_seed.setdefault(arm, compared)
            arms[arm]["seeds"][seed] = told

    stage("all arms on the same patients of site A; pages")
    document = {
        "what": words,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "volseg": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "wall_seconds": clock.seconds(),
        "backgrounds": {site: sorted(found) or ["phantoms"] for site, found in cts.items()},
        "scale": asdict(scale),
        "arms": arms,
        "paired": compare_arms(results, resamples=scale.resamples),
        "origin": origin,
    }
    return write_pages(as_json(document), first_seed, drawn, out)


def _train_and_test(
    definition: Mapping[str, Any], seed: int, scale: Scale, work: Path, home: Path, heads: Mapping[str, Any]
) -> None:
    weights = train_arm(definition, seed, scale.recipe, work / "train", home / "training", print)
    bundle = freeze_arm(definition, weights, heads, scale.recipe, home / "bundle")
    evaluate = EvaluateOptions(resamples=scale.resamples)
    options = ValidateOptions("B", "A", scale.recipe.false_positives, evaluate)
    validate_sites(
        work / "test", home / "validation", options, predict=predictor(bundle), progress=None, say=lambda _: None
    )


class Clock:
    """Wall seconds of every stage, summed over all runs in one work folder."""

    def __init__(self, path: Path, stages: int) -> None:
        self.path, self.stages, self.number = path, stages, 0
        self.title, self.since = "", time.perf_counter()
        self.before: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}

    def start(self, title: str) -> None:
        self.stop()
        self.number, self.title = self.number + 1, title
        print(f"[{self.number}/{self.stages}] {title}", flush=True)

    def stop(self) -> None:
        if self.title:
            self.before = self.seconds()
            write_whole(self.path, json.dumps(self.before))
        self.title, self.since = "", time.perf_counter()

    def seconds(self) -> dict[str, float]:
        now = {self.title: self.before.get(self.title, 0.0) + time.perf_counter() - self.since} if self.title else {}
        return self.before | now


def kept(path: Path, asked: list[Any]) -> Seen:
    """The patients of one site as they were seen before, or `see_patients` and kept; other options begin anew."""
    if path.is_file():
        before, seen = pickle.loads(path.read_bytes())  # written by this script, beside its other work
        if before == repr((__version__, asked)):
            return seen
    seen = see_patients(*asked)
    write_whole(path, pickle.dumps((repr((__version__, asked)), seen)))
    return seen


def shared_cts(shared: Path, work: Path) -> dict[str, dict[str, Path]]:
    """The healthy CTs of ../shared by site, unpacked where they are archives; what is absent is left out."""
    found: dict[str, dict[str, Path]] = {}
    for site, names in SHARED_CTS.items():
        found[site] = {}
        for name in names:
            path = shared / "data" / name
            if not path.is_file():
                continue
            if path.name.endswith(".tar.xz"):
                folder = work / path.parent.name
                if not folder.is_dir():
                    with tarfile.open(path) as archive:
                        archive.extractall(folder, filter="data")
                path = folder
            found[site] |= find_cts(str(path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--work", type=Path, help="what takes time is kept here (default: work/study_SCALE)")
    parser.add_argument("--out", type=Path, help="page, JSON and figures (default: WORK/docs)")
    parser.add_argument("--shared", type=Path, help="folder with data/: real healthy CTs to grow lesions in")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.WARNING)
    if args.scale == "small":
        logging.disable(logging.INFO)  # a line per step is company in hours, noise in minutes
    work = args.work or Path("work") / f"study_{args.scale}"
    scale = SCALES[args.scale]
    words = "synthetic (phantoms)"
    if args.shared is not None and (args.shared / "data").is_dir():
        words = "synthetic (lesions grown in real CTs)"
    else:
        args.shared = None
    print(run(scale, work, args.out or work / "docs", shared=args.shared, words=words))


if __name__ == "__main__":
    main()
