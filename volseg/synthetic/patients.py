"""Who is seen at a site, before any voxel: seed and site enter, one plan per patient leaves. Opens no image.

A lesion's kind and size class are drawn from the table of its patient's primary (`volseg.origin.synthetic_ct`), whose
overlap is set so that no rule on them can beat the stated Bayes AUC. Everything else (scanner, noise, age, sex, number
of lesions, whether there are any, look-alikes) has the same law for both primaries within a site.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UsageError
from volseg.labels import LesionKind
from volseg.origin.synthetic_ct import CELLS, CtDesign, cell_tables
from volseg.synthetic.sites import Site

# Log-uniform within each class, before a lesion is cut to its bone. The classes do not touch: what was drawn can be
# read off, so the stated AUC is that of the lesions' kinds and sizes.
SIZES_MM = {"small": (7.0, 13.0), "large": (14.0, 30.0)}
OTHER_PRIMARIES = ("breast", "prostate", "kidney")
REGIONS: tuple[Literal["abdomen", "thorax", "pelvis"], ...] = ("abdomen", "thorax", "pelvis")
BLOCK = 20  # patients are dealt in blocks, so that a site's prevalences hold in small cohorts too


@dataclass(frozen=True)
class CohortOptions:
    """What to draw. `lesions` and `distractors` are inclusive ranges per patient (with lesions: `lesions`).

    `bayes_auc` is of patients with lesions. `phantom_mm` is a phantom's extent along R, A, S; `block_mm` the cube cut
    round the bone of a real CT (None: the whole CT). `section` is the datalist's.
    """

    patients: int = 40
    seed: int = 0
    bayes_auc: float = 0.80
    lesions: tuple[int, int] = (1, 4)
    distractors: tuple[int, int] = (0, 2)
    section: str = "training"
    phantom_mm: tuple[float, float, float] = (110.0, 120.0, 100.0)
    block_mm: float | None = 128.0


@dataclass(frozen=True)
class PlannedLesion:
    """`cell` counts `volseg.origin.synthetic_ct.CELLS`."""

    kind: LesionKind
    cell: int
    diameter_mm: float


@dataclass(frozen=True)
class PatientPlan:
    """One patient as drawn. `log_likelihood_ratio` (lung over other; nan without lesions) is the best score."""

    name: str
    number: int
    lung: bool
    origin: str
    lesions: tuple[PlannedLesion, ...]
    log_likelihood_ratio: float
    distractors: int
    region: Literal["abdomen", "thorax", "pelvis"]
    noise_hu: float
    age_years: int
    sex: str


def plan_patients(site: Site, options: CohortOptions) -> list[PatientPlan]:
    """The first `options.patients` patients of a site. Patient n is the same however many are asked for.

    Raises UsageError where the Bayes AUC cannot be had with so few (or so many) lesions.
    """
    if options.patients < 1:
        raise UsageError("patients-none", "a cohort wants at least one patient")
    if options.lesions[0] < 1:
        raise UsageError("lesions-none", "patients without lesions are the site's matter; give a range from 1 upwards")
    tables = _tables(options.bayes_auc, options.lesions)
    plans = []
    for block in range(-(-options.patients // BLOCK)):
        dealt = np.random.default_rng(_seed(site, options, 0, block))
        lung, diseased = (_dealt(share, dealt) for share in (site.lung_prevalence, site.lesion_prevalence))
        for place in range(min(BLOCK, options.patients - block * BLOCK)):
            number = block * BLOCK + place
            rng = np.random.default_rng(_seed(site, options, 1, number))
            plans.append(_plan(site, options, number, bool(lung[place]), bool(diseased[place]), tables, rng))
    return plans


def painting_rng(site: Site, options: CohortOptions, number: int) -> np.random.Generator:
    """The chance of one patient's voxels."""
    return np.random.default_rng(_seed(site, options, 2, number))


def _plan(
    site: Site,
    options: CohortOptions,
    number: int,
    lung: bool,
    diseased: bool,
    tables: tuple[NDArray[np.float64], NDArray[np.float64]],
    rng: np.random.Generator,
) -> PatientPlan:
    count = int(rng.integers(options.lesions[0], options.lesions[1] + 1))
    lesions = []
    for _ in range(count if diseased else 0):
        cell = int(rng.choice(len(CELLS), p=tables[0 if lung else 1]))
        kind, size = CELLS[cell]
        lesions.append(PlannedLesion(kind, cell, float(np.exp(rng.uniform(*np.log(SIZES_MM[size]))))))
    ratio = sum(float(np.log(tables[0][x.cell] / tables[1][x.cell])) for x in lesions) if lesions else float("nan")
    return PatientPlan(
        name=f"{site.name}_s{options.seed}_{number:03d}",
        number=number,
        lung=lung,
        origin="lung" if lung else OTHER_PRIMARIES[int(rng.integers(len(OTHER_PRIMARIES)))],
        lesions=tuple(lesions),
        log_likelihood_ratio=ratio,
        distractors=int(rng.integers(options.distractors[0], options.distractors[1] + 1)),
        region=REGIONS[int(rng.integers(len(REGIONS)))],
        noise_hu=float(rng.uniform(*site.noise_hu)),
        age_years=int(np.clip(round(rng.normal(*site.age_years)), 25, 95)),
        sex="FM"[int(rng.integers(2))],
    )


def _dealt(share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """BLOCK answers, `share` of them True to the nearest whole number, in any order."""
    return rng.permutation(np.arange(BLOCK) < round(share * BLOCK))


def _seed(site: Site, options: CohortOptions, stream: int, number: int) -> list[int]:
    return [options.seed, stream, number, *site.name.encode()]


@lru_cache(maxsize=8)
def _tables(bayes_auc: float, lesions: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return cell_tables(CtDesign(bayes_auc=bayes_auc, lesions=lesions))
