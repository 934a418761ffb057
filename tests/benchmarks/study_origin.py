"""Lung or not, from site B to site A, on both levels, with its controls. Synthetic (phantoms), true masks.

Few bodies serve many patients (lesions and scan are each patient's own), dealt out without regard to the primary.
Beside the result stand what is possible at most (the drawn log-likelihood ratio), shuffled labels (must give .5), the
scanner as a feature (nothing within a site, something across), and the same cross-validation over lesions instead of
over patients: the leak that flatters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from volseg.evaluation.classification import auc
from volseg.evaluation.estimate import Estimate
from volseg.evaluation.external import ExternalValidation, FrozenRule, Predictions, validate
from volseg.measure import measure_lesions, normal_marrow_hu
from volseg.origin.cohort import Cohort, patient_folds
from volseg.origin.features import LesionTable, clinical_features, lesion_features
from volseg.origin.frozen import FrozenOrigin, OutOfFold, fit_origin, predict_lesions, predict_patients
from volseg.origin.head import fit_head
from volseg.origin.shipped import CLINICAL_COLUMNS, FEW_PATIENTS, IMAGE_COLUMNS
from volseg.synthetic.cohort import body_of, paint
from volseg.synthetic.patients import CohortOptions, PatientPlan, plan_patients
from volseg.synthetic.sites import Site
from volseg.transforms.bone import bone_mask

# Two numbers that tell whose a lesion is and nothing about its origin. Deep features carry the like unasked.
FINGERPRINT = ("patient_marrow_hu", "patient_marrow_sd")


@dataclass(frozen=True, eq=False)
class Seen:
    """Patients of one site: features from their true masks, and what was drawn."""

    site: str
    image: Cohort
    clinical: Cohort
    fingerprint: Cohort
    plans: list[PatientPlan]


def see_patients(site: Site, options: CohortOptions, bodies: int) -> Seen:
    """Draw, paint and measure a site's patients; phantoms are made once per body."""
    plans = plan_patients(site, options)
    sources = [body_of(plan, site, options) for plan in plans[:bodies]]
    images: dict[str, LesionTable] = {}
    clinical: dict[str, LesionTable] = {}
    prints: dict[str, LesionTable] = {}
    for plan in tqdm(plans, desc=f"origin, site {site.name}", unit="patient", disable=None):
        picture, truth, _, _ = paint(plan, site, sources[plan.number % bodies], options)
        hu, affine = picture.voxels, picture.affine
        marrow = normal_marrow_hu(hu, bone_mask(hu, affine).marrow, truth, affine)
        table = lesion_features(hu, truth, affine, marrow_hu=marrow)
        lesions = measure_lesions(truth, hu, affine, probability=(truth > 0).astype(np.float32), marrow_hu=marrow)
        images[plan.name] = table.select(IMAGE_COLUMNS)
        clinical[plan.name] = clinical_features(lesions, table).select(CLINICAL_COLUMNS)
        prints[plan.name] = LesionTable(FINGERPRINT, table.ids, np.tile(marrow, (len(table.ids), 1)))
    lung = {plan.name: plan.lung for plan in plans}
    gathered = (Cohort.gather(tables, lung) for tables in (images, clinical, prints))
    return Seen(site.name, *gathered, plans)


def origin_study(
    b: Seen, a: Seen, *, folds: int, shuffles: int, resamples: int, seed: int
) -> tuple[FrozenOrigin, FrozenOrigin, dict[str, Any], dict[str, Predictions]]:
    """Fit and freeze at B, test once at A. Returns (image head, clinical head, figures, predictions to draw)."""
    rng = np.random.default_rng(seed)
    frozen, held_out = fit_origin(b.image, FEW_PATIENTS, folds=folds, seed=seed)
    clinical, clinical_out = fit_origin(b.clinical, FEW_PATIENTS, folds=folds, seed=seed)
    patient = _validated(frozen, held_out, b, a, "patient", rng, resamples)
    figures = {
        "n": {s.site: _counts(s) for s in (b, a)},
        "image head, patient level": _told(patient),
        "image head, lesion level": _told(_validated(frozen, held_out, b, a, "lesion", rng, resamples)),
        "clinical head, patient level": _told(
            _validated(clinical, clinical_out, b, a, "patient", rng, resamples, clinical=True)
        ),
        "best possible (drawn log-likelihood ratio)": {s.site: _estimate(_best(s)) for s in (b, a)},
        "shuffled labels": _shuffled(b, a, shuffles, folds, rng),
        "scanner as the only feature (noise)": _scanner(b, a),
        "protocol": _protocols(b, folds, seed),
    }
    rows = _rows(frozen, held_out, b, a, "patient")
    drawn = {f"site {site}": rows.at_site(site) for site in (b.site, a.site)}
    return frozen, clinical, figures, drawn


def _rows(
    frozen: FrozenOrigin, held_out: OutOfFold, b: Seen, a: Seen, level: str, *, clinical: bool = False
) -> Predictions:
    """Out-of-fold answers of B, answers of the frozen head at A. Patients without lesions are not asked."""
    parts = []
    for seen, own in ((b, True), (a, False)):
        cohort = seen.clinical if clinical else seen.image
        if level == "patient":
            some = cohort.counts > 0
            scores = (held_out.p_lung if own else predict_patients(frozen, cohort))[some]
            who, lung = np.array(cohort.patients, dtype=object)[some], cohort.lung[some]
        else:
            scores = held_out.lesion_p_lung if own else predict_lesions(frozen, cohort.table)
            who, lung = np.array(cohort.patients, dtype=object)[cohort.patient_of], cohort.lung[cohort.patient_of]
        sites = np.array([seen.site] * len(who), dtype=object)
        parts.append(Predictions(who, lung.astype(np.int64), scores, sites, level))  # type: ignore[arg-type]
    return parts[0].joined(parts[1])


