"""BM-Seg protocols: no patient on two sides of the headline, and the leaky ones proven leaky and called so."""

from __future__ import annotations

import random

import numpy as np
import pytest

from volseg.errors import UsageError
from volseg.evaluation.bmseg import PROTOCOLS, find_leak, protocol

# Eleven patients with 3 to 13 neighbouring slices each.
PATIENTS = tuple(f"P{p:02d}" for p in range(11) for _ in range(3 + p))
NAMES = tuple(f"{who}_{n:03d}" for n, who in enumerate(PATIENTS))
EVERYONE = ("bmseg-patient", "bmseg-eh", "bmseg-mfp")


def test_there_are_three_protocols_and_the_headline_alone_is_clean():
    assert tuple(PROTOCOLS) == EVERYONE
    assert [PROTOCOLS[name].leaky for name in EVERYONE] == [False, True, True]


def test_no_patient_stands_in_two_parts_of_the_headline_and_each_is_tested_once():
    tested = []
    for split in protocol("bmseg-patient").splits(NAMES, PATIENTS):
        people = [{PATIENTS[row] for row in rows} for rows in (split.train, split.validation, split.test)]
        assert all(people) and not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
        leak = find_leak(split, PATIENTS)
        assert leak.test_slices == 0 and leak.patients == () and not leak.chosen_on_test
        tested += split.test
    assert sorted(tested) == list(range(len(NAMES)))


def test_the_folds_of_the_headline_are_of_similar_size():
    sizes = [len(split.test) for split in protocol("bmseg-patient").splits(NAMES, PATIENTS)]
    assert sum(sizes) == 88 and max(sizes) - min(sizes) <= 3


@pytest.mark.parametrize("name", ["bmseg-eh", "bmseg-mfp"])
def test_the_published_splits_leak_and_say_so(name):
    chosen = protocol(name)
    for split in chosen.splits(NAMES, PATIENTS):
        leak = find_leak(split, PATIENTS)
        assert leak.test_slices > 0.9 * len(split.test)
        assert f"{leak.test_slices} of {len(split.test)} test slices" in leak.text()
        assert leak.chosen_on_test == (name == "bmseg-eh") == ("best epoch" in leak.text())
    assert "LEAKY" in chosen.label and "LEAKY" in chosen.describe() and "neighbouring slices" in chosen.describe()


def test_the_headline_is_never_called_leaky():
    assert "LEAKY" not in protocol("bmseg-patient").describe()


@pytest.mark.parametrize("name", EVERYONE)
def test_every_row_has_its_place_and_training_never_tests(name):
    for split in protocol(name).splits(NAMES, PATIENTS):
        assert set(split.train) | set(split.validation) | set(split.test) == set(range(len(NAMES)))
        assert not set(split.train) & (set(split.validation) | set(split.test))


@pytest.mark.parametrize("name", EVERYONE)
def test_splits_are_the_same_every_time_and_for_every_order_of_the_slices(name):
    order = list(range(len(NAMES)))
    random.Random(3).shuffle(order)
    first = protocol(name).splits(NAMES, PATIENTS)
    again = protocol(name).splits([NAMES[n] for n in order], [PATIENTS[n] for n in order])
    for a, b in zip(first, again, strict=True):
        for part in ("train", "validation", "test"):
            assert {NAMES[row] for row in getattr(a, part)} == {NAMES[order[row]] for row in getattr(b, part)}


def test_the_headline_refuses_slices_nobody_owns_and_the_leaky_ones_take_them():
    nobody = ("",) * len(NAMES)
    with pytest.raises(UsageError, match="patients-unknown: bmseg-patient: 88 of 88 slices have no patient"):
        protocol("bmseg-patient").splits(NAMES, nobody)
    with pytest.raises(UsageError, match="1 of 88"):
        protocol("bmseg-patient").splits(NAMES, ("", *PATIENTS[1:]))
    split = protocol("bmseg-eh").splits(NAMES, nobody)[0]
    assert (
        find_leak(split, nobody).text() == "whose slices these are is unknown; the best epoch is chosen on test slices"
    )


def test_the_public_split_is_scikit_learns_with_seed_42():
    # KFold(5, shuffle=True, random_state=42) of ten rows: test folds as scikit-learn 1.9 gives them.
    names = [f"{n}.x" for n in range(10)]
    splits = protocol("bmseg-eh").splits(names, [""] * 10)
    assert [split.test for split in splits] == [(1, 8), (0, 5), (2, 7), (4, 9), (3, 6)]
    assert all(split.validation == split.test for split in splits)


def test_windows_lists_hyphens_before_dots_and_ignores_case():
    names = ["a", "B", "a-1", "c", "d", "e", "f", "g", "h", "i"]
    test = protocol("bmseg-eh").splits(names, [""] * 10)[0].test
    listed = ["a-1", "a", "B", "c", "d", "e", "f", "g", "h", "i"]
    assert {names[row] for row in test} == {listed[1], listed[8]}


def test_mfp_holds_out_the_same_tenth_in_every_fold():
    splits = protocol("bmseg-mfp").splits(NAMES, PATIENTS)
    assert len({split.test for split in splits}) == 1 and len(splits[0].test) == round(len(NAMES) / 10)
    chosen = np.concatenate([split.validation for split in splits])
    assert len(set(chosen.tolist())) == len(chosen) == len(NAMES) - len(splits[0].test)


def test_requests_that_cannot_be_met_are_refused():
    with pytest.raises(UsageError, match=r"protocol-unknown.*bmseg-patient, bmseg-eh, bmseg-mfp"):
        protocol("bmseg-random")
    with pytest.raises(UsageError, match="5 folds need as many patients, 4 here"):
        protocol("bmseg-patient").splits(NAMES[:18], PATIENTS[:18])
    with pytest.raises(UsageError, match="too-few-slices"):
        protocol("bmseg-eh").splits(NAMES[:9], PATIENTS[:9])
    with pytest.raises(UsageError, match="slice-twice"):
        protocol("bmseg-eh").splits((*NAMES, NAMES[0]), (*PATIENTS, "P00"))
