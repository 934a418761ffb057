"""The whole walk with a network whose answer is known: what is found, where it lies, what is written."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import InputError, UsageError
from volseg.inference import symmetry
from volseg.inference.bundle import find_bundle, load_bundle
from volseg.inference.segment import segment_volume
from volseg.pipeline import OutputOptions, analyse_study, foreign, replaceable, write_results
from volseg.types import Study, Volume

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def result(bright_bundle, bone_block):
    hu, affine, _ = bone_block
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    return analyse_study(Study(name="block", volumes={"CT": Volume(hu, affine)}), bundle)


def test_the_lesion_is_found_where_it_lies_on_an_lps_grid(result, bone_block):
    hu, _, lesion = bone_block
    assert result.instances.shape == hu.shape
    found = result.instances == 1
    dice = 2 * (found & lesion).sum() / (found.sum() + lesion.sum())
    assert dice > 0.8  # one interpolation to 1 mm and back blurs the faces of a box
    # Voxel centers of the lesion: x 24..33, y 24..31, z 12..16 -> RAS by hand.
    assert result.lesions[0].center_ras_mm == pytest.approx((40 - 28.5, 30 - 1.25 * 27.5, -20 + 2 * 14), abs=0.5)
    assert result.lesions[0].center_ras_mm[0] > 0, "the lesion is on the patient's right"
    # A face that falls between two voxels of the 1 mm grid is cut half a voxel short, for the threshold is not midway.
    assert result.lesions[0].volume_mm3 == pytest.approx(1000, rel=0.35)
    assert result.lesions[0].kind == "sclerotic"


def test_the_marrow_is_the_patients_own(result):
    assert result.marrow_hu[0] == pytest.approx(150, abs=15)


def test_every_file_is_written_and_lies_on_the_source_grid(result, bone_block, tmp_path):
    hu, affine, _ = bone_block
    folder = write_results(result, tmp_path / "out" / result.study.name, OutputOptions(probability=True))
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "lesions.nii.gz", "probability.nii.gz", "lesions.csv", "result.json", "preview.png", "report.html",
    }  # fmt: skip
    image = nib.load(folder / "lesions.nii.gz")
    assert image.shape == hu.shape and image.get_data_dtype() == np.uint16
    assert np.allclose(image.affine, affine)
    document = json.loads((folder / "result.json").read_text())
    assert document["schema_version"]
    assert len(document["lesions"]) == 1
    assert len(document["provenance"]["weights_sha256"]) == 64
    assert set(document["files"]) == names
    assert {"preprocessing", "network", "postprocessing", "measuring", "writing"} <= set(document["seconds"])
    rows = list(csv.DictReader((folder / "lesions.csv").open()))
    assert len(rows) == 1
    assert not list((tmp_path / "out").glob(".*")), "no partial folder stays"


def test_results_are_not_overwritten_unless_asked(result, tmp_path):
    write_results(result, tmp_path / result.study.name)
    with pytest.raises(UsageError, match="output-exists"):
        write_results(result, tmp_path / result.study.name)
    folder = write_results(result, str(tmp_path / result.study.name), OutputOptions(overwrite=True))
    assert (folder / "report.html").is_file()
    (folder / "letters").mkdir()
    with pytest.raises(UsageError, match=r"output-not-a-result.*\(it holds letters\)"):
        write_results(result, folder, OutputOptions(overwrite=True))
    (folder / "letters").rmdir()
    (folder / ".DS_Store").touch()
    assert replaceable(folder), "what a system leaves behind is nobody's"
    (folder / "radiologist.txt").write_text("seen")
    assert not replaceable(folder) and foreign(folder) == ["radiologist.txt"]
    with pytest.raises(UsageError, match=r"holds radiologist\.txt\); nothing"):
        write_results(result, folder, OutputOptions(overwrite=True))
    assert (folder / "radiologist.txt").is_file()


def test_a_file_in_the_place_of_a_result_is_refused(result, tmp_path):
    (tmp_path / "block").write_text("mine")
    with pytest.raises(UsageError, match="not a result of volseg alone; nothing"):
        write_results(result, tmp_path / "block", OutputOptions(overwrite=True))


def test_what_a_result_lists_as_its_own_can_be_replaced(tmp_path):
    """Written by another version, which had more files."""
    (tmp_path / "result.json").write_text('{"files": ["result.json", "lesions_dicom.dcm"]}')
    (tmp_path / "lesions_dicom.dcm").touch()
    assert replaceable(tmp_path)
    (tmp_path / "result.json").write_text("[]")
    assert foreign(tmp_path) == ["lesions_dicom.dcm"]


def test_what_another_run_left_half_written_neither_stops_this_one_nor_goes(result, tmp_path):
    """Process numbers repeat: in a container volseg is process 1 every time."""
    left = tmp_path / f".block.partial-{os.getpid()}"
    left.mkdir()
    (left / "lesions.nii.gz").touch()
    folder = write_results(result, tmp_path / "block")
    assert sorted(path.name for path in tmp_path.iterdir() if "block" in path.name) == [left.name, "block"]
    assert (left / "lesions.nii.gz").is_file()
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask, "as mkdir would make it"


def test_a_failure_while_writing_leaves_nothing(result, tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volseg.pipeline.write_report", full_disk)
    with pytest.raises(InputError, match="No space left"):
        write_results(result, tmp_path / "out" / result.study.name)
    assert not list((tmp_path / "out").iterdir())


def test_a_study_without_lesions_is_a_success(bright_bundle, bone_block, tmp_path):
    hu, affine, lesion = bone_block
    hu = np.where(lesion, 150, hu).astype(np.int16)
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    result = analyse_study(Study(name="healthy", volumes={"CT": Volume(hu, affine)}), bundle)
    assert result.lesions == () and not result.instances.any()
    folder = write_results(result, tmp_path / result.study.name)
    assert json.loads((folder / "result.json").read_text())["lesions"] == []
    assert (folder / "report.html").stat().st_size > 1000


def test_a_view_without_bone_says_that_no_lesion_means_nothing(bright_bundle):
    hu = np.full((40, 40, 20), 40, np.int16)
    hu[:4] = -1000
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    result = analyse_study(Study(name="soft", volumes={"CT": Volume(hu, np.diag([1.0, 1.0, 2.0, 1.0]))}), bundle)
    assert result.lesions == ()
    assert any("no bone" in warning for warning in result.warnings)


def test_what_a_bundle_confesses_stands_in_the_result(bright_bundle, bone_block):
    path = bright_bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"notice": "finds bright things only"}))
    hu, affine, _ = bone_block
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    result = analyse_study(Study(name="block", volumes={"CT": Volume(hu, affine)}), bundle)
    assert result.warnings[0] == "finds bright things only"


def test_a_study_without_ct_is_refused(bright_bundle):
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu")
    study = Study(name="mr", volumes={"MR": Volume(np.zeros((4, 4, 4)), np.eye(4), channel="MR")})
    with pytest.raises(InputError, match="wrong-modality"):
        analyse_study(study, bundle)


def test_a_bundle_that_carries_a_head_answers_where_the_tumour_came_from(bright_bundle, bone_block, tmp_path):
    hu, affine, _ = bone_block
    carrier = REPOSITORY / "bundles" / "bone_ct_mask_rcnn_detection" / "configs" / "metadata.json"
    heads = {key: value for key, value in json.loads(carrier.read_text()).items() if key.startswith("origin")}
    assert heads.keys() == {"origin", "origin_clinical"}
    path = bright_bundle / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | heads))
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    result = analyse_study(Study(name="block", volumes={"CT": Volume(hu, affine)}), bundle)
    assert result.origin is not None and not result.origin.from_prior
    assert 0 < result.origin.p_lung < 1 and 0 < result.lesions[0].p_lung < 1
    assert result.origin.clinical_p_lung is not None
    folder = write_results(result, tmp_path / "block")
    document = json.loads((folder / "result.json").read_text())
    assert document["origin"]["p_lung"] == pytest.approx(result.origin.p_lung)
    assert "p_lung" in next(csv.reader((folder / "lesions.csv").open()))
    empty = analyse_study(Study(name="empty", volumes={"CT": Volume(np.where(hu > 700, 150, hu), affine)}), bundle)
    assert empty.lesions == () and empty.origin.from_prior and empty.origin.verdict == "no lesion"


def test_marks_left_out_for_their_twins_are_said(bright_bundle, bone_block, monkeypatch):
    monkeypatch.setattr(symmetry, "find_midline", lambda *_: symmetry.Midline(np.array([1.0, 0, 0]), 20.0, 1.0))
    monkeypatch.setattr(symmetry, "marks_with_a_twin", lambda *_: [1])
    hu, affine, _ = bone_block
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#progress": False})
    result = analyse_study(Study(name="block", volumes={"CT": Volume(hu, affine)}), bundle)
    assert len(result.lesions) == 0
    assert any("twin on the other side of the body: 1" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    "name", ["bone_ct_segmamba_segmentation", "bone_ct_mask_rcnn_detection", "bmseg_bmsmm_net_segmentation"]
)
def test_air_put_around_a_scan_changes_no_answer(name, bone_block):
    hu, affine, _ = bone_block
    before, after = (4, 3, 2), (0, 5, 3)
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ before
    air = np.pad(hu, list(zip(before, after, strict=True)), constant_values=hu.min())
    bundle = load_bundle(find_bundle(name), device="cpu", overrides={"inferer#progress": False})
    alone, padded = (segment_volume(Volume(v, a), bundle) for v, a in ((hu, affine), (air, moved)))
    scan = tuple(slice(n, n + size) for n, size in zip(before, hu.shape, strict=True))
    assert alone.probability.max() > 0.1, "something is there to be compared"
    for field in ("instances", "probability", "bone"):
        ours, theirs = getattr(alone, field), getattr(padded, field)
        assert np.allclose(theirs[scan], ours, atol=1e-5), field
        assert np.count_nonzero(theirs) == np.count_nonzero(theirs[scan]), field


def test_a_network_that_was_trained_on_the_scan_says_so_and_still_finds_the_lesion(bright_bundle, bone_block):
    hu, affine, lesion = bone_block
    asked = {"inferer#progress": False, "adapt": True, "adapt_steps": 2}
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides=asked)
    result = analyse_study(Study(name="block", volumes={"CT": Volume(hu, affine)}), bundle)
    said = [warning for warning in result.warnings if "trained on this scan itself" in warning]
    assert len(said) == 1 and " x 2 steps" in said[0]
    assert result.provenance.settings == {"adapt": True, "adapt_steps": 2}
    assert (result.instances[lesion] > 0).mean() > 0.5
