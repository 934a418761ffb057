"""Is the head as good as can be, and no better? Cohorts of known Bayes AUC, shuffled answers, a frozen threshold.

Synthetic figures are never clinical accuracy: they say that the machinery neither loses nor invents signal.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from volseg.errors import InputError, UsageError
from volseg.measure import measure_lesions, normal_marrow_hu
from volseg.origin.cohort import Cohort
from volseg.origin.features import LesionTable, lesion_features
from volseg.origin.frozen import (
    FrozenOrigin,
    fit_origin,
    predict_lesions,
    predict_patient,
    predict_patients,
    with_origin,
)
from volseg.origin.head import HeadOptions
from volseg.origin.patients import ModelOptions
from volseg.origin.shipped import FEW_PATIENTS, heads_document, read_heads, synthetic_cohorts, synthetic_heads
from volseg.origin.synthetic import CohortDesign, auc_of, columns, draw_cohort, separation
from volseg.origin.synthetic_ct import CELLS, CtDesign, SyntheticPatient, bayes_auc, cell_tables, draw_patients
from volseg.types import PatientOrigin, PatientResult, Provenance, Study

CLASSIFIED = CohortDesign().clinical_names


def delong(scores: np.ndarray, lung: np.ndarray) -> tuple[float, float]:
    """AUC and its standard error (DeLong et al., Biometrics 1988), over patients."""
    positive, negative = scores[lung], scores[~lung]
    below = sum(np.searchsorted(np.sort(negative), positive, side) for side in ("left", "right")) / (2 * negative.size)
    above = 1 - sum(np.searchsorted(np.sort(positive), negative, side) for side in ("left", "right")) / (
        2 * positive.size
    )
    return float(below.mean()), math.sqrt(below.var(ddof=1) / positive.size + above.var(ddof=1) / negative.size)


def covers(scores: np.ndarray, lung: np.ndarray, truth: float) -> bool:
    """Whether the 95 % interval of the AUC holds `truth`."""
    auc, error = delong(scores, lung)
    return abs(auc - truth) <= 1.96 * error


def halves(cohort: Cohort) -> tuple[Cohort, Cohort]:
    first = np.arange(len(cohort.patients)) < len(cohort.patients) // 2
    return cohort.subset(first), cohort.subset(~first)


def shuffled(cohort: Cohort, rng: np.random.Generator) -> Cohort:
    return replace(cohort, lung=rng.permutation(cohort.lung))


def test_the_stated_auc_is_that_of_the_best_rule():
    """d' = sqrt(2) Phi^-1(.80) = 1.190; the log-likelihood ratio itself has the AUC on 40,000 patients."""
    assert separation(0.80) == pytest.approx(1.1902, abs=1e-4)
    assert auc_of(separation(0.65)) == pytest.approx(0.65)
    design = CohortDesign(patients=40_000, imaging=2, clinical=1, lesions=(1, 4))
    cohort = draw_cohort(design, np.random.default_rng(0))
    means = np.zeros((40_000, 3))
    np.add.at(means, cohort.patient_of, cohort.table.values / cohort.counts[cohort.patient_of][:, None])
    apart = means[cohort.lung].mean(axis=0) - means[~cohort.lung].mean(axis=0)
    within = np.cov((means - np.where(cohort.lung[:, None], 0.5, -0.5) * apart).T)
    assert delong(means @ np.linalg.solve(within, apart), cohort.lung)[0] == pytest.approx(0.80, abs=0.007)
    assert delong(np.sign(apart[2]) * means[:, 2], cohort.lung)[0] == pytest.approx(0.65, abs=0.008)


def test_the_heads_auc_comes_within_its_interval_of_the_bayes_auc_on_held_out_patients():
    """Twenty cohorts, 400 patients to fit and 400 held out. Right intervals miss at most 3 of 20 in 98 of 100 tries."""
    all_columns, clinical, lesion_wise = [], [], []
    for seed in range(20):
        seen, held_out = halves(draw_cohort(CohortDesign(patients=800), np.random.default_rng(seed)))
        frozen, _ = fit_origin(seen)
        all_columns.append(predict_patients(frozen, held_out))
        baseline, _ = fit_origin(columns(seen, CLASSIFIED))
        clinical.append(predict_patients(baseline, columns(held_out, CLASSIFIED)))
        lesion_wise.append((held_out.lung, predict_lesions(frozen, held_out.table), held_out.patient_of))
    lungs = [lung for lung, _, _ in lesion_wise]
    assert sum(covers(p, lung, 0.80) for p, lung in zip(all_columns, lungs, strict=True)) >= 17
    assert sum(covers(p, lung, 0.65) for p, lung in zip(clinical, lungs, strict=True)) >= 17
    # A single lesion says less than its patient does, and more than nothing.
    by_lesion = [delong(p, lung[owner])[0] for lung, p, owner in lesion_wise]
    assert 0.65 < np.mean(by_lesion) < 0.76
    assert np.mean([delong(p, lung)[0] for p, lung in zip(all_columns, lungs, strict=True)]) == pytest.approx(
        0.79, abs=0.015
    )


