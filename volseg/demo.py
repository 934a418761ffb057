"""A phantom patient through the whole walk: what `make demo` runs. Needs no data and says how well it went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from volseg.evaluation.lesions import match_lesions
from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
from volseg.io import read_study, write_nifti
from volseg.pipeline import OutputOptions, analyse_study, write_results
from volseg.synth import PHANTOM, Source, SynthOptions, grow_case

PATIENT = "phantom_patient"


def run_demo(out: Path, *, seed: int, say: Callable[[str], None]) -> int:
    """Make a phantom CT with lesions of known mask, analyse it as any study, compare. Returns the exit code 0.

    Writes `out`/input/ (the CT and the truth) and `out`/phantom_patient/ (what `volseg predict` writes).
    """
    start = time.perf_counter()
    say("1/4 a phantom patient: spine, ribs, soft tissue, a table; lesions grown in the bone")
    options = SynthOptions(n=1, seed=seed, lesions=(4, 4), distractors=(1, 1), healthy=0.0)
    volume, truth, parameters = grow_case(Source(PHANTOM), options, number=0)
    image = out / "input" / f"{PATIENT}.nii.gz"
    image.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(image, np.rint(volume.voxels).astype(np.int16), volume.affine, dtype=np.int16)
    write_nifti(out / "input" / "truth.nii.gz", truth, volume.affine, dtype=np.uint16)
    kinds = ", ".join(lesion["kind"] for lesion in parameters["lesions"])
    say(f"    {len(parameters['lesions'])} lesions ({kinds}) in {image}")

    say("2/4 reading it back and loading the bundle")
    study = read_study(image, name=PATIENT)
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE), overrides={"inferer#progress": None})

    say("3/4 finding, outlining, measuring (same as: volseg predict)")
    result = analyse_study(study, bundle, say=lambda line: say(f"    {line}"))
    result = replace(result, warnings=(*result.warnings, "this patient is a computed phantom"))
    folder = write_results(result, out / result.study.name, OutputOptions(overwrite=True))

    say("4/4 against the known truth")
    match = match_lesions(result.instances, truth)
    overlap = int(((result.instances > 0) & (truth > 0)).sum())
    dice = 2 * overlap / max(1, int((result.instances > 0).sum()) + int((truth > 0).sum()))
    say(
        f"    {len(match.hits)} of {match.n_true} lesions found (IoU >= 0.1), "
        f"{len(match.false_positives)} false, Dice {dice:.2f} (synthetic phantom, not a clinical figure)"
    )
    say(f"Done in {time.perf_counter() - start:.0f} s. Open {folder / 'report.html'}")
    return 0
