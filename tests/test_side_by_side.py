"""Several bundles on one study: lesions are paired by shared voxels, and one page shows all answers."""

import json
import os
import shutil

import numpy as np
import pytest

from volseg.cli import main
from volseg.errors import InputError
from volseg.io import write_nifti
from volseg.report import side_by_side
from volseg.report.side_by_side import BundleColumn, _column
from volseg.side_by_side import page_is_due, same_places, write_side_by_side


def line(*values):
    return np.array(values, dtype=np.int64).reshape(-1, 1, 1)


def test_lesions_that_share_a_voxel_are_one_place():
    a, b = line(1, 1, 0, 2, 0, 0), line(0, 1, 0, 0, 0, 1)
    # 1 of a touches 1 of b, which also lies apart; 2 of a stands alone.
    assert same_places([a, b]) == [(1, 1), (2, None)]


def test_a_lesion_that_covers_two_is_paired_with_the_larger():
    a, b = line(1, 1, 1, 1, 1), line(1, 1, 1, 0, 2)
    assert same_places([a, b]) == [(1, 1), (None, 2)]


def test_lesions_of_a_row_share_a_voxel():
    # 1 of a covers both of b; 2 of a lies on 1 of b alone, far from 2 of b.
    assert same_places([line(2, 0, 1, 1, 1), line(1, 1, 1, 0, 2)]) == [(1, 1), (2, None), (None, 2)]
    # A chain: 1 of a touches 2 of b, that 2 of a, and that 1 of b, where 1 of a is not.
    assert same_places([line(1, 1, 2, 2), line(0, 2, 2, 1)]) == [(1, 2), (2, 1)]


def test_further_lesions_that_share_a_voxel_are_a_row_too():
    # 1 of a reaches into 2 of b, the rest of which is 2 of a.
    assert same_places([line(1, 1, 1, 2), line(1, 1, 2, 2)]) == [(1, 1), (2, 2)]


def test_three_maps_meet_through_the_one_between_them():
    assert same_places([line(1, 0, 0), line(1, 1, 0), line(0, 1, 0)]) == [(1, 1, 1)]


def test_nothing_marked_gives_no_row():
    assert same_places([line(0, 0), line(0, 0)]) == []


def test_two_bundles_give_two_reports_and_one_page(ct, bright_bundle, tmp_path, capsys):
    other = tmp_path / "other_segmentation"
    shutil.copytree(bright_bundle, other)
    command = ["predict", str(ct), "-o", str(tmp_path / "out"), "--trust-bundle", "--quiet"]
    command += ["--bundle", str(bright_bundle), "--bundle", str(other)]
    assert main(command) == 0
    study = next((tmp_path / "out").iterdir())
    assert sorted(p.name for p in study.iterdir()) == sorted([bright_bundle.name, other.name, "side_by_side.html"])
    page = (study / "side_by_side.html").read_text(encoding="utf-8")
    assert f"{other.name}/report.html" in page and page.count("<img") == 2
    assert "marked by all bundles" in page
    assert main(command) == 0, "a second run skips what is done"
    assert "already done" in capsys.readouterr().out
    assert main(command[:-2]) == 2, "one bundle's result does not go where those of several lie"
    error = capsys.readouterr().err
    assert f"holds the results of {bright_bundle.name}, {other.name}" in error
    assert main([*command[:-2], "--overwrite"]) == 2 and (study / other.name / "report.html").is_file()
    assert main([*command[:-2], "-o", str(tmp_path / "one")]) == 0
    assert main([*command, "-o", str(tmp_path / "one")]) == 2 and "one bundle's result" in capsys.readouterr().err


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(InputError, match="no finished result"):
        write_side_by_side(tmp_path, ["a_segmentation"])


def made(folder, *bundles):
    """Finished results of several bundles on one study, without any lesion."""
    for name in bundles:
        (folder / name).mkdir(parents=True)
        document = {
            "summary": {"lesion_count": 0, "total_volume_mm3": 0.0},
            "provenance": {"bundle": name, "bundle_version": "1"},
            "seconds": {"network": 1.0},
            "warnings": [],
            "lesions": [],
        }
        write_nifti(folder / name / "lesions.nii.gz", np.zeros((4, 4, 4)), np.eye(4), dtype=np.uint16)
        (folder / name / "preview.png").write_bytes(b"a picture")
        (folder / name / "result.json").write_text(json.dumps(document))


def test_a_page_that_is_missing_or_older_than_a_result_is_due(tmp_path):
    made(tmp_path, "a", "b")
    assert page_is_due(tmp_path, ["a", "b"]) and not page_is_due(tmp_path, ["a", "c"])
    page = write_side_by_side(tmp_path, ["a", "b"])
    assert not page_is_due(tmp_path, ["a", "b"])
    os.utime(page, (0, 0))
    assert page_is_due(tmp_path, ["a", "b"])


@pytest.fixture
def several(ct, bright_bundle, tmp_path, monkeypatch):
    """The command for two bundles on two studies, whose results are all there; only the pages are not."""
    bundles = [bright_bundle, tmp_path / "other_segmentation"]
    shutil.copytree(bright_bundle, bundles[1])
    second = ct.with_name("second.nii.gz")
    shutil.copy(ct, second)
    for name in ("block", "second"):
        made(tmp_path / "out" / name, *(bundle.name for bundle in bundles))
    monkeypatch.setattr("volseg.cli.predict.already_done", lambda *_args, **_kwargs: True)
    command = ["predict", str(ct), str(second), "-o", str(tmp_path / "out"), "--trust-bundle", "--quiet"]
    return [*command, *(word for bundle in bundles for word in ("--bundle", str(bundle)))]


def test_a_page_that_was_lost_is_written_again_without_a_search(several, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("volseg.cli.predict.read_for", None)
    assert main(several) == 0
    pages = [tmp_path / "out" / name / "side_by_side.html" for name in ("block", "second")]
    assert all(page.read_text(encoding="utf-8").count("<img") == 2 for page in pages)
    assert capsys.readouterr().out.count("side by side in") == 2
    assert main(several) == 0 and "side by side" not in capsys.readouterr().out


def test_a_page_that_the_disk_refuses_is_one_line_and_the_other_studies_go_on(several, tmp_path, capsys, monkeypatch):
    write = side_by_side.write_whole

    def full_disk(path, content):
        if path.parent.name == "block":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(side_by_side, "write_whole", full_disk)
    assert main(several) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("volseg: output-failed: ") and "No space left" in error and len(error.splitlines()) == 1
    assert (tmp_path / "out/second/side_by_side.html").is_file()


def test_the_prior_is_no_answer():
    """Where no lesion was found, p_lung is the training patients' share of lung, which report.html does not show."""
    said = {}
    for from_prior in (True, False):
        document = {
            "summary": {"lesion_count": 0, "total_volume_mm3": 0.0},
            "provenance": {"bundle": "b", "bundle_version": "1"},
            "seconds": {"network": 1.0},
            "warnings": [],
            "origin": {"p_lung": 0.47, "from_prior": from_prior},
        }
        said[from_prior] = _column(BundleColumn("b", document, b""))["p_lung"]
    assert said == {True: None, False: "0.47"}
