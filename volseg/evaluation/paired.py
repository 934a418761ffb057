"""Two models on the same volumes -> differences with intervals and p values: paired, because the volumes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.bootstrap import RESAMPLES, paired_bootstrap
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.classification import McNemar, compare_aucs, mcnemar
from volseg.evaluation.estimate import Difference
from volseg.evaluation.lesion_summary import with_and_without_lesions
from volseg.evaluation.segmentation import patient_calls
from volseg.evaluation.tables import Table, text


@dataclass(frozen=True)
class PairedComparison:
    """First minus second model. `differences` by figure; `mcnemar` of the calls "any lesion" per patient."""

    differences: Mapping[str, Difference]
    mcnemar: McNemar
    n_volumes: int
    n_patients: int


def compare_cases(
    first: Sequence[CaseResult],
    second: Sequence[CaseResult],
    *,
    rng: np.random.Generator,
    iou: float = 0.1,
    resamples: int = RESAMPLES,
) -> PairedComparison:
    """Paired bootstrap of Dice, NSD, lesion sensitivity and false positives; paired DeLong of the patient AUC.

    Volumes are matched by name, in any order. Raises ValueError if the two were not run on the same volumes, or if
    their truths differ.
    """
    theirs = {case.case: case for case in second}
    if sorted(theirs) != sorted(case.case for case in first):
        lacking = sorted({case.case for case in first} ^ set(theirs))
        raise ValueError(
            f"the two models were not run on the same volumes: {len(lacking)} differ, such as {lacking[0]}"
        )
    pairs = [(case, theirs[case.case]) for case in first]
    for a, b in pairs:
        if a.patient != b.patient or a.overlap.true_voxels != b.overlap.true_voxels:
            raise ValueError(f"{a.case}: the two models were compared with different truths")
    patients = np.array([a.patient for a, _ in pairs])
    strata = with_and_without_lesions([a for a, _ in pairs])
    positive = np.array([a.has_lesions for a, _ in pairs], dtype=bool)
    true = np.array([len(a.true_lesions) for a, _ in pairs])[strata]

    def columns(value: Callable[[CaseResult], float]) -> list[NDArray[np.float64]]:
        return [np.array([value(pair[n]) for pair in pairs], dtype=np.float64) for n in (0, 1)]

    def mean_of(some: NDArray[np.bool_], value: Callable[[CaseResult], float]) -> Difference:
        a, b = columns(value)
        return paired_bootstrap(
            lambda rows: a[some][rows].mean(),
            lambda rows: b[some][rows].mean(),
            patients[some],
            rng=rng,
            strata=strata[some],
            resamples=resamples,
        )

    # The diseased alone: others have no lesion to find, and p must not rest on their number.
    hits = [h[strata] for h in columns(lambda case: float(case.found(iou).sum()))]
    found = [lambda rows, h=h: h[rows].sum() / true[rows].sum() for h in hits]
    calls = [patient_calls([pair[n] for pair in pairs]) for n in (0, 1)]
    truth = calls[0][1]
    everything = np.ones(len(pairs), dtype=bool)
    return PairedComparison(
        differences={
            "DSC, volumes with lesions": mean_of(positive, lambda c: c.overlap.dice),
            "NSD, volumes with lesions": mean_of(positive, lambda c: c.nsd),
            f"lesion sensitivity, IoU >= {iou:g}": paired_bootstrap(
                found[0], found[1], patients[strata], rng=rng, resamples=resamples
            ),
            "false positives per volume": mean_of(
                everything, lambda c: len(c.predicted_lesions) - float(c.found(iou).sum())
            ),
            "AUC, any lesion per patient": compare_aucs(truth, calls[0][3], calls[1][3]),
        },
        mcnemar=mcnemar(calls[0][2] == truth, calls[1][2] == truth),
        n_volumes=len(pairs),
        n_patients=truth.size,
    )


def paired_table(result: PairedComparison, first: str, second: str) -> Table:
    """One line per figure; above 0 the first model has more of it."""
    rows = [
        (name, text(d.estimate), _p(d.p_value), d.estimate.method.split(",")[0])
        for name, d in result.differences.items()
    ]
    m = result.mcnemar
    only = f"{m.only_first} patients right only with {first}, {m.only_second} only with {second}"
    rows.append(("calls, any lesion per patient", only, _p(m.p_value), "exact McNemar"))
    return Table(
        f"{first} minus {second}",
        ("figure", "difference (95 % interval)", "p", "method"),
        tuple(rows),
        f"{result.n_volumes} volumes of {result.n_patients} patients, each seen by both. p values are two-sided and "
        "not corrected for their number.",
    )


def _p(value: float) -> str:
    if math.isnan(value):
        return "n/a"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
