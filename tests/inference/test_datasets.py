"""What a bundle finds in its dataset_dir."""

from __future__ import annotations

import json

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from volseg.errors import InputError
from volseg.inference.datasets import found_studies, listed_cases, name_to_save


def test_cases_are_listed_with_absolute_paths(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))
    assert listed_cases(str(tmp_path), "training") == [{"image": str(tmp_path / "a.nii.gz")}]
    assert listed_cases(str(tmp_path), "validation", required=False) == []


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (None, "datalist-missing"),
        ({"training": []}, "datalist-empty"),
        ({"training": [{"image": "gone.nii.gz"}]}, "datalist-files-missing"),
        ({"training": [{"image": ["a.nii.gz"]}]}, 'datalist-unreadable.*training 1: no "image" that is one file'),
        ({"training": [{"image": "gone.nii.gz", "label": 1}]}, 'datalist-unreadable.*"label" is not one file'),
        ({"training": {"image": "a.nii.gz"}}, "datalist-unreadable"),
        ([{"image": "gone.nii.gz"}], "datalist-unreadable"),
        ("{'training': [],}", "datalist-unreadable.*not JSON"),
    ],
)
def test_a_datalist_that_cannot_be_used_is_refused(tmp_path, document, code):
    if document is not None:
        (tmp_path / "datalist.json").write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=code):
        listed_cases(str(tmp_path), "training")


def test_what_a_case_says_beside_its_files_is_not_taken_for_a_file(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    case = {"image": "a.nii.gz", "label": None, "patient": "p", "age": 63, "sex": "F", "weights": [1, 2]}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": [case], "testing": ["a.nii.gz"]}))
    assert listed_cases(str(tmp_path), "training") == [{"image": str(tmp_path / "a.nii.gz")}]
    assert found_studies(str(tmp_path)) == [{"image": str(tmp_path / "a.nii.gz")}], "decathlon lists tests by name"


def test_files_and_folders_are_studies_and_a_bare_dicom_folder_is_one(tmp_path):
    (tmp_path / "x.nii.gz").touch()
    (tmp_path / "patient").mkdir()
    (tmp_path / "notes.txt").touch()
    assert [s["image"] for s in found_studies(str(tmp_path))] == [str(tmp_path / "patient"), str(tmp_path / "x.nii.gz")]
    slices = tmp_path / "patient"
    (slices / "IM0001").touch()
    assert found_studies(str(slices)) == [{"image": str(slices)}]


@pytest.mark.parametrize(
    ("sections", "found"), [(("training", "testing"), ["1"]), (("training", "validation"), ["0", "1"])]
)
def test_of_a_datalist_what_is_for_testing_is_searched_or_all_there_is(tmp_path, sections, found):
    """`volseg synth` files its cases under `training` unless told otherwise."""
    document = {}
    for n, section in enumerate(sections):
        (tmp_path / f"{n}.nii.gz").touch()
        document[section] = [{"image": f"{n}.nii.gz", "patient": "p"}]
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    assert [study["image"] for study in found_studies(str(tmp_path))] == [str(tmp_path / f"{n}.nii.gz") for n in found]
    if "testing" in sections:
        (tmp_path / "0.nii.gz").unlink()  # a machine that tests need not hold what was trained on
        assert len(found_studies(str(tmp_path))) == 1
        (tmp_path / "0.nii.gz").touch()
    with pytest.raises(InputError, match=r"no case under 'elsewhere'; it has training \(1\), "):
        listed_cases(str(tmp_path), "elsewhere")


def test_studies_that_would_be_saved_under_one_name_are_refused(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii.gz").touch()
    listed = {"testing": [{"image": f"{folder}/ct.nii.gz"} for folder in "ab"]}
    (tmp_path / "datalist.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=r"names-collide.*a/ct\.nii\.gz and .*b/ct\.nii\.gz"):
        found_studies(str(tmp_path))


@pytest.mark.parametrize(
    ("study", "saved"), [("1.2.840.113.1", "1.2.840.113.1"), ("p.1.nii.gz", "p.1"), ("x.zip", "x")]
)
def test_a_result_is_named_after_the_whole_study(tmp_path, study, saved):
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": str(tmp_path / study)})
    names = {"output_postfix": "lesions", "separate_folder": False, "output_name_formatter": name_to_save}
    SaveImaged("pred", output_dir=tmp_path, print_log=False, **names)({"pred": image})
    assert [path.name for path in tmp_path.iterdir()] == [f"{saved}_lesions.nii.gz"]


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no-studies"):
        found_studies(str(tmp_path))
    with pytest.raises(InputError, match="path-missing"):
        found_studies(str(tmp_path / "gone"))
