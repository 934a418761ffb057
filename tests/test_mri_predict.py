"""MRI from the command line with a network whose answer is known: bright in STIR is a lesion. What is read, written and
refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.cli import main
from volseg.errors import InputError
from volseg.inference.bundle import find_bundle, load_bundle
from volseg.inference.reads import channels_of, modality_of
from volseg.io import write_nifti
from volseg.io.cohort_check import check_cohort
from volseg.pipeline import analyse_study
from volseg.types import Study, Volume

REPOSITORY = Path(__file__).resolve().parents[1]
MRI_BUNDLE = "spine_mri_unet_segmentation"
T1_AFFINE = np.array([[4.0, 0, 0, -30], [0, 1.2, 0, -40], [0, 0, 1.2, 10], [0, 0, 0, 1]])
STIR_AFFINE = np.array([[-3.5, 0, 0, 34], [0, 1.0, 0, -45], [0, 0, 1.0, 5], [0, 0, 0, 1]])  # counted from the right


@pytest.fixture
def stir_bundle(tmp_path: Path) -> Path:
    """The shipped MRI bundle's own configs; its network is one multiplication: above 3 deviations in STIR is lesion."""
    import torch

    root = tmp_path / "stir_segmentation"
    shutil.copytree(REPOSITORY / "bundles" / MRI_BUNDLE / "configs", root / "configs")
    (root / "models").mkdir()
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config |= {"bias_correction": False, "roi_size": [16, 32, 32]}
    config["network_def"] = {"_target_": "torch.nn.Conv3d", "in_channels": 4, "out_channels": 2, "kernel_size": 1}
    path.write_text(json.dumps(config))
    net = torch.nn.Conv3d(4, 2, 1)
    with torch.no_grad():
        net.weight[:] = 0
        net.weight[1, 3] = 20.0
        net.bias[:] = torch.tensor([0.0, -60.0])
    torch.save(net.state_dict(), root / "models" / "model.pt")
    return root


