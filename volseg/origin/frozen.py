"""The head as it is shipped: fitted, calibrated, its threshold frozen, one JSON document for `metadata.json`.

Temperature and threshold come from out-of-fold predictions of the training patients and are applied unchanged to
everybody after: on another site nothing is fitted again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.origin.calibration import calibrated, expected_calibration_error, fit_temperature, youden_threshold
from volseg.origin.cohort import Cohort, patient_folds
from volseg.origin.features import LesionTable, clinical_features
from volseg.origin.patients import ModelOptions, OriginModel, fit_model
from volseg.types import PatientOrigin, PatientResult

SCHEMA = 1
MEAN_OF_LOGISTIC = ModelOptions()


@dataclass(frozen=True)
class Training:
    """What the head was fitted on, and how its out-of-fold predictions fared at the frozen threshold.

    All figures are of patients with lesions; `without_lesions` were counted and left out.
    """

    patients: int
    lung: int
    lesions: int
    without_lesions: int
    folds: int
    sensitivity: float
    specificity: float
    calibration_error: float


@dataclass(frozen=True, eq=False)
class FrozenOrigin:
    """Everything that turns lesions into p(lung). `prior` is the training patients' share of lung.

    `temperature` is the patients', `lesion_temperature` the lesions'.
    """

    model: OriginModel
    temperature: float
    lesion_temperature: float
    threshold: float
    prior: float
    training: Training

    def to_json(self) -> dict[str, Any]:
        """JSON types only; `from_json` gives the same predictions to the last bit."""
        return {
            "schema": SCHEMA,
            "question": "did the tumour start in the lung?",
            **self.model.to_json(),
            "temperature": self.temperature,
            "lesion_temperature": self.lesion_temperature,
            "threshold": self.threshold,
            "prior": self.prior,
            "training": asdict(self.training),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FrozenOrigin:
        """Raises InputError("origin-model") for what `to_json` did not write."""
        if document.get("schema") != SCHEMA:
            raise InputError(
                "origin-model", f"origin head of schema {document.get('schema')!r}; this volseg reads schema {SCHEMA}"
            )
        try:
            return cls(
                model=OriginModel.from_json(document),
                temperature=float(document["temperature"]),
                lesion_temperature=float(document["lesion_temperature"]),
                threshold=float(document["threshold"]),
                prior=float(document["prior"]),
                training=Training(**document["training"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                "origin-model", f"the origin head's document is damaged: {error!r}; freeze it again"
            ) from error

    @property
    def sha256(self) -> str:
        """Of the document, keys sorted: weights, temperature and threshold in one number."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions for the training patients by heads that had not seen them. `p_lung` (P,), NaN without lesions."""

    fold: NDArray[np.int64]
    p_lung: NDArray[np.float64]
    lesion_p_lung: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def fit_origin(
    cohort: Cohort, options: ModelOptions = MEAN_OF_LOGISTIC, *, folds: int = 5, seed: int = 0
) -> tuple[FrozenOrigin, OutOfFold]:
    """Fit on all patients; calibrate and set the threshold (Youden) on out-of-fold predictions, folds over patients.

    Raises UsageError where a class has fewer patients with lesions than there are folds.
    """
    some = cohort.counts > 0
    fold = np.full(len(cohort.patients), -1)
    fold[some] = patient_folds(cohort.lung[some], folds, seed=seed)
    logits, lesion_logits = np.full(len(fold), np.nan), np.full(len(cohort.patient_of), np.nan)
    for n in range(folds):
        model = fit_model(cohort.subset(some & (fold != n)), options)
        held_out = cohort.subset(fold == n)
        logits[fold == n] = model.patient_logits(held_out)
        lesion_logits[fold[cohort.patient_of] == n] = model.head.logits(held_out.table)
    prior = float(cohort.lung[some].mean())
    truth, counts = cohort.lung[some], cohort.counts
    temperature = fit_temperature(logits[some], truth, prior=prior)
    lesion_temperature = fit_temperature(
        lesion_logits, cohort.lung[cohort.patient_of], prior=prior, weights=1 / counts[cohort.patient_of]
    )
    p_lung = calibrated(logits, temperature, prior)
    threshold = youden_threshold(p_lung[some], truth)
    called = p_lung[some] >= threshold
    training = Training(
        patients=int(some.sum()),
        lung=int(truth.sum()),
        lesions=len(cohort.patient_of),
        without_lesions=int((~some).sum()),
        folds=folds,
        sensitivity=float(called[truth].mean()),
        specificity=float((~called[~truth]).mean()),
        calibration_error=expected_calibration_error(p_lung[some], truth),
    )
    model = fit_model(cohort, options)
    frozen = FrozenOrigin(model, temperature, lesion_temperature, threshold, prior, training)
    return frozen, OutOfFold(fold, p_lung, calibrated(lesion_logits, lesion_temperature, prior))


def predict_lesions(frozen: FrozenOrigin, table: LesionTable) -> NDArray[np.float64]:
    """(N,) calibrated probability per lesion, in the table's order, that its tumour started in the lung."""
    return calibrated(frozen.model.head.logits(table), frozen.lesion_temperature, frozen.prior)


def predict_patients(frozen: FrozenOrigin, cohort: Cohort) -> NDArray[np.float64]:
    """(P,) calibrated probability per patient; the prior for a patient without lesions."""
    p_lung = calibrated(frozen.model.patient_logits(cohort), frozen.temperature, frozen.prior)
    return np.where(cohort.counts > 0, p_lung, frozen.prior)


def predict_patient(frozen: FrozenOrigin, table: LesionTable) -> PatientOrigin:
    """One patient's answer from the lesions' table. Without lesions it is the prior, and says so."""
    p_lung = predict_patients(
        frozen, Cohort(table, np.zeros(len(table.ids), np.int64), ("patient",), np.zeros(1, bool))
    )
    return PatientOrigin(
        p_lung=float(p_lung[0]),
        n_lesions=len(table.ids),
        from_prior=len(table.ids) == 0,
        threshold=frozen.threshold,
        method=f"{frozen.model.pooling.replace('_', '-')} of lesion logits",
    )


def with_origin(
    result: PatientResult, frozen: FrozenOrigin, table: LesionTable, *, clinical: FrozenOrigin | None = None
) -> PatientResult:
    """The same result with `p_lung` on every lesion and `origin` on the patient.

    `table` is `lesion_features` of the result's own instances; `clinical` a head frozen on `clinical_features`, whose
    answer then stands beside.
    """
    by_id = dict(zip(table.ids, predict_lesions(frozen, table), strict=True))
    origin = predict_patient(frozen, table)
    if clinical is not None:
        beside = predict_patient(clinical, clinical_features(result.lesions, table))
        origin = replace(origin, clinical_p_lung=beside.p_lung)
    lesions = tuple(replace(lesion, p_lung=float(by_id[lesion.id])) for lesion in result.lesions)
    return replace(result, lesions=lesions, origin=origin)