def test_with_shuffled_answers_the_auc_is_a_half_within_its_interval():
    covered = []
    for seed in range(20):
        rng = np.random.default_rng(1000 + seed)
        seen, held_out = halves(shuffled(draw_cohort(CohortDesign(patients=800), rng), rng))
        frozen, _ = fit_origin(seen)
        covered.append(covers(predict_patients(frozen, held_out), held_out.lung, 0.5))
    assert sum(covered) >= 17


@pytest.mark.parametrize(
    "options",
    [ModelOptions(HeadOptions("mlp")), ModelOptions(pooling="attention")],
    ids=["mlp", "attention"],
)
def test_the_options_lose_little_where_the_mean_of_a_logistic_head_is_best(options):
    aucs = []
    for seed in range(3):
        seen, held_out = halves(draw_cohort(CohortDesign(patients=800), np.random.default_rng(seed)))
        aucs.append(delong(predict_patients(fit_origin(seen, options, folds=2)[0], held_out), held_out.lung)[0])
    assert np.mean(aucs) == pytest.approx(0.79, abs=0.02)


def test_count_is_not_the_signal_and_noisy_or_shows_why_it_is_only_a_baseline():
    design = CohortDesign(patients=600, lesions=(1, 12))
    seen, held_out = halves(draw_cohort(design, np.random.default_rng(5)))
    answers = {
        p: fit_origin(seen, ModelOptions(pooling=p))[0].model.patient_logits(held_out) for p in ("mean", "noisy_or")
    }
    assert abs(np.corrcoef(answers["mean"], held_out.counts)[0, 1]) < 0.15
    assert np.corrcoef(answers["noisy_or"], held_out.counts)[0, 1] > 0.4
    assert delong(answers["mean"], held_out.lung)[0] > delong(answers["noisy_or"], held_out.lung)[0] + 0.05


def test_probabilities_are_calibrated_and_a_rare_primary_keeps_its_share():
    seen, held_out = halves(draw_cohort(CohortDesign(patients=4000, prevalence=0.25), np.random.default_rng(6)))
    frozen, _ = fit_origin(seen)
    p_lung = predict_patients(frozen, held_out)
    assert p_lung.mean() == pytest.approx(held_out.lung.mean(), abs=0.03)
    for low, high in ((0, 0.15), (0.15, 0.35), (0.35, 1)):
        group = (p_lung >= low) & (p_lung < high)
        assert p_lung[group].mean() == pytest.approx(held_out.lung[group].mean(), abs=0.06)
    assert frozen.prior == 0.25 or frozen.prior == pytest.approx(seen.lung.mean())


def test_out_of_fold_means_that_no_patient_judged_itself():
    """Change one patient's features beyond recognition: its own fold's other patients keep their answers."""
    cohort = draw_cohort(CohortDesign(patients=60, without_lesions=0.1), np.random.default_rng(7))
    _, before = fit_origin(cohort)
    assert np.array_equal(np.isnan(before.p_lung), cohort.counts == 0)
    assert np.array_equal(before.fold == -1, cohort.counts == 0)
    victim = int(np.flatnonzero(cohort.counts > 0)[0])
    values = cohort.table.values.copy()
    values[cohort.patient_of == victim] *= -3
    changed = replace(cohort, table=LesionTable(cohort.table.names, cohort.table.ids, values))
    _, after = fit_origin(changed)
    peers = (before.fold == before.fold[victim]) & (np.arange(60) != victim)
    # The temperature is common to all folds; the order within the fold is the fold head's own.
    assert np.array_equal(np.argsort(before.p_lung[peers]), np.argsort(after.p_lung[peers]))
    others = (before.fold >= 0) & (before.fold != before.fold[victim])
    assert not np.allclose(before.p_lung[others], after.p_lung[others])


