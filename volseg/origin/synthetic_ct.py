"""Patients with lesions in CT whose best possible AUC is known: chance enters, small phantoms with exact masks leave.

Each lesion's kind and size class are drawn independently from the table of its patient's primary (lung more lytic and
smaller, others more sclerotic and larger). With K such cells a patient of n lesions is a draw from a multinomial, the
log-likelihood ratio is a sum of ln(p_lung / p_other) over the lesions, and its AUC is a finite sum over all multisets:
computed here, not estimated. The two tables are moved towards their mean until the AUC is the one asked for.

What the pictures show is less than what was drawn (a lesion is cut to its bone, a small mixed one may look lytic), so
the stated AUC is an upper limit of what can be read from them. Noise, phantom and lesion count are the same in both
classes: they must not be the signal. Synthetic results are never clinical accuracy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from volseg.errors import UsageError
from volseg.labels import LesionKind
from volseg.phantoms import Phantom, ct_phantom
from volseg.transforms.bone import BoneMask
from volseg.transforms.synthesis import PAINTERS
from volseg.transforms.synthesis_canvas import Canvas, GrownLesion
from volseg.transforms.synthesis_scanner import Scanner, measure_scanner
from volseg.types import Volume

Cell = tuple[LesionKind, str]
SIZES_MM: Mapping[str, tuple[float, float]] = {"small": (8.0, 12.0), "large": (14.0, 20.0)}
# Extremes, moved together until they overlap as asked. Kinds of design/synthesis.md (lung: lytic 17, blastic 14,
# mixed 6 of 46 in one series; prostate sclerotic): made plainer here, because the overlap is set afterwards.
LUNG_KINDS: Mapping[LesionKind, float] = {"lytic": 0.85, "mixed": 0.10, "sclerotic": 0.05}
OTHER_KINDS: Mapping[LesionKind, float] = {"lytic": 0.05, "mixed": 0.10, "sclerotic": 0.85}
LUNG_SMALL, OTHER_SMALL = 0.6, 0.4
CELLS: tuple[Cell, ...] = tuple(itertools.product(LUNG_KINDS, SIZES_MM))
PHANTOM_MM, SPACING_MM = (84.0, 90.0, 90.0), (2.0, 2.0, 2.0)
NOISE_HU = (5.0, 25.0)


@dataclass(frozen=True)
class CtDesign:
    """`lesions` is the inclusive range per patient; `phantoms` skeletons are dealt out without regard to class."""

    patients: int = 80
    bayes_auc: float = 0.80
    prevalence: float = 0.5
    lesions: tuple[int, int] = (1, 3)
    phantoms: int = 4


@dataclass(frozen=True, eq=False)
class SyntheticPatient:
    """`instances` (uint16) on `volume`'s grid; `marrow` bool; `lesions` what was drawn, by id."""

    name: str
    lung: bool
    volume: Volume
    instances: NDArray[np.uint16]
    marrow: NDArray[np.bool_]
    lesions: tuple[GrownLesion, ...]


def draw_patients(design: CtDesign, rng: np.random.Generator) -> Iterator[SyntheticPatient]:
    """The patients of one cohort, one after another; about 0.05 s each, 0.4 s per phantom.

    Raises UsageError where the tables cannot reach the AUC that was asked for.
    """
    tables = cell_tables(design)
    lung = rng.permutation(np.arange(design.patients) < round(design.prevalence * design.patients))
    skeletons = [
        ct_phantom(rng, region="abdomen", size_mm=PHANTOM_MM, spacing_mm=SPACING_MM) for _ in range(design.phantoms)
    ]
    scanners = [measure_scanner(s.volume.voxels, s.volume.affine) for s in skeletons]
    for number, answer in enumerate(lung):
        which = int(rng.integers(design.phantoms))
        canvas = _canvas(skeletons[which], scanners[which], rng)
        probabilities = tables[0] if answer else tables[1]
        wanted = int(rng.integers(design.lesions[0], design.lesions[1] + 1))
        lesions: list[GrownLesion] = []
        for _ in range(wanted):
            kind, size = CELLS[int(rng.choice(len(CELLS), p=probabilities))]
            diameter_mm = float(rng.uniform(*SIZES_MM[size]))
            grown = canvas.grow(kind, PAINTERS[kind], diameter_mm, "marrow", canvas.instances, len(lesions) + 1, rng)
            lesions += [grown] if grown else []
        yield SyntheticPatient(
            name=f"synthetic-ct-{number:04d}",
            lung=bool(answer),
            volume=replace(skeletons[which].volume, voxels=canvas.voxels),
            instances=canvas.instances,
            marrow=skeletons[which].marrow,
            lesions=tuple(lesions),
        )


