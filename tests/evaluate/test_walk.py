"""The whole walk on disk: what predict writes is what evaluate and validate read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volseg.cli import main
from volseg.io import write_nifti


@pytest.fixture
def walk(tmp_path, bone_block):
    """Two patients at each of two sites, one with the bright lesion and one without; every image differs."""
    hu, affine, lesion = bone_block
    root = tmp_path / "cohort"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    document: dict = {"labels": {"0": "background", "1": "lesion"}, "training": [], "testing": []}
    lines = ["patient,site,split"]
    for n, (site, section) in enumerate([("B", "training"), ("B", "training"), ("A", "testing"), ("A", "testing")]):
        voxels, truth = hu.copy(), lesion & bool(n % 2)
        voxels[lesion & ~truth] = 150
        voxels[0, 0, 0] = -1000 + n
        write_nifti(root / f"imagesTr/p{n}.nii.gz", voxels, affine, dtype=np.int16)
        write_nifti(root / f"labelsTr/p{n}.nii.gz", truth.astype(np.uint8), affine, dtype=np.uint8)
        document[section].append({"image": f"imagesTr/p{n}.nii.gz", "label": f"labelsTr/p{n}.nii.gz"})
        lines.append(f"p{n},{site},{section}")
    (root / "datalist.json").write_text(json.dumps(document))
    (root / "patients.csv").write_text("\n".join(lines))
    return root


def test_validate_predicts_freezes_and_tests_and_evaluate_agrees(walk, bright_bundle, capsys):
    out, bundle = walk.parent / "out", ["--bundle", str(bright_bundle), "--trust-bundle", "--device", "cpu"]
    base = ["validate", "--data", str(walk), "-o", str(out), "--quiet", "--resamples", "20"]
    assert main([*base, "--train-site", "B", "--test-site", "A", *bundle]) == 0, capsys.readouterr().err
    document = json.loads((out / "validation.json").read_text())
    answer = document["answers"]["any lesion, patient level"]["test"]["metrics"]
    assert answer["sensitivity"]["value"] == answer["specificity"]["value"] == 1.0
    assert len(document["frozen"]["weights_sha256"]) == 64
    folders = ["--pred", str(out / "predictions"), "--truth", str(walk), "-o", str(walk.parent / "again")]
    assert main(["evaluate", *folders, "--quiet", "--resamples", "20"]) == 0
    again = json.loads((walk.parent / "again/evaluation.json").read_text())
    assert again["lesions"]["sensitivity"]["0.1"]["value"] == 1.0 and again["lesions"]["scored"]
    assert {case["case"]: len(case["predicted_lesions"]) for case in again["cases"]} == {
        "p0": 0, "p1": 1, "p2": 0, "p3": 1,
    }  # fmt: skip
