"""The study's parts: fair arms, honest words, a leak that shows. (The study itself: `make study-small`.)"""

from __future__ import annotations

import numpy as np
import pytest
import study
import study_arms as arms
import study_origin as origin
import study_page as page
import torch

from volseg.evaluation.cases import compare_case
from volseg.origin.cohort import Cohort
from volseg.origin.features import LesionTable
from volseg.origin.shipped import IMAGE_COLUMNS
from volseg.synthetic import CohortOptions
from volseg.synthetic.patients import plan_patients


@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_arm_has_as_many_weights_as_segmamba_to_within_five_percent(scale):
    definitions = arms.network_defs(study.SCALES[scale].recipe)
    sizes = {arm: arms.parameters_of(definitions[arm]) for arm in study.SCALES[scale].arms}
    assert all(abs(n / sizes["SegMamba"] - 1) < 0.05 for n in sizes.values()), sizes


def test_the_twin_differs_in_the_layers_alone():
    arguments = {"dims": [8, 16, 24, 32], "hidden_dim": 32, "depths": [1, 2, 1, 1]}
    torch.manual_seed(0)
    twin = arms.NoMambaTwin(1, 2, **arguments).eval()
    torch.manual_seed(0)
    real = arms.SegMamba(1, 2, **arguments)
    outside = {name for name in twin.state_dict() if ".layers." not in name}
    assert outside == {name for name in real.state_dict() if ".layers." not in name}
    assert [len(stage.layers) for stage in twin.stages] == arguments["depths"]
    x = torch.randn(1, 1, 32, 32, 32)
    assert twin(x).shape == (1, 2, 32, 32, 32) and torch.equal(twin(x), twin(x))
    twin(x).sum().backward()
    assert all(p.grad is not None for stage in twin.stages for p in stage.layers.parameters())


def test_training_threshold_and_test_have_patients_of_their_own():
    seeds = (study.TRAIN, study.FIT, study.TEST)
    assert len(set(seeds)) == 3
    names = [{p.name for p in plan_patients(study.SMALL.sites["B"], CohortOptions(patients=9, seed=s))} for s in seeds]
    assert not names[0] & names[1]
    assert not set(study.SHARED_CTS["A"]) & set(study.SHARED_CTS["B"])


def volume(patient, *, hit, false):
    truth = np.zeros((20, 20, 20), np.uint16)
    truth[2:8, 2:8, 2:8] = 1
    found = np.zeros_like(truth)
    if hit:
        found[2:8, 2:8, 2:8] = 1
    for n in range(false):
        found[12:15, 12:15, 3 * n : 3 * n + 2] = 2 + n
    scores = {int(i): 0.9 for i in np.unique(found) if i}
    return compare_case(found, truth, np.eye(4), case=patient, patient=patient, scores=scores)


def test_two_arms_alike_tie_and_a_better_one_is_named():
    good = [volume(f"p{n}", hit=True, false=n % 2) for n in range(12)]
    same = [volume(f"p{n}", hit=True, false=n % 2) for n in range(12)]
    poor = [volume(f"p{n}", hit=n % 4 == 0, false=1 + n % 2) for n in range(12)]
    told = page.compare_arms({"good": {1: good}, "same": {1: same}, "poor": {1: poor}}, resamples=200)
    assert {row["verdict"] for row in told["good minus same"].values()} == {"tie"}
    assert {row["verdict"] for row in told["good minus poor"].values()} == {"good"}, "fewer false positives are better"
    assert told["good minus poor"][page.FALSE]["estimate"]["value"] == pytest.approx(-1.0)
    assert told["good minus poor"][page.FOUND]["seeds"] == [pytest.approx(0.75)]


def test_seeds_are_meaned_per_patient_before_patients_are_resampled():
    hits = [volume(f"p{n}", hit=True, false=0) for n in range(8)]
    misses = [volume(f"p{n}", hit=False, false=0) for n in range(8)]
    told = page.compare_arms({"a": {1: hits, 2: misses}, "b": {1: misses, 2: hits}}, resamples=100)["a minus b"]
    assert told[page.FOUND]["estimate"]["value"] == 0 and told[page.FOUND]["verdict"] == "tie"
    assert told[page.FOUND]["seeds"] == [1.0, -1.0], "the spread over seeds stays in view"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.3, "x"), (-0.3, -0.1, "y"), (-0.1, 0.2, "tie"), (0.0, 0.2, "tie"), (np.nan, np.nan, "unknown")],
)
def test_a_winner_is_named_only_where_the_interval_leaves_zero_out(low, high, expected):
    assert page.verdict("x", "y", low, high) == expected


def test_folds_over_lesions_leak_what_folds_over_patients_do_not():
    rng = np.random.default_rng(0)
    patients, each = 60, 3
    lung = rng.permutation(np.arange(patients) < 30)
    owner = np.repeat(np.arange(patients), each)
    names = tuple(f"p{n:02d}" for n in range(patients))
    own = rng.normal(size=(patients, 2))[owner]  # whose the lesion is: nothing about its origin

    def cohort(columns, values):
        return Cohort(LesionTable(columns, tuple(range(len(owner))), values), owner, names, lung)

    seen = origin.Seen(
        "B",
        image=cohort(IMAGE_COLUMNS, rng.normal(size=(len(owner), len(IMAGE_COLUMNS)))),
        clinical=cohort(("x",), rng.normal(size=(len(owner), 1))),
        fingerprint=cohort(origin.FINGERPRINT, own),
        plans=[],
    )
    told = origin._protocols(seen, 5, 0)["nearest neighbour, patient fingerprint"]
    assert told["folds over lesions, LEAKY"]["value"] > 0.95
    honest = told["folds over patients"]
    assert honest["low"] < 0.5 < honest["high"]


def test_without_the_shared_folder_there_are_no_cts(tmp_path):
    assert study.shared_cts(tmp_path, tmp_path / "work") == {"B": {}, "A": {}}