def cell_tables(design: CtDesign) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of `CELLS` per lesion for lung and for other primaries, whose patient-level Bayes AUC is as asked.

    Raises UsageError where even the extremes overlap too much.
    """
    extremes = (_table(LUNG_KINDS, LUNG_SMALL), _table(OTHER_KINDS, OTHER_SMALL))
    middle = (extremes[0] + extremes[1]) / 2

    def moved(share: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return middle + share * (extremes[0] - middle), middle + share * (extremes[1] - middle)

    highest = bayes_auc(*extremes, design.lesions)
    if not 0.5 < design.bayes_auc <= highest:
        raise UsageError(
            "origin-design",
            f"a Bayes AUC of {design.bayes_auc:g} cannot be had with {design.lesions[0]} to {design.lesions[1]} "
            f"lesions; these tables reach .5 to {highest:.3f}",
        )
    return moved(brentq(lambda share: bayes_auc(*moved(share), design.lesions) - design.bayes_auc, 1e-6, 1.0))


def bayes_auc(p_lung: NDArray, p_other: NDArray, lesions: tuple[int, int]) -> float:
    """AUC of the log-likelihood ratio of a patient whose lesions' cells are independent draws; ties count half.

    `p_lung`, `p_other` (K,) cell probabilities, all above 0; the number of lesions is uniform over the inclusive range,
    the same for both.
    """
    ratio = np.log(p_lung / p_other)
    scores, chances = [], []
    counts = range(lesions[0], lesions[1] + 1)
    for n in counts:
        for drawn in itertools.combinations_with_replacement(range(len(p_lung)), n):
            times = np.bincount(drawn, minlength=len(p_lung)) if drawn else np.zeros(len(p_lung), int)
            ways = math.factorial(n) / math.prod(math.factorial(int(t)) for t in times) / len(counts)
            scores.append(float(ratio @ times))
            chances.append((ways * np.prod(p_lung**times), ways * np.prod(p_other**times)))
    # Sums of the same logs in another order must tie.
    score, (lung, other) = np.round(scores, 9), np.asarray(chances).T
    above, equal = score[:, None] > score, score[:, None] == score
    return float(lung @ (above + 0.5 * equal) @ other)


def _table(kinds: Mapping[LesionKind, float], small: float) -> NDArray[np.float64]:
    sizes = {"small": small, "large": 1 - small}
    return np.array([kinds[kind] * sizes[size] for kind, size in CELLS])


def _canvas(skeleton: Phantom, scanner: Scanner, rng: np.random.Generator) -> Canvas:
    """The skeleton seen once more: fresh noise, as strong as another scanner's."""
    noise_hu = rng.uniform(*NOISE_HU)
    grain = rng.standard_normal(skeleton.volume.voxels.shape, dtype=np.float32)
    voxels = np.rint(skeleton.volume.voxels + noise_hu * grain).astype(np.int16)
    bone = BoneMask(bone=skeleton.bone, marrow=skeleton.marrow, cortex=skeleton.cortex)
    return Canvas(replace(skeleton.volume, voxels=voxels), bone, scanner, 1)