def test_the_threshold_is_frozen_and_applied_unchanged():
    """Another site with another prevalence and shifted features changes predictions, never the document."""
    seen, _ = halves(draw_cohort(CohortDesign(patients=400), np.random.default_rng(8)))
    frozen, out_of_fold = fit_origin(seen)
    called = out_of_fold.p_lung >= frozen.threshold
    assert frozen.training.sensitivity == pytest.approx(called[seen.lung].mean())
    assert frozen.training.specificity == pytest.approx((~called[~seen.lung]).mean())
    document = json.dumps(frozen.to_json(), allow_nan=False)
    shipped = FrozenOrigin.from_json(json.loads(document))
    abroad = draw_cohort(CohortDesign(patients=100, prevalence=0.9), np.random.default_rng(9))
    assert np.array_equal(predict_patients(shipped, abroad), predict_patients(frozen, abroad))
    assert (shipped.sha256, json.dumps(shipped.to_json())) == (frozen.sha256, document)
    assert replace(frozen, threshold=frozen.threshold + 1e-9).sha256 != frozen.sha256
    rows = abroad.patient_of == 0
    one = predict_patient(shipped, LesionTable(abroad.table.names, tuple(range(rows.sum())), abroad.table.values[rows]))
    assert one.threshold == frozen.threshold
    assert one.p_lung == pytest.approx(predict_patients(frozen, abroad)[0])
    assert one.verdict == ("lung" if one.p_lung >= frozen.threshold else "not lung")


def test_a_patient_without_lesions_gets_the_prior_and_is_marked_and_counted():
    cohort = draw_cohort(CohortDesign(patients=80, prevalence=0.4, without_lesions=0.2), np.random.default_rng(10))
    frozen, _ = fit_origin(cohort)
    empty = cohort.counts == 0
    assert frozen.training.without_lesions == empty.sum() > 0
    assert frozen.training.patients == 80 - empty.sum()
    assert np.all(predict_patients(frozen, cohort)[empty] == frozen.prior)
    nobody = predict_patient(frozen, LesionTable(cohort.table.names, (), np.zeros((0, len(cohort.table.names)))))
    assert nobody == PatientOrigin(frozen.prior, 0, True, frozen.threshold, "mean of lesion logits")
    assert nobody.verdict == "no lesion"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 9}, "schema 9; this volseg reads schema 1"),
        ({"threshold": "high"}, "damaged"),
        ({"head": {}}, "damaged"),
        ({"training": {"patients": 3}}, "damaged"),
    ],
)
def test_a_damaged_document_is_refused_in_words(change, words):
    frozen, _ = fit_origin(draw_cohort(CohortDesign(patients=40), np.random.default_rng(0)))
    with pytest.raises(InputError, match=words):
        FrozenOrigin.from_json({**frozen.to_json(), **change})


def test_too_few_patients_and_impossible_designs_are_refused_in_words():
    with pytest.raises(UsageError, match="cannot be dealt into 5 folds"):
        fit_origin(draw_cohort(CohortDesign(patients=8), np.random.default_rng(0)))
    with pytest.raises(UsageError, match=r"clinical AUC 0\.9 and Bayes AUC 0\.8"):
        draw_cohort(CohortDesign(clinical_auc=0.9), np.random.default_rng(0))
    with pytest.raises(UsageError, match="one class only"):
        draw_cohort(CohortDesign(prevalence=0.0), np.random.default_rng(0))
    with pytest.raises(UsageError, match="cannot be had with 1 to 1 lesions"):
        cell_tables(CtDesign(bayes_auc=0.99, lesions=(1, 1)))


def test_the_auc_of_cells_is_exact():
    """One lesion, two cells .9 : .1 against .5 : .5 by hand: .9 x .5 + .5 x (.9 x .5 + .1 x .5) = .70."""
    lung, other = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    assert bayes_auc(lung, other, (1, 1)) == pytest.approx(0.70)
    assert bayes_auc(lung, lung, (1, 3)) == pytest.approx(0.5)
    p = cell_tables(CtDesign())
    assert bayes_auc(*p, CtDesign().lesions) == pytest.approx(0.80)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 60_000)
    drawn = [
        np.where(np.arange(3) < counts[:, None], np.log(p[0] / p[1])[rng.choice(6, (60_000, 3), p=q)], 0) for q in p
    ]
    scores = np.round(np.concatenate([d.sum(axis=1) for d in drawn]), 9)
    assert delong(scores[::20], np.arange(120_000)[::20] < 60_000)[0] == pytest.approx(0.80, abs=0.015)


