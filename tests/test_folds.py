"""Folds over patients: nobody on both sides, everybody once, the same again, mixed as the patients are."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from volseg.errors import InputError, UsageError
from volseg.folds import FoldOptions, deal, write_fold
from volseg.inference.datasets import listed_cases
from volseg.synth import PHANTOM


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


def pictures(folder, *, owners=""):
    """4 slices of 3 patients as file names; slices.csv where `owners` is its text."""
    cases = []
    for n in range(12):
        names = {key: f"{key}/s{n:02d}.png" for key in ("image", "bone", "label")}
        for name in names.values():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        cases.append(names)
    (folder / "datalist.json").write_text(json.dumps({"training": cases}))
    if owners:
        (folder / "slices.csv").write_text(owners)


@pytest.mark.parametrize(("comma", "suffix"), [(",", ""), (";", ".png")])
def test_slices_csv_says_whose_a_picture_is_and_every_file_of_it_is_kept(tmp_path, comma, suffix):
    lines = [f"s{n:02d}{suffix}{comma}p{n // 4}" for n in range(12)]
    pictures(tmp_path, owners="\n".join([f"slice{comma}patient", *lines]))
    path = write_fold(tmp_path, tmp_path / "f", FoldOptions(3, 0))
    training, validation = sides(path)
    assert len(training) == 2 and len(validation) == 1 and not training & validation
    cases = listed_cases(str(path), "training")
    assert len(cases) == 8 and all(set(case) == {"image", "bone", "label"} for case in cases)


def test_a_picture_that_slices_csv_leaves_out_is_refused_unless_the_datalist_says_whose_it_is(tmp_path):
    pictures(tmp_path, owners="slice,patient\n" + "\n".join(f"s{n:02d},p{n // 4}" for n in range(11)))
    with pytest.raises(InputError, match=r"s11.png: its patient is not in slices.csv"):
        write_fold(tmp_path, tmp_path / "f", FoldOptions(3, 0))
    document = json.loads((tmp_path / "datalist.json").read_text())
    document["training"][11]["patient"] = "p2"
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    assert set.union(*sides(write_fold(tmp_path, tmp_path / "f", FoldOptions(3, 0)))) == {"p0", "p1", "p2"}


def with_sources(data, source_of):
    lines = (data / "patients.csv").read_text().splitlines()
    sourced = [f"{line},{source_of(n)}" for n, line in enumerate(lines[1:])]
    (data / "patients.csv").write_text("\n".join([f"{lines[0]},source", *sourced]))


def test_patients_who_were_grown_in_one_ct_stay_in_one_fold(data, tmp_path):
    with_sources(data, lambda n: f"ct{n % 4}")
    seen = Counter()
    for fold in range(4):
        training, validation = sides(write_fold(data, tmp_path / f"f{fold}", FoldOptions(4, fold)))
        assert not {int(p[1:]) % 4 for p in training} & {int(p[1:]) % 4 for p in validation}
        seen.update(validation)
    assert len(seen) == 12 and set(seen.values()) == {1}
    with pytest.raises(InputError, match=r"folds-too-many: .* 12 patients of 4 bodies .*`source`.* into 5 folds"):
        write_fold(data, tmp_path / "f", FoldOptions(5, 0))


def test_every_phantom_is_a_body_of_its_own(data, tmp_path):
    plain = sides(write_fold(data, tmp_path / "plain", FoldOptions(12, 3)))
    with_sources(data, lambda n: PHANTOM if n % 2 else "")
    assert sides(write_fold(data, tmp_path / "phantoms", FoldOptions(12, 3))) == plain
