"""Every shipped bundle under MONAI's own commands, from another working directory, as people run it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch

from volseg.cli import main
from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, shipped_bundles
from volseg.inference.reads import MR, modality_of
from volseg.io import write_nifti
from volseg.phantoms.mri import MriOptions, mri_phantom
from volseg.synth import PHANTOM, SynthOptions, write_cases

SMALL = {"lesions": (1, 2), "distractors": (0, 0), "healthy": 0.0, "block_mm": 64.0}


every_bundle = pytest.mark.parametrize("bundle", shipped_bundles().values(), ids=lambda path: path.name)
# Settings under which any weights mark something: two empty masks would agree for nothing.
LENIENT = {"threshold": 0.05, "seed_threshold": None, "operating_score": 0.001, "min_volume_mm3": 1.0}
FIGURES = {
    "bone_ct_segmamba_segmentation": ("lesion_dice", "lesion_sensitivity", "false_positives_per_case"),
    "spine_mri_unet_segmentation": ("lesion_dice", "lesion_sensitivity", "false_positives_per_case"),
    "bone_ct_mask_rcnn_detection": ("mAP_10_50", "froc_mean", "sensitivity", "false_positives_per_case", "mask_dice"),
    "bmseg_bmsmm_net_segmentation": ("lesion_dice", "lesion_sensitivity", "false_positives_per_case"),
    "bmseg_mfp_deeplabv3plus_segmentation": ("lesion_dice", "lesion_sensitivity", "false_positives_per_case"),
}


@pytest.fixture(scope="module")
def bundle() -> Path:
    return shipped_bundles()[DEFAULT_BUNDLE]


def reads_mri(bundle: Path) -> bool:
    return modality_of(find_bundle(bundle).metadata) == MR


@pytest.fixture
def cases(bundle, request) -> Path:
    """Two small cases under `training`, of the kind the bundle reads, one of them again under `testing`."""
    return request.getfixturevalue("mri_cases" if reads_mri(bundle) else "ct_cases")


@pytest.fixture(scope="module")
def mri_cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mri_cases")
    for number in range(2):
        write_mri_study(folder / "imagesTr" / f"case{number}", folder / "labelsTr" / f"case{number}.nii.gz", number)
    case = [{"image": f"imagesTr/case{n}", "label": f"labelsTr/case{n}.nii.gz"} for n in range(2)]
    (folder / "datalist.json").write_text(json.dumps({"training": case, "testing": case[:1]}))
    return folder


def write_mri_study(study: Path, label: Path, seed: int) -> tuple[int, ...]:
    """A small phantom, a file per sequence; returns the first one's shape."""
    small = MriOptions(size_mm=(40.0, 110.0, 70.0), spacing_mm=(4.0, 1.5, 1.5), lesions=2, diameters_mm=(14.0, 22.0))
    phantom = mri_phantom(np.random.default_rng(seed), small)
    study.mkdir(parents=True)
    label.parent.mkdir(parents=True, exist_ok=True)
    for channel, volume in phantom.volumes.items():
        write_nifti(study / f"{channel}.nii.gz", volume.voxels, volume.affine, dtype=np.int16)
    first = phantom.volumes["T1"]
    write_nifti(label, phantom.instances, first.affine, dtype=np.uint16)
    return first.voxels.shape


@pytest.fixture(scope="module")
def ct_cases(tmp_path_factory) -> Path:
    """Two small phantom blocks under `training`, one of them again under `testing`."""
    folder = tmp_path_factory.mktemp("cases")
    write_cases({PHANTOM: None}, folder, SynthOptions(n=2, seed=5, **SMALL), progress=False)
    path = folder / "datalist.json"
    document = json.loads(path.read_text())
    document["testing"] = document["training"][:1]
    path.write_text(json.dumps(document))
    return folder


def _configs(bundle: Path, *names: str) -> list[str]:
    return [str(bundle / "configs" / name) for name in names]


def write_ct_block(path: Path) -> tuple[int, ...]:
    rng = np.random.default_rng(8)
    hu = np.full((70, 60, 40), 40.0)
    hu[:3] = -1000
    hu[15:55, 12:48, 5:35] = 500
    hu[18:52, 15:45, 7:33] = 160
    hu[28:40, 24:36, 14:24] = 700
    hu += rng.normal(0, 12, hu.shape)
    affine = np.diag([-1.0, -1.0, 1.5, 1.0])
    write_nifti(path, np.rint(hu).astype(np.int16), affine, dtype=np.int16)
    return hu.shape


@every_bundle
def test_inference_from_elsewhere_gives_the_mask_of_volseg_predict(bundle, tmp_path):
    same_from_elsewhere(bundle, tmp_path, LENIENT)


