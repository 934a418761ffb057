"""Folds over patients: nobody on both sides, everybody once, the same again, mixed as the patients are."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from volseg.errors import InputError, UsageError
from volseg.folds import FoldOptions, deal, write_fold
from volseg.inference.datasets import listed_cases


@pytest.fixture
def data(tmp_path):
    """12 patients of 2 sites with 1 to 3 images each, and one of a validation section."""
    (tmp_path / "imagesTr").mkdir()
    lines, cases = ["patient,site,origin"], []
    for n in range(12):
        lines.append(f"p{n:02d},{'AB'[n % 2]},{'lung' if n % 3 else 'breast'}")
        for image in range(1 + n % 3):
            (tmp_path / f"imagesTr/p{n:02d}_{image}.nii.gz").touch()
            cases.append({"image": f"imagesTr/p{n:02d}_{image}.nii.gz", "label": f"imagesTr/p{n:02d}_{image}.nii.gz"})
    (tmp_path / "patients.csv").write_text("\n".join(lines))
    (tmp_path / "datalist.json").write_text(json.dumps({"training": cases, "validation": cases[:1]}))
    return tmp_path


def sides(path):
    document = json.loads(path.read_text())
    return [{case["patient"] for case in document[section]} for section in ("training", "validation")]


def test_every_patient_is_validated_once_and_never_trained_on_then(data, tmp_path):
    seen = Counter()
    for fold in range(4):
        training, validation = sides(write_fold(data, tmp_path / f"f{fold}", FoldOptions(4, fold)))
        assert not training & validation and len(training | validation) == 12
        seen.update(validation)
    assert set(seen.values()) == {1} and len(seen) == 12


def test_all_images_of_a_patient_go_with_the_patient_and_the_bundles_can_read_the_list(data, tmp_path):
    path = write_fold(data, tmp_path / "f", FoldOptions(3, 1))
    listed = {section: listed_cases(str(path), section) for section in ("training", "validation")}
    assert sum(map(len, listed.values())) == 24
    assert all(set(case) == {"image", "label"} for cases in listed.values() for case in cases)


def test_folds_are_the_same_for_the_same_data_in_any_order(data, tmp_path):
    first = sides(write_fold(data, tmp_path / "a", FoldOptions(5, 2)))
    document = json.loads((data / "datalist.json").read_text())
    document["training"].reverse()
    (data / "datalist.json").write_text(json.dumps(document))
    assert sides(write_fold(data, tmp_path / "b", FoldOptions(5, 2))) == first
    assert sides(write_fold(data, tmp_path / "c", FoldOptions(5, 2, seed=1))) != first


def test_strata_are_spread_to_within_one_patient():
    strata = {f"p{n}": "A" if n < 10 else "B" for n in range(23)}
    fold_of = deal(strata, 5, seed=0)
    for stratum, size in (("A", 10), ("B", 13)):
        counts = Counter(fold_of[p] for p in strata if strata[p] == stratum)
        assert max(counts.values()) - min(counts[n] for n in range(5)) <= 1 and sum(counts.values()) == size
    assert max(Counter(fold_of.values()).values()) == 5


def test_a_folder_keeps_its_fold(data, tmp_path):
    write_fold(data, tmp_path / "f", FoldOptions(4, 0))
    write_fold(data, tmp_path / "f", FoldOptions(4, 0))
    with pytest.raises(UsageError, match="another fold"):
        write_fold(data, tmp_path / "f", FoldOptions(4, 1))


def test_without_patients_a_case_is_a_patient_unless_it_says_whose_it_is(data, tmp_path):
    (data / "patients.csv").unlink()
    document = json.loads((data / "datalist.json").read_text())
    assert len(set.union(*sides(write_fold(data, tmp_path / "a", FoldOptions(2, 0))))) == 24
    for case in document["training"]:
        case["patient"] = case["image"][9:12]
    (data / "datalist.json").write_text(json.dumps(document))
    assert len(set.union(*sides(write_fold(data, tmp_path / "b", FoldOptions(2, 0))))) == 12


def test_what_cannot_be_dealt_is_refused_in_words(data, tmp_path):
    with pytest.raises(InputError, match="12 patients cannot be dealt into 13"):
        write_fold(data, tmp_path / "f", FoldOptions(13, 0))
    with pytest.raises(UsageError, match="count from 0"):
        FoldOptions(5, 5)
    (data / "patients.csv").write_text("patient,site\np00,A\n")
    with pytest.raises(InputError, match="p01_0: its patient"):
        write_fold(data, tmp_path / "f", FoldOptions(2, 0))
