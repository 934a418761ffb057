"""Compared volumes and results -> answers to yes-or-no questions: is there any lesion, did it start in the lung?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.evaluate.pairs import Pair, entries_of, number_of, probability_of, read_result
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.external import Level, Predictions
from volseg.evaluation.matching import match_optimally
from volseg.evaluation.segmentation import patient_calls
from volseg.io.cohort import Patient

LUNG = "lung"
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class _Told:
    """What one result says of the origin: `p_lung` of the patient and of lesions by id, nan where it has no answer."""

    threshold: float
    p_lung: float
    of_lesions: Mapping[int, float]


def origin_predictions(
    pairs: Sequence[Pair], cases: Sequence[CaseResult], patients: Mapping[str, Patient], *, iou: float
) -> tuple[dict[str, Predictions], float | None]:
    """Lung or not, where results carry `p_lung` and patients their origin: {"patient": ..., "lesion": ...}, threshold.

    Patient: mean over the patient's volumes; no answer (nan) where no lesion was found. Lesion: the probability of the
    predicted lesion that hit a true one; no answer for a missed lesion. As soon as any result answers, a volume without
    prediction, or whose result does not ask for the origin, is one without an answer: left out it would flatter. Empty
    where no result answers, or no patient's origin is known. The threshold is the one frozen in the results.

    Raises InputError if the results carry different thresholds, or hold what is no number or no probability.
    """
    told = [None if pair.result is None else _told(pair, pair.result) for pair in pairs]
    thresholds = {one.threshold for one in told if one is not None}
    if len(thresholds) > 1:
        listed = ", ".join(f"{t:g}" for t in sorted(thresholds))
        raise InputError(
            "thresholds-differ", f"the results carry different origin thresholds ({listed}): rerun predict"
        )
    of_patient: dict[str, list[float]] = {}
    rows: list[tuple[str, float]] = []
    for pair, case, one in zip(pairs, cases, told, strict=True):
        if patients[pair.patient].origin:
            answers = of_patient.setdefault(pair.patient, [])
            if one is not None and not math.isnan(one.p_lung):
                answers.append(one.p_lung)
            p_lung = {} if one is None else one.of_lesions
            rows += [(pair.patient, p) for p in _p_lung_of_true(case, p_lung, iou)]
    if not thresholds or not of_patient:
        return {}, None

    means = [float(np.mean(values)) if values else math.nan for values in of_patient.values()]
    found = {"patient": _rows(list(of_patient), means, "patient", patients)}
    if rows:
        found["lesion"] = _rows([name for name, _ in rows], [p for _, p in rows], "lesion", patients)
    return found, thresholds.pop()


def taken_for_not_lung(sets: Iterable[Predictions], patients: Mapping[str, Patient]) -> str:
    """A sentence for the page: which origins of the patients file stand on the other side of the question."""
    others = sorted({patients[str(name)].origin for rows in sets for name in rows.patients} - {LUNG})
    return f'Taken for "not lung": {", ".join(others) or "no patient"}.'


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
        # Mere masks score 1 and 0: calls, which have no calibration.
        probabilities=all(case.scored for case in cases),
    )


def _told(pair: Pair, result: Path) -> _Told | None:
    """None where the result does not ask for the origin."""
    document = read_result(result)
    origin = entries_of(document, "origin", result)
    if not origin:
        return None
    if origin.get("threshold") is None:
        raise InputError("threshold-missing", f"{pair.case}: its result answers the origin without a threshold")
    return _Told(
        threshold=number_of(origin, "threshold", result, of="the origin"),
        p_lung=math.nan if origin.get("from_prior") else probability_of(origin, "p_lung", result, of="the origin"),
        of_lesions={
            int(lesion["id"]): probability_of(lesion, "p_lung", result, of=f"lesion {lesion['id']}")
            for lesion in document.get("lesions", [])
        },
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


def _p_lung_of_true(case: CaseResult, p_lung: Mapping[int, float], iou: float) -> list[float]:
    """For each true lesion the p_lung of the predicted lesion that hit it; nan if it was missed or has no answer."""
    values = [math.nan] * len(case.true_lesions)
    for t, p in match_optimally(case.iou_matrix(), iou):
        values[t] = p_lung.get(case.predicted_lesions[p].id, math.nan)
    return values
