"""Slices compared -> overlap of the lesion, and means over the two classes. Pooled, and patient by patient.

Two families of figures stand in the literature under the same words. *Lesion only*: IoU and Dice of the lesion, for
which Dice = 2 IoU / (1 + IoU). *Class mean*: the mean over lesion and background, for which that identity fails, and
which is high for any mask, since background is nearly everything. They are never to share a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.bootstrap import RESAMPLES, bootstrap
from volseg.evaluation.estimate import Estimate, undefined
from volseg.evaluation.overlap import Overlap, overlap, pooled

Family = Literal["lesion", "bone", "class-mean"]
Level = Literal["pooled", "per patient"]

Figure = Callable[[Overlap], float]
REGION: Mapping[str, Figure] = {
    "iou": lambda c: c.iou,
    "dice": lambda c: c.dice,
    "sensitivity": lambda c: c.sensitivity,
    "precision": lambda c: c.precision,
}


@dataclass(frozen=True)
class SliceResult:
    """One slice: pixel counts of the lesion and, where a network marks it, of bone. `patient` is "" if unknown."""

    name: str
    patient: str
    lesion: Overlap
    bone: Overlap | None = None


def compare_slice(predicted: NDArray, truth: NDArray) -> Overlap:
    """Pixel counts of two masks (rows, columns); above 0 is inside, and a pixel has no size.

    Raises ValueError if the shapes differ.
    """
    return replace(overlap(predicted, truth, np.eye(4)), voxel_mm3=math.nan)


def background(case: Overlap) -> Overlap:
    """The other class of the same two masks: what is not lesion is background."""
    return replace(
        case,
        true_positive=case.true_negative,
        false_positive=case.false_negative,
        false_negative=case.false_positive,
        true_negative=case.true_positive,
    )


def class_mean(figure: Figure) -> Figure:
    """(lesion + background) / 2. nan where one of them is."""
    return lambda case: (figure(case) + figure(background(case))) / 2


# mPA is the mean over classes of TP / (TP + FN), the share of each class that was found; eq. (8) of MFP-DeepLabv3+
# is misprinted. With two classes it is the mean of sensitivity and specificity.
CLASS_MEANS: Mapping[str, Figure] = {
    "miou": class_mean(REGION["iou"]),
    "mpa": class_mean(REGION["sensitivity"]),
    "mprecision": class_mean(REGION["precision"]),
    "mdice": class_mean(REGION["dice"]),
}


@dataclass(frozen=True)
class SliceSummary:
    """`figures[family, level]` by name. Without patients there are no intervals and nothing per patient."""

    n_slices: int
    n_patients: int
    without_lesion: int
    figures: Mapping[tuple[Family, Level], Mapping[str, Estimate]]


def summarise_slices(
    results: Sequence[SliceResult], *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> SliceSummary:
    """All tested slices of all folds -> lesion, bone and class-mean figures with intervals over patients.

    Pooled: the pixels of all slices as one picture, so that large lesions dominate. Per patient: pixels pooled in each
    patient, then the mean over patients that have the structure in the truth (`without_lesion` counts the others; a
    patient in whom all was missed counts 0). Slices of one patient are never drawn apart.

    Raises ValueError without any slice, or if a slice comes twice (tested in two folds: give one fold at a time).
    """
    if not results:
        raise ValueError("no slice to evaluate")
    names = [result.name for result in results]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"slice {twice!r} comes {names.count(twice)} times; pooled figures count every slice once")
    known = all(result.patient for result in results)
    patients = sorted({result.patient for result in results}) if known else []
    figures: dict[tuple[Family, Level], Mapping[str, Estimate]] = {}
    lesion = _grouped([(r.patient, r.lesion) for r in results], patients)
    bone = _grouped([(r.patient, r.bone) for r in results if r.bone is not None], patients)
    families: list[tuple[Family, list[Overlap], Mapping[str, Figure]]] = [
        ("lesion", lesion, REGION),
        ("class-mean", lesion, CLASS_MEANS),
    ]
    if len(bone) == len(lesion):
        families.append(("bone", bone, REGION))
    for family, groups, measures in families:
        figures[family, "pooled"] = {
            name: _pooled(groups, measure, known, rng, resamples) for name, measure in measures.items()
        }
        figures[family, "per patient"] = {
            name: _per_patient(groups, measure, known, rng, resamples) for name, measure in measures.items()
        }
    empty = sum(case.true_voxels == 0 for case in lesion) if known else 0
    return SliceSummary(len(results), len(patients), empty, figures)


def _grouped(slices: Sequence[tuple[str, Overlap]], patients: Sequence[str]) -> list[Overlap]:
    """One pooled Overlap per patient; one in all where patients are unknown."""
    if not slices:
        return []
    groups = [[case for who, case in slices if who == patient] for patient in patients]
    return [pooled(group) for group in groups if group] if patients else [pooled([case for _, case in slices])]


def _pooled(
    groups: Sequence[Overlap], measure: Figure, known: bool, rng: np.random.Generator, resamples: int
) -> Estimate:
    if not known:
        return Estimate(measure(groups[0]), math.nan, math.nan, 0, "patients", "patients unknown: no interval")
    return bootstrap(
        lambda rows: measure(pooled([groups[row] for row in rows])),
        np.arange(len(groups)),
        rng=rng,
        resamples=resamples,
    )


def _per_patient(
    groups: Sequence[Overlap], measure: Figure, known: bool, rng: np.random.Generator, resamples: int
) -> Estimate:
    if not known:
        return undefined(0, method="patients unknown")
    values = np.array([measure(case) for case in groups if case.true_voxels])
    return bootstrap(lambda rows: float(values[rows].mean()), np.arange(values.size), rng=rng, resamples=resamples)