def picture(affine: np.ndarray, shape: tuple[int, int, int], tissue: float, lesion: float, seed: int) -> np.ndarray:
    """Tissue everywhere, with one ball of 9 mm radius about (R 10, P 5, S 45) mm."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = np.linalg.norm(at - [10, -5, 45], axis=-1) < 9
    return np.rint(np.where(inside, lesion, tissue) + rng.normal(0, 0.1 * tissue, shape)).clip(0).astype(np.int16)


def write_series(
    path: Path, affine: np.ndarray, shape: tuple[int, int, int], tissue: float, lesion: float, seed: int = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = picture(affine, shape, tissue, lesion, seed=seed or len(path.name))
    write_nifti(path, voxels, affine, dtype=np.int16)
    return path


@pytest.fixture
def spine(tmp_path: Path) -> Path:
    """A study of T1 and STIR on two grids."""
    folder = tmp_path / "mri" / "spine"
    write_series(folder / "t1_sag.nii.gz", T1_AFFINE, (16, 60, 60), 500, 250)
    write_series(folder / "stir_sag.nii.gz", STIR_AFFINE, (18, 80, 80), 200, 1000)
    return folder


def predict(bundle: Path, *arguments: object) -> int:
    common = ["--bundle", str(bundle), "--trust-bundle", "--quiet", "--device", "cpu"]
    return main(["predict", *map(str, arguments), *common])


def test_the_masks_lie_on_the_reference_series_and_the_lesion_where_it_is(spine, stir_bundle, tmp_path, capsys):
    assert predict(stir_bundle, spine, "-o", tmp_path / "out") == 0
    out = tmp_path / "out" / "spine"
    assert {p.name for p in out.iterdir()} == {
        "lesions.nii.gz", "lesions.csv", "result.json", "preview.png", "report.html",
    }  # fmt: skip
    mask = nib.load(out / "lesions.nii.gz")
    assert mask.shape == (16, 60, 60) and np.allclose(mask.affine, T1_AFFINE)
    document = json.loads((out / "result.json").read_text())
    (lesion,) = document["lesions"]
    assert lesion["center_ras_mm"] == pytest.approx((10, -5, 45), abs=1.0)
    assert lesion["volume_mm3"] == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.25)
    assert "T1: t1_sag.nii.gz, by rule 'named T1'" in capsys.readouterr().out


def test_nothing_that_mri_cannot_know_is_said(spine, stir_bundle, tmp_path):
    predict(stir_bundle, spine, "-o", tmp_path / "out")
    out = tmp_path / "out" / "spine"
    document = json.loads((out / "result.json").read_text())
    assert document["summary"]["bone_volume_mm3"] is None and document["summary"]["by_kind"] is None
    assert document["normal_marrow"]["median_hu"] is None and "origin" not in document
    assert list(document["study"]["sequences"]) == ["T1", "STIR"]
    assert document["lesions"][0]["kind"] == "unknown" and document["lesions"][0]["mean_hu"] is None
    (row,) = csv.DictReader((out / "lesions.csv").open())
    assert row["kind"] == "unknown" and row["mean_hu"] == row["max_hu"] == "" and float(row["volume_mm3"]) > 0
    page = (out / "report.html").read_text()
    assert "Search for bone metastases in MRI (T1, STIR)" in page
    for word in (" HU", "lytic,", "sclerotic,", "bone in view", "Maximum projections"):
        assert word not in page, word
    assert any("without T1c, T2" in words for words in document["warnings"])


def test_another_reference_brings_the_masks_to_its_grid(spine, stir_bundle, tmp_path):
    assert predict(stir_bundle, spine, "--reference", "stir", "-o", tmp_path / "out") == 0
    mask = nib.load(tmp_path / "out" / "spine" / "lesions.nii.gz")
    assert mask.shape == (18, 80, 80) and np.allclose(mask.affine, STIR_AFFINE)
    assert np.asarray(mask.dataobj).any()


def test_a_channel_named_by_hand_wins_over_the_rules(spine, stir_bundle, tmp_path):
    odd = write_series(tmp_path / "elsewhere" / "series7.nii.gz", STIR_AFFINE, (18, 80, 80), 300, 1500)
    assert predict(stir_bundle, spine, "--channel", f"STIR={odd}", "-o", tmp_path / "out") == 0
    notes = json.loads((tmp_path / "out" / "spine" / "result.json").read_text())["study"]["notes"]
    assert any("series7.nii.gz, as asked for" in note for note in notes)
    assert any("left stir_sag.nii.gz: another was asked for" in note for note in notes)


def test_a_registration_is_told_in_the_result(spine, stir_bundle, tmp_path):
    assert predict(stir_bundle, spine, "--register", "-o", tmp_path / "out") == 0
    notes = json.loads((tmp_path / "out" / "spine" / "result.json").read_text())["study"]["notes"]
    assert any(note.startswith("STIR onto T1: ") for note in notes)


def make_refused(kind: str, folder: Path) -> None:
    shape = (16, 60, 60)
    if kind == "mri-no-channel":
        write_series(folder / "ax_flair.nii.gz", T1_AFFINE, shape, 500, 250)
    elif kind == "mri-several-series":
        for name in ("t1_sag", "t1_sag_repeat"):
            write_series(folder / f"{name}.nii.gz", T1_AFFINE, shape, 500, 250)
    elif kind == "mri-several-patients":
        for name in ("sub-01_T1w", "sub-02_T2w"):
            write_series(folder / f"{name}.nii.gz", T1_AFFINE, shape, 500, 250)
    elif kind in ("grids-apart", "grids-overlap-little"):
        away = T1_AFFINE.copy()
        away[2, 3] += 300 if kind == "grids-apart" else 69
        write_series(folder / "t1_sag.nii.gz", T1_AFFINE, shape, 500, 250)
        write_series(folder / "t2_sag.nii.gz", away, shape, 500, 250)


@pytest.mark.parametrize(
    "kind", ["mri-no-channel", "mri-several-series", "mri-several-patients", "grids-apart", "grids-overlap-little"]
)
def test_a_wrong_study_is_one_clear_line(kind, stir_bundle, tmp_path, capsys):
    make_refused(kind, tmp_path / "in" / "study")
    assert predict(stir_bundle, tmp_path / "in" / "study", "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith(f"volseg: {kind}: ")
    assert not (tmp_path / "out" / "study").exists()


def test_a_sequence_that_is_asked_for_and_not_there_is_one_clear_line(spine, stir_bundle, tmp_path, capsys):
    assert predict(stir_bundle, spine, "--channel", f"T2={tmp_path / 'gone.nii.gz'}", "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "path-missing" in errors[0]


def test_a_ct_given_to_the_mri_bundle_is_refused(ct, stir_bundle, tmp_path, capsys):
    assert predict(stir_bundle, ct, "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "T1, T1c, T2 or STIR" in errors[0]
    bundle = load_bundle(find_bundle(stir_bundle, trust=True), device="cpu")
    study = Study(name="ct", volumes={"CT": Volume(np.zeros((8, 8, 8)), np.eye(4))})
    with pytest.raises(InputError, match=r"wrong-modality: .* reads MRI \(T1, T1c, T2, STIR\); the study holds CT"):
        analyse_study(study, bundle)


def test_an_mri_study_given_to_a_ct_bundle_is_refused_and_the_right_bundle_named(
    spine, bright_bundle, tmp_path, capsys
):
    assert predict(bright_bundle, spine, "-o", tmp_path / "out") == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "wrong-modality" in errors[0]
    assert "MRI (STIR, T1)" in errors[0] and MRI_BUNDLE in errors[0]


def test_options_of_the_other_kind_are_wrong_usage(spine, ct, bright_bundle, stir_bundle, tmp_path, capsys):
    assert predict(bright_bundle, ct, "--register", "-o", tmp_path / "out") == 2
    assert predict(stir_bundle, spine, "--series", "1.2", "-o", tmp_path / "out") == 2
    assert predict(stir_bundle, spine, "--bundle", bright_bundle, "-o", tmp_path / "out") == 2
    assert predict(stir_bundle, spine, ct, "--channel", "T1=x", "-o", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.count("mri-option") == 2 and "bundles-mixed" in errors and "channel-for-many" in errors


def test_info_says_which_series_serves_which_channel(spine, capsys):
    assert main(["info", str(spine)]) == 0
    table = capsys.readouterr().out
    assert "used as T1" in table and "used as STIR" in table and "T2 is missing" in table


def test_the_shipped_bundle_says_what_it_reads():
    metadata = find_bundle(MRI_BUNDLE).metadata
    assert modality_of(metadata) == "MR" and channels_of(metadata) == ("T1", "T1c", "T2", "STIR")
    assert modality_of(find_bundle("bone_ct_segmamba_segmentation").metadata) == "CT"
    assert modality_of({}) == "CT" and channels_of({}) == ()


def test_info_says_the_channel_of_a_single_file_and_what_an_mri_bundle_would_take(spine, capsys):
    assert main(["info", str(spine / "t1_sag.nii.gz")]) == 0
    assert "by its name T1, if it is MRI" in capsys.readouterr().out


@pytest.mark.parametrize("config", ["inference.json", "train.json"])
def test_segmamba_is_a_switch_of_one_line(config):
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(REPOSITORY / "bundles" / MRI_BUNDLE / "configs" / config))
    names = {"@networks#unet": "SpineUNet", "@networks#segmamba": "AnyChannels"}
    assert parser["network_def"] in names
    for choice, name in names.items():
        parser["network_def"] = choice
        net = parser.get_parsed_content("network_def", instantiate=True, lazy=False).eval()
        assert type(net).__name__ == name
        image = torch.randn(1, 4, 16, 32, 32)
        image[:, 2] = 0  # no T2
        with torch.inference_mode():
            assert net(image).shape == (1, 2, 16, 32, 32)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two studies of site B and two of site A, the truth on T1's grid."""
    root = tmp_path / "cohort"
    cases = []
    for n in range(4):
        study = root / "imagesTr" / f"p{n}"
        write_series(study / "t1_sag.nii.gz", T1_AFFINE, (16, 60, 60), 500, 250, seed=100 + n)
        write_series(study / "stir_sag.nii.gz", STIR_AFFINE, (18, 80, 80), 200, 1000, seed=200 + n)
        truth = (picture(T1_AFFINE, (16, 60, 60), 1, 1000, seed=0) > 500).astype(np.uint8)
        (root / "labelsTr").mkdir(exist_ok=True)
        write_nifti(root / "labelsTr" / f"p{n}.nii.gz", truth, T1_AFFINE, dtype=np.uint8)
        cases.append({"image": f"imagesTr/p{n}", "label": f"labelsTr/p{n}.nii.gz"})
    (root / "datalist.json").write_text(json.dumps({"training": cases[:2], "testing": cases[2:]}))
    (root / "patients.csv").write_text("patient,site\np0,B\np1,B\np2,A\np3,A\n")
    return root


def test_an_mri_cohort_is_frozen_at_one_site_and_tested_at_the_other(cohort, stir_bundle, tmp_path):
    out = tmp_path / "validation"
    sites = ["--train-site", "B", "--test-site", "A", "--resamples", "50"]
    bundle = ["--bundle", str(stir_bundle), "--trust-bundle", "--device", "cpu", "--quiet"]
    assert main(["validate", "--data", str(cohort), "-o", str(out), *sites, *bundle]) == 0
    assert (out / "validation.html").is_file()
    found = json.loads((out / "predictions" / "p3" / "result.json").read_text())["lesions"]
    assert len(found) == 1


def test_one_sequence_shared_by_two_splits_is_a_leak(cohort):
    assert check_cohort(cohort)[1].ok
    shutil.copy(cohort / "imagesTr" / "p0" / "stir_sag.nii.gz", cohort / "imagesTr" / "p3" / "stir_sag.nii.gz")
    assert [p.code for p in check_cohort(cohort)[1].problems] == ["image-in-two-splits"]
