"""Cohorts of numbers whose best possible AUC is known: chance enters, a Cohort leaves. No patient is in them.

How the AUC is known. Patient i has the class mean +-(d/2) u (+ lung, - other; u a unit vector) plus a patient's own
deviation N(0, I): m_i. Lesion j is x_ij = m_i + s (e_ij - mean_j e_ij), e ~ N(0, I), so that the mean of a patient's
lesions is m_i whatever their number, and their spread about it has the same law in both classes. m_i is therefore all
that speaks about the class, and the log-likelihood ratio (prior apart) is

    LLR(m) = log N(m; +d u / 2, I) - log N(m; -d u / 2, I) = d (u . m),

which is N(+d^2 / 2, d^2) for lung and N(-d^2 / 2, d^2) for others: two normals of equal deviation d, d^2 apart, so

    AUC = P(LLR_lung > LLR_other) = Phi(d^2 / sqrt(2 d^2)) = Phi(d / sqrt(2)),     d' = d = sqrt(2) Phi^-1(AUC).

No rule on the features can do better (Neyman and Pearson); the mean of well fitted lesion logits can do as well. A
block of columns that holds d_c of the separation has Phi(d_c / sqrt(2)) of its own, and d^2 = d_c^2 + d_rest^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from volseg.errors import UsageError
from volseg.origin.cohort import Cohort
from volseg.origin.features import LesionTable


@dataclass(frozen=True)
class CohortDesign:
    """What to draw. `bayes_auc` of all columns together, `clinical_auc` of the clinical ones alone.

    `lesions` is the inclusive range per patient, the same in both classes: count is not the signal. `spread` is s
    above, `without_lesions` a share of patients that have none (the stated AUC is of the others).
    """

    patients: int = 400
    bayes_auc: float = 0.80
    clinical_auc: float = 0.65
    prevalence: float = 0.5
    imaging: int = 8
    clinical: int = 4
    lesions: tuple[int, int] = (1, 6)
    spread: float = 1.0
    without_lesions: float = 0.0

    @property
    def clinical_names(self) -> tuple[str, ...]:
        return tuple(f"clinical_{n}" for n in range(self.clinical))

    @property
    def names(self) -> tuple[str, ...]:
        return (*(f"imaging_{n}" for n in range(self.imaging)), *self.clinical_names)


def separation(auc: float) -> float:
    """d' of two normals of equal deviation with this AUC: sqrt(2) Phi^-1(AUC). .80 gives 1.190."""
    return math.sqrt(2) * float(ndtri(auc))


def auc_of(separation: float) -> float:
    """The inverse: Phi(d' / sqrt(2))."""
    return float(ndtr(separation / math.sqrt(2)))


def draw_cohort(design: CohortDesign, rng: np.random.Generator) -> Cohort:
    """One cohort; every column in a scale and offset of its own, as real features come.

    Raises UsageError for AUCs outside .5 <= clinical_auc <= bayes_auc < 1 or a class that would be empty.
    """
    if not 0.5 <= design.clinical_auc <= design.bayes_auc < 1:
        raise UsageError(
            "origin-design",
            f"clinical AUC {design.clinical_auc:g} and Bayes AUC {design.bayes_auc:g}: "
            "wanted .5 <= clinical <= Bayes < 1",
        )
    lung = rng.permutation(np.arange(design.patients) < round(design.prevalence * design.patients))
    if lung.all() or not lung.any():
        raise UsageError(
            "origin-design", f"{design.patients} patients at prevalence {design.prevalence:g}: one class only"
        )
    counts = rng.integers(design.lesions[0], design.lesions[1] + 1, design.patients)
    counts[rng.random(design.patients) < design.without_lesions] = 0
    owner = np.repeat(np.arange(design.patients), counts)

    clinical = separation(design.clinical_auc)
    imaging = math.sqrt(separation(design.bayes_auc) ** 2 - clinical**2)
    apart = np.concatenate([imaging * _unit(design.imaging, rng), clinical * _unit(design.clinical, rng)])
    means = np.where(lung, 0.5, -0.5)[:, None] * apart + rng.standard_normal((design.patients, len(apart)))
    own = rng.standard_normal((len(owner), len(apart)))
    sums = np.zeros_like(means)
    np.add.at(sums, owner, own)
    z = means[owner] + design.spread * (own - (sums / np.maximum(counts, 1)[:, None])[owner])
    values = rng.normal(0, 100, len(apart)) + z * 10 ** rng.uniform(-1, 3, len(apart))

    ids = tuple(int(i) for n in counts for i in range(1, n + 1))
    names = tuple(f"synthetic-{n:04d}" for n in range(design.patients))
    return Cohort(LesionTable(design.names, ids, values), owner, names, lung)


def columns(cohort: Cohort, names: tuple[str, ...]) -> Cohort:
    """The same patients with only these columns: the clinical-only baseline's view."""
    return Cohort(cohort.table.select(names), cohort.patient_of, cohort.patients, cohort.lung)


def _unit(size: int, rng: np.random.Generator) -> np.ndarray:
    direction = rng.standard_normal(size)
    return direction / np.linalg.norm(direction)
