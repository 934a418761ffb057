"""Pairs of masks -> compared volumes, each kept on disk as soon as it is done."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from volseg import __version__
from volseg.errors import InputError, VolsegError
from volseg.evaluate.pairs import Pair, number_of, read_result
from volseg.evaluation.bootstrap import RESAMPLES
from volseg.evaluation.cases import CaseResult, Labels, as_instances, compare_case
from volseg.evaluation.figures import Shadow
from volseg.evaluation.surface import NSD_TOLERANCE_MM
from volseg.geometry import spacing_mm, to_ras
from volseg.io import read_volume
from volseg.io.cohort import Problem, one_line
from volseg.io.cohort_check import same_grid
from volseg.io.files import safe_name
from volseg.report.files import write_whole
from volseg.types import Volume

CASE_FORMAT = 1  # raised when the meaning of a kept case changes: it is then compared again


@dataclass(frozen=True)
class EvaluateOptions:
    """`iou`: from which overlap a lesion counts as found. `labels`: see `as_instances`.

    `missing_is_empty` counts a truth without prediction as a volume in which nothing was found, else it is refused.
    """

    iou: float = 0.1
    tolerance_mm: float = NSD_TOLERANCE_MM
    labels: Labels = "auto"
    resamples: int = RESAMPLES
    seed: int = 0
    missing_is_empty: bool = False


DEFAULTS = EvaluateOptions()


def compare_pairs(
    pairs: Sequence[Pair], keep: Path, options: EvaluateOptions, *, progress: bool | None = None
) -> list[CaseResult]:
    """Compare every pair, keeping each result in `keep`/<case>.json; those kept for the same files are not redone.

    Raises InputError("evaluation-incomplete") naming every volume that could not be compared: leaving it out would
    flatter the figures.
    """
    keep.mkdir(parents=True, exist_ok=True)
    problems: list[Problem] = []
    cases: list[CaseResult] = []
    bar = tqdm(
        pairs, desc="comparing", unit="case", disable=not progress if progress is not None else None, file=sys.stderr
    )
    for pair in bar:
        try:
            cases.append(_compare(pair, keep / f"{safe_name(pair.case)}.json", options))
        except VolsegError as error:
            problems.append(Problem(error.code, pair.case, error.message))
    if problems:
        raise InputError("evaluation-incomplete", f"{one_line(problems)}; mend or remove them")
    return cases


def shadow_of(pair: Pair, case: CaseResult) -> Shadow:
    """A case from the front, for the picture of the worst ones."""
    truth = read_volume(pair.truth)[0]
    predicted = None if pair.predicted is None else read_volume(pair.predicted)[0]
    front, affine = to_ras(truth.voxels, truth.affine)
    theirs = None if predicted is None else to_ras(predicted.voxels, predicted.affine)[0]
    step = spacing_mm(affine)
    shadow = np.asarray((front > 0).any(axis=1))
    return Shadow(
        title=f"{case.case}: DSC {case.overlap.dice:.2f}",
        truth=shadow,
        predicted=np.zeros_like(shadow) if theirs is None else np.asarray((theirs > 0).any(axis=1)),
        pixel_mm=(float(step[0]), float(step[2])),
    )


def _compare(pair: Pair, kept: Path, options: EvaluateOptions) -> CaseResult:
    files = [pair.truth, pair.predicted, pair.result, pair.parameters]
    stamp = {
        "files": [None if f is None else [str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "options": [options.tolerance_mm, options.labels, CASE_FORMAT, __version__],
        "patient": pair.patient,
    }
    # Before the kept case is believed: one kept while this was allowed says nothing once it is not.
    if pair.predicted is None and not options.missing_is_empty:
        raise InputError("prediction-missing", "there is no prediction; --missing-is-empty counts it as nothing found")
    if kept.is_file():
        try:
            document = json.loads(kept.read_text(encoding="utf-8"))
            if document["stamp"] == stamp:
                return CaseResult.from_json(document["case"])
        except (ValueError, KeyError, TypeError):
            pass  # written by another version or cut off: compared again
    truth = _mask(pair.truth)
    predicted = _mask(pair.predicted) if pair.predicted else replace(truth, voxels=np.zeros_like(truth.voxels))
    differs = same_grid(truth.voxels.shape, truth.affine, predicted.voxels.shape, predicted.affine)
    if differs:
        raise InputError("grid-differs", f"the prediction is not on the truth's grid: {differs}")
    scores = _scores(pair)
    unscored = [] if scores is None else sorted(set(np.unique(predicted.voxels).tolist()) - {0} - set(scores))
    if unscored:
        raise InputError("scores-missing", f"result.json has no score for lesion {unscored[0]} of the mask")
    case = compare_case(
        as_instances(predicted.voxels, "instances" if scores is not None else options.labels),
        as_instances(truth.voxels, options.labels),
        truth.affine,
        case=pair.case,
        patient=pair.patient,
        scores={} if pair.predicted is None else scores,
        kinds=_kinds(pair),
        tolerance_mm=options.tolerance_mm,
    )
    write_whole(kept, json.dumps({"stamp": stamp, "case": case.to_json()}, allow_nan=False))
    return case


def _mask(path: Path) -> Volume:
    volume, _ = read_volume(path)
    voxels = volume.voxels
    if voxels.dtype.kind == "f":
        if not np.array_equal(voxels, np.rint(voxels)):
            raise InputError("mask-not-whole", f"{path.name} holds fractions: a probability map? cut it at a threshold")
        voxels = voxels.astype(np.int32)
    if voxels.size and voxels.min() < 0:
        raise InputError("mask-negative", f"{path.name} holds {voxels.min()}; 0 is background, lesions are above")
    return replace(volume, voxels=voxels)


def _scores(pair: Pair) -> dict[int, float] | None:
    """Scores by lesion id from result.json; None where there is none.

    Raises InputError("result-unreadable") for a score that is no finite number.
    """
    if pair.result is None:
        return None
    return {
        int(lesion["id"]): number_of(lesion, "score", pair.result, of=f"lesion {lesion['id']}")
        for lesion in read_result(pair.result).get("lesions", [])
        if lesion.get("score") is not None
    }


def _kinds(pair: Pair) -> dict[int, str]:
    """Kinds by lesion id from what `volseg synth` wrote beside the labels."""
    if pair.parameters is None:
        return {}
    return {
        int(lesion["id"]): str(lesion.get("kind", "")) for lesion in read_result(pair.parameters).get("lesions", [])
    }
