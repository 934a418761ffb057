"""What a bundle finds in its dataset_dir."""

from __future__ import annotations

import json

import pytest

from volseg.errors import InputError
from volseg.inference.datasets import found_studies, listed_cases


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
    ],
)
def test_a_datalist_that_cannot_be_used_is_refused(tmp_path, document, code):
    if document is not None:
        (tmp_path / "datalist.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=code):
        listed_cases(str(tmp_path), "training")


def test_files_and_folders_are_studies_and_a_bare_dicom_folder_is_one(tmp_path):
    (tmp_path / "x.nii.gz").touch()
    (tmp_path / "patient").mkdir()
    (tmp_path / "notes.txt").touch()
    assert [s["image"] for s in found_studies(str(tmp_path))] == [str(tmp_path / "patient"), str(tmp_path / "x.nii.gz")]
    slices = tmp_path / "patient"
    (slices / "IM0001").touch()
    assert found_studies(str(slices)) == [{"image": str(slices)}]


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no-studies"):
        found_studies(str(tmp_path))
    with pytest.raises(InputError, match="path-missing"):
        found_studies(str(tmp_path / "gone"))