def _validated(
    frozen: FrozenOrigin,
    held_out: OutOfFold,
    b: Seen,
    a: Seen,
    level: str,
    rng: np.random.Generator,
    resamples: int,
    *,
    clinical: bool = False,
) -> ExternalValidation:
    rows = _rows(frozen, held_out, b, a, level, clinical=clinical)
    at_b = rows.at_site(b.site)
    rule = FrozenRule(
        threshold=frozen.threshold,
        chosen_by="Youden, out-of-fold patients of the training site",
        site=b.site,
        level=level,  # type: ignore[arg-type]
        n_rows=len(at_b.labels),
        n_positive=int(at_b.labels.sum()),
        weights_sha256=frozen.sha256,
    )
    return validate(rows, rule, test_site=a.site, rng=rng, resamples=resamples)


def _told(result: ExternalValidation) -> dict[str, Any]:
    names = ("auc", "accuracy", "sensitivity", "specificity")
    told: dict[str, Any] = {"threshold": result.rule.threshold}
    for words, part in (("training", result.training), ("external", result.test)):
        told[words] = {name: _estimate(part.metrics[name]) for name in names if name in part.metrics}
        told[words] |= {"n": part.n_rows, "patients": part.n_patients, "without answer": part.n_undecided}
        if part.calibration is not None:
            told[words]["calibration slope"] = _estimate(part.calibration.slope)
    return told


def _counts(seen: Seen) -> dict[str, int]:
    return {
        "patients": len(seen.plans),
        "with lesions": int((seen.image.counts > 0).sum()),
        "lung": int(seen.image.lung.sum()),
        "lesions": len(seen.image.patient_of),
    }


def _best(seen: Seen) -> Estimate:
    some = [plan for plan in seen.plans if plan.lesions]
    return auc([p.lung for p in some], [p.log_likelihood_ratio for p in some])


def _shuffled(b: Seen, a: Seen, times: int, folds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Site B's answers dealt out anew among its patients; the head is then tested on A's true answers."""
    found = []
    for _ in range(times):
        nonsense = replace(b.image, lung=rng.permutation(b.image.lung))
        frozen, _ = fit_origin(nonsense, FEW_PATIENTS, folds=folds)
        some = a.image.counts > 0
        found.append(auc(a.image.lung[some], predict_patients(frozen, a.image)[some]).value)
    return {"mean AUC at A": float(np.mean(found)), "deviation": float(np.std(found)), "shuffles": times}


def _scanner(b: Seen, a: Seen) -> dict[str, Any]:
    def of(plans: list[PatientPlan]) -> dict[str, Any]:
        return _estimate(auc([p.lung for p in plans], [p.noise_hu for p in plans]))

    return {"within B": of(b.plans), "within A": of(a.plans), "both sites pooled": of([*b.plans, *a.plans])}


def _protocols(b: Seen, folds: int, seed: int) -> dict[str, Any]:
    """Lesion AUC at site B, cross-validated over patients and, leaking, over lesions: same lesions, same head.

    The shipped head reads the lesion. The nearest-neighbour head reads `FINGERPRINT` alone: over patients it can know
    nothing; over lesions it meets the patient again, and knows the answer.
    """
    told: dict[str, Any] = {}
    for words, every, score in (
        ("shipped head, lesion features", b.image, _by_head),
        ("nearest neighbour, patient fingerprint", b.fingerprint, _by_neighbour),
    ):
        cohort = every.subset(every.counts > 0)
        lung = cohort.lung[cohort.patient_of]
        over = {
            "folds over patients": patient_folds(cohort.lung, folds, seed=seed)[cohort.patient_of],
            "folds over lesions, LEAKY": patient_folds(lung, folds, seed=seed),
        }
        told[words] = {
            name: _estimate(auc(lung, _out_of_fold(cohort, fold, folds, score), patients=cohort.patient_of,
                                unit="lesions"))
            for name, fold in over.items()
        }  # fmt: skip
    return told


def _out_of_fold(
    cohort: Cohort, fold: NDArray[np.int64], folds: int, score: Callable[[Cohort, Cohort], NDArray]
) -> NDArray[np.float64]:
    """Scores from lesions of other folds (whether they are of other patients is the fold's matter)."""
    scores = np.full(len(fold), np.nan)
    for n in range(folds):
        scores[fold == n] = score(_lesions(cohort, fold != n), _lesions(cohort, fold == n))
    return scores


def _by_head(known: Cohort, asked: Cohort) -> NDArray[np.float64]:
    return fit_head(known, FEW_PATIENTS.head).logits(asked.table)


def _by_neighbour(known: Cohort, asked: Cohort) -> NDArray[np.float64]:
    """How much nearer the nearest lesion of a lung primary is than the nearest of any other."""
    scale = known.table.values.std(axis=0) + 1e-9
    apart = np.linalg.norm((asked.table.values[:, None] - known.table.values[None]) / scale, axis=2)
    lung = known.lung[known.patient_of]
    nearer: NDArray[np.float64] = apart[:, ~lung].min(axis=1) - apart[:, lung].min(axis=1)
    return nearer


def _lesions(cohort: Cohort, rows: NDArray[np.bool_]) -> Cohort:
    """Some lesions, with the patients they belong to."""
    kept = np.unique(cohort.patient_of[rows])
    table = cohort.table
    return Cohort(
        LesionTable(table.names, tuple(i for i, k in zip(table.ids, rows, strict=True) if k), table.values[rows]),
        np.searchsorted(kept, cohort.patient_of[rows]),
        tuple(cohort.patients[n] for n in kept),
        cohort.lung[kept],
    )


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate)