@pytest.fixture(scope="module")
def imaged() -> list[SyntheticPatient]:
    return list(draw_patients(CtDesign(patients=60, phantoms=3), np.random.default_rng(12)))


def answered_result(patient: SyntheticPatient, frozen: FrozenOrigin, baseline: FrozenOrigin) -> PatientResult:
    """The way of the pipeline: measured lesions, their features, the answer."""
    volume, instances = patient.volume, patient.instances
    marrow_hu = normal_marrow_hu(volume.voxels, patient.marrow, instances, volume.affine)
    probability = (instances > 0).astype(np.float32)
    lesions = measure_lesions(instances, volume.voxels, volume.affine, probability=probability, marrow_hu=marrow_hu)
    study, provenance = Study(patient.name, {"CT": volume}), Provenance(*[""] * 8)
    result = PatientResult(study, instances, probability, lesions, provenance, marrow_hu)
    table = lesion_features(volume.voxels, instances, volume.affine, marrow_hu=marrow_hu)
    return with_origin(result, frozen, table, clinical=baseline)


def test_pictures_of_patients_carry_the_signal_and_no_more(imaged):
    """The drawn kinds and sizes reach the Bayes AUC; what features read from the CT is significant and not above it."""
    ratio = dict(zip(CELLS, np.log(np.divide(*cell_tables(CtDesign()))), strict=True))

    def drawn_ratio(patient: SyntheticPatient) -> float:
        sizes = ["small" if lesion.parameters["diameter_mm"] < 13 else "large" for lesion in patient.lesions]
        return sum(ratio[lesion.kind, size] for lesion, size in zip(patient.lesions, sizes, strict=True))

    lung = np.array([p.lung for p in imaged])
    assert covers(np.array([drawn_ratio(p) for p in imaged]), lung, 0.80)
    for cohort in synthetic_cohorts(imaged):
        _, out_of_fold = fit_origin(cohort, FEW_PATIENTS)
        auc, error = delong(out_of_fold.p_lung, lung)
        assert 0.5 < auc - 1.96 * error <= 0.80


def test_heads_travel_in_metadata_and_answer_on_lesions_and_patient(imaged):
    image, clinical = read_heads(json.loads(json.dumps(heads_document(*synthetic_heads(imaged)), allow_nan=False)))
    assert image is not None and clinical is not None
    cohorts = synthetic_cohorts(imaged[:1])
    answered = answered_result(imaged[0], image, clinical)
    assert answered.origin is not None
    assert (answered.origin.n_lesions, answered.origin.from_prior) == (len(imaged[0].lesions), False)
    assert answered.origin.p_lung == pytest.approx(predict_patients(image, cohorts[0])[0])
    assert answered.origin.clinical_p_lung == pytest.approx(predict_patients(clinical, cohorts[1])[0])
    assert [le.p_lung for le in answered.lesions] == pytest.approx(list(predict_lesions(image, cohorts[0].table)))
    nothing = answered_result(replace(imaged[0], instances=np.zeros_like(imaged[0].instances)), image, clinical)
    assert nothing.origin is not None
    assert (nothing.origin.verdict, nothing.origin.p_lung) == ("no lesion", image.prior)


def test_a_threshold_changed_by_hand_is_refused():
    frozen, _ = fit_origin(draw_cohort(CohortDesign(patients=40), np.random.default_rng(0)))
    document = heads_document(frozen)
    assert read_heads(document)[1] is None and read_heads({}) == (None, None)
    document["origin"]["threshold"] += 0.05
    with pytest.raises(InputError, match="changed by hand"):
        read_heads(document)


def test_noise_and_count_of_the_pictures_do_not_know_the_class(imaged):
    lung = np.array([p.lung for p in imaged])
    noise = np.array([p.volume.voxels[:6, :6].astype(float).std() for p in imaged])
    count = np.array([len(p.lesions) for p in imaged], float)
    for shortcut in (noise, count):
        assert covers(shortcut, lung, 0.5)
    assert all(p.instances.max() == len(p.lesions) for p in imaged)


def test_the_same_seed_draws_the_same_patients():
    design = CtDesign(patients=2, phantoms=1)
    for one, two in itertools.zip_longest(*(draw_patients(design, np.random.default_rng(3)) for _ in range(2))):
        assert np.array_equal(one.volume.voxels, two.volume.voxels) and np.array_equal(one.instances, two.instances)