@pytest.mark.parametrize("name", ["bone_ct_segmamba_segmentation", "bmseg_bmsmm_net_segmentation"])
def test_a_network_trained_on_the_scan_gives_one_mask_both_ways_too(name, tmp_path):
    bundle = shipped_bundles()[name]
    adapted = same_from_elsewhere(bundle, tmp_path / "with", LENIENT | {"adapt": True, "adapt_steps": 2})
    as_shipped = same_from_elsewhere(bundle, tmp_path / "without", LENIENT)
    assert not np.array_equal(adapted, as_shipped)


@pytest.mark.parametrize("name", ["bone_ct_segmamba_segmentation", "bone_ct_mask_rcnn_detection"])
def test_a_mean_of_unlike_networks_gives_one_mask_both_ways_too(name, tmp_path):
    bundle = shipped_bundles()[name]
    together = same_from_elsewhere(bundle, tmp_path / "with", LENIENT | {"ensemble": True})
    as_shipped = same_from_elsewhere(bundle, tmp_path / "without", LENIENT)
    assert not np.array_equal(together, as_shipped)


def same_from_elsewhere(bundle: Path, tmp_path: Path, changes: dict) -> np.ndarray:
    """The mask of `monai.bundle run` and of `volseg predict` with a config changed where it has these entries."""
    studies = tmp_path / "studies"
    studies.mkdir(parents=True)
    study = studies / ("block" if reads_mri(bundle) else "block.nii.gz")
    shape = write_mri_study(study, tmp_path / "truth.nii.gz", 5) if reads_mri(bundle) else write_ct_block(study)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    lenient = tmp_path / f"lenient_{bundle.name}"
    shutil.copytree(bundle, lenient)
    path = lenient / "configs" / "inference.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {key: value for key, value in changes.items() if key in config}))
    command = [
        sys.executable, "-m", "monai.bundle", "run",
        "--config_file", *_configs(lenient, "inference.json"), "--bundle_root", str(lenient),
        "--dataset_dir", str(studies), "--output_dir", str(tmp_path / "monai"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = ["predict", str(study), "-o", str(tmp_path / "ours"), "--quiet"]
    assert main([*ours, "--bundle", str(lenient), "--trust-bundle"]) == 0
    theirs = nib.load(next((tmp_path / "monai").rglob("*.nii.gz")))
    ours = nib.load(tmp_path / "ours" / "block" / "lesions.nii.gz")
    assert theirs.shape == ours.shape == shape
    assert np.allclose(theirs.affine, ours.affine, atol=1e-5)
    assert np.array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
    assert np.asarray(ours.dataobj).any(), "an empty mask would prove nothing"
    return np.asarray(ours.dataobj)


@every_bundle
def test_a_few_training_steps_write_weights_that_load_and_resume(bundle, cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = {
        "config_file": _configs(bundle, "train.json")[0],
        "bundle_root": str(bundle),
        "dataset_dir": str(cases),
        "ckpt_dir": str(tmp_path / "new"),
        "iterations_per_epoch": 2,
        "batch_size": 1,
        "roi_size": [32, 32, 32],
        "seed": 1,
    }
    monai.bundle.run(**common, epochs=1)
    state = torch.load(tmp_path / "new" / "model.pt", weights_only=True)
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in shipped.items()}
    assert all(torch.isfinite(v).all() for v in state.values())
    monai.bundle.run(**common, epochs=2)
    assert torch.load(tmp_path / "new" / "training_state.pt", weights_only=True)["epoch"] == 2


@every_bundle
def test_evaluate_writes_the_bundles_figures(bundle, cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monai.bundle.run(
        config_file=_configs(bundle, "inference.json", "evaluate.json"),
        bundle_root=str(bundle),
        dataset_dir=str(cases),
        output_dir=str(tmp_path / "eval"),
    )
    table = (tmp_path / "eval" / "metrics.csv").read_text()
    for name in FIGURES[bundle.name]:
        assert name in table


def test_metadata_verifies_against_monais_schema(bundle, shared, tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(shared / "schemas" / "meta_schema_20240725.json", schema)
    monai.bundle.verify_metadata(meta_file=_configs(bundle, "metadata.json"), filepath=str(schema))


def test_net_in_out_verifies(bundle):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=_configs(bundle, "metadata.json")[0],
        config_file=_configs(bundle, "inference.json")[0],
        device="cpu",
    )


@pytest.mark.slow
def test_ckpt_export_makes_a_torchscript_that_agrees(bundle, tmp_path):
    exported = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(exported),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=_configs(bundle, "metadata.json")[0],
        config_file=_configs(bundle, "inference.json")[0],
        key_in_ckpt="",
        use_trace=True,
        input_shape=[1, 3, 32, 32, 32],
    )
    network = torch.jit.load(exported).eval()
    x = torch.randn(1, 3, 32, 32, 32)
    parser = monai.bundle.ConfigParser()
    parser.read_config(_configs(bundle, "inference.json")[0])
    plain = parser.get_parsed_content("network_def").eval()
    plain.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.inference_mode():
        assert torch.allclose(network(x), plain(x), atol=1e-3)
