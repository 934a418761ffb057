"""Sites: what may stand in a site file, and that a site is never the origin signal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from volseg.errors import InputError, UsageError
from volseg.evaluation.classification import auc
from volseg.origin.synthetic_ct import CtDesign, cell_tables
from volseg.synthetic import SITES, CohortOptions, find_site
from volseg.synthetic.patients import BLOCK, plan_patients
from volseg.synthetic.sites import read_sites, write_sites

MANY = CohortOptions(patients=1600, seed=3, bayes_auc=0.80)


@pytest.fixture(scope="module")
def plans():
    return {name: plan_patients(site, MANY) for name, site in SITES.items()}


def diseased(plans):
    return [p for p in plans if p.lesions]


@pytest.mark.parametrize("name", sorted(SITES))
def test_within_a_site_the_lesions_tell_the_primary_as_well_as_stated_and_no_better(plans, name):
    some = diseased(plans[name])
    found = auc(np.array([p.lung for p in some]), np.array([p.log_likelihood_ratio for p in some]))
    assert found.low <= 0.80 <= found.high


@pytest.mark.parametrize("column", ["noise_hu", "age_years", "distractors"])
@pytest.mark.parametrize("name", sorted(SITES))
def test_within_a_site_scanner_age_and_look_alikes_say_nothing(plans, name, column):
    found = auc(np.array([p.lung for p in plans[name]]), np.array([float(getattr(p, column)) for p in plans[name]]))
    assert abs(found.value - 0.5) < 0.05  # the standard error of 1,600 patients is .015 to .02


def test_across_sites_the_scanner_does_tell_the_prevalence_which_is_the_trap(plans):
    """Why training and test must not be pooled: noise "predicts" the primary over sites, and in no site."""
    pooled = [*plans["B"], *plans["A"]]
    found = auc(np.array([p.lung for p in pooled]), np.array([p.noise_hu for p in pooled]))
    assert found.low > 0.52


def test_lesions_of_one_primary_have_the_same_law_at_every_site(plans):
    """A head that is right at B is right at A: only prevalence and picture move."""
    tables = cell_tables(CtDesign(bayes_auc=0.80, lesions=MANY.lesions))
    for lung, expected in ((True, tables[0]), (False, tables[1])):
        for site in SITES:
            cells = [x.cell for p in plans[site] if p.lung is lung for x in p.lesions]
            shares = np.bincount(cells, minlength=len(expected)) / len(cells)
            assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(cells))


def test_prevalences_hold_in_every_block_of_patients():
    site = SITES["A"]
    plans = plan_patients(site, CohortOptions(patients=2 * BLOCK, seed=1))
    for block in (plans[:BLOCK], plans[BLOCK:]):
        assert sum(p.lung for p in block) == round(site.lung_prevalence * BLOCK)
        assert sum(bool(p.lesions) for p in block) == round(site.lesion_prevalence * BLOCK)


def test_a_patient_is_the_same_however_many_are_asked_for():
    few, many = (plan_patients(SITES["C"], CohortOptions(patients=n, seed=5)) for n in (7, 31))
    assert [str(p) for p in few] == [str(p) for p in many[:7]]  # as text: nan is not equal to itself
    other = plan_patients(SITES["C"], CohortOptions(patients=7, seed=6))
    assert [p.noise_hu for p in few] != [p.noise_hu for p in other]


def test_an_auc_out_of_reach_is_refused():
    with pytest.raises(UsageError, match="cannot be had"):
        plan_patients(SITES["B"], CohortOptions(bayes_auc=0.999))


def test_a_site_file_goes_out_and_comes_back(tmp_path):
    write_sites(tmp_path / "sites.json")
    assert read_sites(tmp_path / "sites.json") == dict(SITES)
    mine = replace(SITES["A"], name="Kiel", noise_hu=(1.0, 2.0))
    write_sites(tmp_path / "mine.json", {"Kiel": mine})
    assert find_site("Kiel", tmp_path / "mine.json") == mine


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spacing_mm": [1.0, 1.0]}, "spacing"),
        ({"noise_hu": [9.0, 3.0]}, "noise"),
        ({"lung_prevalence": 1.4}, "prevalence"),
        ({"name": "a/b"}, "file name"),
        ({"spaceing_mm": [1, 1, 1]}, "spaceing_mm"),
    ],
)
def test_a_site_file_that_cannot_be_is_refused_in_words(tmp_path, change, word):
    write_sites(tmp_path / "sites.json", {"A": SITES["A"]})
    document = json.loads((tmp_path / "sites.json").read_text())
    document["sites"][0] |= change
    (tmp_path / "sites.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=word) as error:
        find_site("A", tmp_path / "sites.json")
    assert error.value.code == "sites-unreadable"


def test_a_site_nobody_knows_is_a_wrong_request():
    with pytest.raises(UsageError, match="A, B, C"):
        find_site("Z")
