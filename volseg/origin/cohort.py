"""Lesions of many patients with the one thing known of each patient: did the tumour start in the lung?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UsageError
from volseg.origin.features import LesionTable


@dataclass(frozen=True, eq=False)
class Cohort:
    """P patients and their N lesions. The patient is the unit; a lesion only says whose it is.

    `table` (N, F); `patient_of` (N,) the patient's place in `patients`; `patients` (P) names; `lung` (P,) bool truth.
    A patient may have no lesion.
    """

    table: LesionTable
    patient_of: NDArray[np.int64]
    patients: tuple[str, ...]
    lung: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.patient_of.shape != (len(self.table.ids),) or self.lung.shape != (len(self.patients),):
            raise ValueError(
                f"{len(self.table.ids)} lesions with {self.patient_of.shape} owners, "
                f"{len(self.patients)} patients with {self.lung.shape} answers"
            )
        if self.patient_of.size and not 0 <= self.patient_of.min() <= self.patient_of.max() < len(self.patients):
            raise ValueError(f"lesions of patient {self.patient_of.max()}, but there are {len(self.patients)}")

    @classmethod
    def gather(cls, tables: Mapping[str, LesionTable], lung: Mapping[str, bool]) -> Cohort:
        """One table per patient, by name, and each patient's truth. Raises UsageError where a truth is missing."""
        if not tables:
            raise UsageError("origin-cohort", "no patients; a cohort needs at least one lesion table")
        unknown = [name for name in tables if name not in lung]
        if unknown:
            raise UsageError("origin-cohort", f"{len(unknown)} patients without a primary: {', '.join(unknown[:4])}")
        names = next(iter(tables.values())).names
        chosen = [table.select(names) for table in tables.values()]
        return cls(
            table=LesionTable(
                names, tuple(i for t in chosen for i in t.ids), np.concatenate([t.values for t in chosen])
            ),
            patient_of=np.repeat(np.arange(len(chosen)), [len(t.ids) for t in chosen]),
            patients=tuple(tables),
            lung=np.array([bool(lung[name]) for name in tables]),
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Lesions per patient, (P,)."""
        return np.bincount(self.patient_of, minlength=len(self.patients))

    def subset(self, chosen: NDArray[np.bool_]) -> Cohort:
        """The patients where `chosen` (P,) is True, with their lesions."""
        rows = chosen[self.patient_of]
        new_place = np.cumsum(chosen) - 1
        return Cohort(
            table=LesionTable(
                self.table.names,
                tuple(i for i, kept in zip(self.table.ids, rows, strict=True) if kept),
                self.table.values[rows],
            ),
            patient_of=new_place[self.patient_of[rows]],
            patients=tuple(name for name, kept in zip(self.patients, chosen, strict=True) if kept),
            lung=self.lung[chosen],
        )


def patient_folds(lung: NDArray[np.bool_], folds: int = 5, *, seed: int = 0) -> NDArray[np.int64]:
    """Fold number (P,) 0..folds-1 of each patient: equally many of each class in every fold, to within one.

    A patient's lesions follow the patient, so no fold sees a lesion of a patient it is judged on. Raises UsageError
    where a class has fewer patients than there are folds.
    """
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(lung), dtype=np.int64)
    for answer, words in ((True, "lung"), (False, "other")):
        who = np.flatnonzero(lung == answer)
        if who.size < folds:
            raise UsageError(
                "origin-cohort", f"{who.size} patients with a primary '{words}' cannot be dealt into {folds} folds"
            )
        fold[rng.permutation(who)] = np.arange(who.size) % folds
    return fold
