"""Compared volumes and results -> answers to yes-or-no questions: is there any lesion, did it start in the lung?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.evaluate.pairs import Pair, read_result
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.external import Level, Predictions
from volseg.evaluation.matching import match_optimally
from volseg.evaluation.segmentation import patient_calls
from volseg.io.cohort import Patient

LUNG = "lung"
NOT_RECORDED = "not recorded"


def origin_predictions(
    pairs: Sequence[Pair], cases: Sequence[CaseResult], patients: Mapping[str, Patient], *, iou: float
) -> tuple[dict[str, Predictions], float | None]:
    """Lung or not, where results carry `p_lung` and patients their origin: {"patient": ..., "lesion": ...}, threshold.

    Patient: mean over the patient's volumes; no answer (nan) where no lesion was found. Lesion: the probability of the
    predicted lesion that hit a true one; no answer for a missed lesion. Empty where nothing is known. The threshold is
    the one frozen in the results.

    Raises InputError if the results carry different thresholds.
    """
    of_patient: dict[str, list[float]] = {}
    rows: list[tuple[str, float]] = []
    thresholds = set()
    for pair, case in zip(pairs, cases, strict=True):
        if pair.result is None or not patients[pair.patient].origin:
            continue
        document = read_result(pair.result)
        origin = document.get("origin")
        if not origin:
            continue
        if origin.get("threshold") is None:
            raise InputError("threshold-missing", f"{pair.case}: its result answers the origin without a threshold")
        thresholds.add(float(origin["threshold"]))
        of_patient.setdefault(pair.patient, [])
        if not origin.get("from_prior") and origin.get("p_lung") is not None:
            of_patient[pair.patient].append(float(origin["p_lung"]))
        p_lung = {lesion["id"]: lesion.get("p_lung") for lesion in document.get("lesions", [])}
        rows += [(pair.patient, p) for p in _p_lung_of_true(case, p_lung, iou)]
    if len(thresholds) > 1:
        listed = ", ".join(f"{t:g}" for t in sorted(thresholds))
        raise InputError(
            "thresholds-differ", f"the results carry different origin thresholds ({listed}): rerun predict"
        )
    if not of_patient:
        return {}, None

    means = [float(np.mean(values)) if values else math.nan for values in of_patient.values()]
    found = {"patient": _rows(list(of_patient), means, "patient", patients)}
    if rows:
        found["lesion"] = _rows([name for name, _ in rows], [p for _, p in rows], "lesion", patients)
    return found, thresholds.pop()


def presence_predictions(cases: Sequence[CaseResult], patients: Mapping[str, Patient]) -> Predictions:
    """Any lesion or none, per patient: the score is that of the surest lesion, 0 without one."""
    names, truth, _, score = patient_calls(cases)
    known = [patients[str(name)] for name in names]
    return Predictions(
        patients=names.astype(object),
        labels=truth.astype(np.int64),
        scores=score,
        sites=np.array([p.site for p in known], dtype=object),
        groups=_groups(known),
    )


def _rows(names: Sequence[str], scores: Sequence[float], level: Level, patients: Mapping[str, Patient]) -> Predictions:
    known = [patients[name] for name in names]
    return Predictions(
        patients=np.array(names, dtype=object),
        labels=np.array([int(p.origin == LUNG) for p in known], dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        sites=np.array([p.site for p in known], dtype=object),
        level=level,
        groups=_groups(known),
    )


def _groups(known: Sequence[Patient]) -> dict[str, NDArray]:
    """Columns worth a subgroup: those with more than one value."""
    columns = {"scanner": [p.scanner or NOT_RECORDED for p in known], "sex": [p.sex or NOT_RECORDED for p in known]}
    return {name: np.array(column, dtype=object) for name, column in columns.items() if len(set(column)) > 1}


def _p_lung_of_true(case: CaseResult, p_lung: Mapping[int, float | None], iou: float) -> list[float]:
    """For each true lesion the p_lung of the predicted lesion that hit it; nan if it was missed."""
    values = [math.nan] * len(case.true_lesions)
    for t, p in match_optimally(case.iou_matrix(), iou):
        value = p_lung.get(case.predicted_lesions[p].id)
        values[t] = math.nan if value is None else float(value)
    return values
