"""The head and the pooling: fitted the same twice, standardised inside, each patient counted once."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from volseg.errors import InputError, UsageError
from volseg.origin.cohort import Cohort, patient_folds
from volseg.origin.features import LesionTable
from volseg.origin.head import HeadOptions, LesionHead, fit_head, lesion_logits, tensors
from volseg.origin.patients import (
    ModelOptions,
    OriginModel,
    attention_weights,
    equal_weights,
    fit_model,
    noisy_or,
)
from volseg.origin.synthetic import CohortDesign, draw_cohort

EVERY_MODEL = [
    ModelOptions(),
    ModelOptions(HeadOptions("mlp")),
    ModelOptions(pooling="attention"),
    ModelOptions(pooling="noisy_or"),
]


def cohort_of(values: list[list[float]], owner: list[int], lung: list[bool]) -> Cohort:
    names = tuple("abcdefgh"[: len(values[0])])
    table = LesionTable(names, tuple(range(1, len(values) + 1)), np.asarray(values, float))
    return Cohort(table, np.asarray(owner), tuple(f"p{n}" for n in range(len(lung))), np.asarray(lung))


def reversed_lesions(cohort: Cohort) -> Cohort:
    table = LesionTable(cohort.table.names, cohort.table.ids[::-1], cohort.table.values[::-1].copy())
    return replace(cohort, table=table, patient_of=cohort.patient_of[::-1].copy())


def test_a_logistic_head_solves_its_own_optimality_condition():
    """At the optimum the gradient is zero: sum of share * (p - y) * z = -l2 * w, sum of share * (p - y) = 0."""
    cohort = draw_cohort(CohortDesign(patients=60), np.random.default_rng(3))
    head = fit_head(cohort, HeadOptions(l2=2.0))
    z = head.standardise(cohort.table)
    share = 1 / cohort.counts[cohort.patient_of]
    residual = share * (1 / (1 + np.exp(-head.logits(cohort.table))) - cohort.lung[cohort.patient_of])
    assert residual @ z == pytest.approx(-2.0 * head.parameters["weight"], abs=2e-3)
    assert residual.sum() == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("options", EVERY_MODEL, ids=lambda o: f"{o.head.kind}-{o.pooling}")
def test_the_same_data_give_the_same_model_and_json_gives_it_back_to_the_bit(options):
    cohort = draw_cohort(CohortDesign(patients=60), np.random.default_rng(4))
    one, two = fit_model(cohort, options), fit_model(cohort, options)
    assert one.to_json() == two.to_json()
    back = OriginModel.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    assert np.array_equal(back.patient_logits(cohort), one.patient_logits(cohort))
    assert np.array_equal(back.head.logits(cohort.table), one.head.logits(cohort.table))


@pytest.mark.parametrize("options", EVERY_MODEL, ids=lambda o: f"{o.head.kind}-{o.pooling}")
def test_neither_the_order_of_lesions_nor_the_company_of_patients_changes_an_answer(options):
    cohort = draw_cohort(CohortDesign(patients=40, without_lesions=0.2), np.random.default_rng(5))
    model = fit_model(cohort, options)
    answers = model.patient_logits(cohort)
    assert np.array_equal(np.isnan(answers), cohort.counts == 0) and (cohort.counts == 0).any()
    assert np.allclose(model.patient_logits(reversed_lesions(cohort)), answers, rtol=1e-12, equal_nan=True)
    for n in range(5):
        alone = model.patient_logits(cohort.subset(np.arange(40) == n))
        assert np.allclose(alone, answers[n], rtol=1e-12, equal_nan=True)


def test_units_do_not_matter_and_what_is_unknown_is_the_mean():
    cohort = draw_cohort(CohortDesign(patients=60), np.random.default_rng(6))
    table = cohort.table
    scaled = replace(cohort, table=LesionTable(table.names, table.ids, 1000 * table.values - 7))
    head, other = fit_head(cohort), fit_head(scaled)
    assert np.allclose(head.logits(table), other.logits(scaled.table), atol=1e-4)
    values = table.values.copy()
    values[0, 0] = math.nan
    mean = values.copy()
    mean[0, 0] = head.mean[0]
    assert head.logits(LesionTable(table.names, table.ids, values))[0] == pytest.approx(
        head.logits(LesionTable(table.names, table.ids, mean))[0]
    )


def test_one_mad_feature_does_not_decide_alone():
    cohort = draw_cohort(CohortDesign(patients=60), np.random.default_rng(6))
    head = fit_head(cohort)
    values = np.tile(head.mean, (2, 1))
    values[0, 0], values[1, 0] = head.mean[0] + 5 * head.scale[0], 1e9
    calm, mad = head.logits(LesionTable(head.names, (1, 2), values))
    assert mad == pytest.approx(calm)


def test_columns_are_taken_by_name_and_a_constant_one_says_nothing():
    cohort = cohort_of([[0, 3, 9.0], [1, 3, 8], [4, 3, 1], [5, 3, 2]], [0, 1, 2, 3], [False, False, True, True])
    head = fit_head(cohort)
    assert head.parameters["weight"][1] == 0
    turned = LesionTable(("c", "a", "b"), (7,), np.array([[2.0, 5, 3]]))
    assert head.logits(turned) == pytest.approx(head.logits(cohort.table)[3:])
    with pytest.raises(InputError, match="missing"):
        head.logits(LesionTable(("a", "b"), (1,), np.ones((1, 2))))


def test_a_patient_counts_once_however_many_lesions_there_are():
    few = cohort_of([[0.0], [1], [2], [3]], [0, 1, 2, 3], [False, True, False, True])
    many = cohort_of([[0.0]] * 50 + [[1.0], [2], [3]], [0] * 50 + [1, 2, 3], [False, True, False, True])
    one, other = fit_head(few), fit_head(many)
    grid = LesionTable(("a",), (1, 2, 3), np.array([[0.0], [1.5], [4]]))
    assert np.allclose(one.logits(grid), other.logits(grid), atol=1e-4)


def test_noisy_or_inflates_with_count_and_the_mean_does_not():
    """p = .2 each: 1 - .8^10 = .893 from lesions that all speak against lung."""
    logits = torch.full((11,), math.log(0.2 / 0.8), dtype=torch.float64)
    owner = torch.tensor([0] * 10 + [1])
    assert torch.sigmoid(noisy_or(logits, owner, 2)).tolist() == pytest.approx([1 - 0.8**10, 0.2])
    mean = torch.zeros(2, dtype=torch.float64).index_add(0, owner, equal_weights(owner, 2) * logits)
    assert torch.sigmoid(mean).tolist() == pytest.approx([0.2, 0.2])
    extreme = noisy_or(torch.tensor([-800.0, 800.0], dtype=torch.float64), torch.tensor([0, 1]), 2)
    assert extreme.tolist()[1] == pytest.approx(800)


def test_attention_follows_ilse_et_al_by_hand(rng):
    z = torch.from_numpy(rng.normal(size=(3, 2)))
    parameters = {
        "attention_value": torch.from_numpy(rng.normal(size=(2, 4))),
        "attention_gate": torch.from_numpy(rng.normal(size=(2, 4))),
        "attention_score": torch.from_numpy(rng.normal(size=4)),
    }
    weights = attention_weights(parameters, z, torch.tensor([0, 1, 0]), 2).numpy()
    score = [
        sum(
            float(parameters["attention_score"][j])
            * math.tanh(float(z[k] @ parameters["attention_value"][:, j]))
            / (1 + math.exp(-float(z[k] @ parameters["attention_gate"][:, j])))
            for j in range(4)
        )
        for k in range(3)
    ]
    assert weights == pytest.approx(
        [1 / (1 + math.exp(score[2] - score[0])), 1, 1 / (1 + math.exp(score[0] - score[2]))]
    )


def test_attention_finds_the_one_lesion_that_speaks_where_the_mean_drowns():
    """Of five lesions one, told by its mark, carries the class; the others carry noise of the same size."""

    def needle(seed: int, patients: int = 300) -> Cohort:
        rng = np.random.default_rng(seed)
        lung = rng.random(patients) < 0.5
        owner = np.repeat(np.arange(patients), 5)
        mark = (np.arange(5 * patients) % 5 == 2).astype(float)
        speech = rng.normal(0, 1, 5 * patients) + 2.0 * mark * np.where(lung[owner], 0.5, -0.5)
        values = np.stack([speech * np.where(mark > 0, 1, 2), mark], axis=1)
        return cohort_of(values.tolist(), owner.tolist(), lung.tolist())

    held_out = needle(2)

    def auc(options: ModelOptions) -> float:
        logits = fit_model(needle(1), options).patient_logits(held_out)
        positive, negative = logits[held_out.lung], logits[~held_out.lung]
        return float((positive[:, None] > negative).mean())

    assert auc(ModelOptions(pooling="attention", attention_l2=1.0)) > auc(ModelOptions()) + 0.1


def test_an_mlp_learns_what_no_line_can():
    rng = np.random.default_rng(8)
    values = rng.normal(size=(400, 2))
    lung = values[:, 0] * values[:, 1] > 0
    cohort = cohort_of(values.tolist(), list(range(400)), lung.tolist())
    correct = {
        kind: ((fit_head(cohort, HeadOptions(kind, l2=0.1)).logits(cohort.table) > 0) == lung).mean()
        for kind in ("logistic", "mlp")
    }
    assert correct["mlp"] > 0.93 and correct["logistic"] < 0.65


def test_what_cannot_be_learnt_is_refused_in_words():
    with pytest.raises(UsageError, match="same answer"):
        fit_head(cohort_of([[0.0], [1.0]], [0, 1], [True, True]))
    with pytest.raises(UsageError, match="same answer"):
        fit_head(cohort_of([[0.0], [1.0]], [0, 0], [True, False]))
    with pytest.raises(InputError, match="feature a holds Inf"):
        fit_head(cohort_of([[math.inf], [1.0]], [0, 1], [True, False]))
    with pytest.raises(InputError, match="pooling 'median' is not known"):
        OriginModel.from_json(
            {**fit_model(cohort_of([[0.0], [1]], [0, 1], [True, False])).to_json(), "pooling": "median"}
        )


def test_a_head_is_what_its_json_says_on_paper():
    head = LesionHead.from_json(
        {"names": ["a", "b"], "mean": [1, 2], "scale": [2, 4], "parameters": {"weight": [3, -1], "bias": 0.5}}
    )
    assert head.logits(LesionTable(("a", "b"), (1,), np.array([[3.0, 10.0]]))) == pytest.approx([3 * 1 - 2 + 0.5])
    hidden = {"hidden_weight": [[1.0], [0]], "hidden_bias": [0.0], "weight": [2.0], "bias": -1.0}
    z = torch.tensor([[0.3, 9.0]], dtype=torch.float64)
    arrays = {name: np.asarray(value, float) for name, value in hidden.items()}
    assert lesion_logits(tensors(arrays), z).item() == pytest.approx(2 * math.tanh(0.3) - 1)


def test_folds_keep_patients_whole_and_classes_even():
    lung = np.arange(53) < 17
    fold = patient_folds(lung, 5)
    assert np.array_equal(fold, patient_folds(lung, 5))
    for who in (lung, ~lung):
        assert np.ptp(np.bincount(fold[who], minlength=5)) <= 1
    with pytest.raises(UsageError, match="3 patients with a primary 'lung'"):
        patient_folds(np.arange(20) < 3, 5)


def test_a_cohort_is_gathered_by_name_and_cut_by_patient():
    tables = {
        "x": LesionTable(("a", "b"), (1, 2), np.array([[1.0, 2], [3, 4]])),
        "y": LesionTable(("a", "b"), (), np.zeros((0, 2))),
        "z": LesionTable(("b", "a"), (1,), np.array([[6.0, 5]])),
    }
    cohort = Cohort.gather(tables, {"x": True, "y": False, "z": False})
    assert cohort.counts.tolist() == [2, 0, 1]
    assert cohort.table.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    rest = cohort.subset(np.array([False, True, True]))
    assert (rest.patients, rest.patient_of.tolist(), rest.table.values.tolist()) == (("y", "z"), [1], [[5, 6]])
    with pytest.raises(UsageError, match="1 patients without a primary: y"):
        Cohort.gather(tables, {"x": True, "z": False})
    with pytest.raises(UsageError, match="no patients"):
        Cohort.gather({}, {})
