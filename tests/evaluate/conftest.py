"""A two-site cohort on disk with predictions of known quality: small, anisotropic, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from volseg.io import write_nifti

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
SHAPE = (24, 16, 8)
PATIENTS = 12


def block(x: int) -> np.ndarray:
    """A lesion of 6 x 6 x 3 voxels that starts at `x`."""
    mask = np.zeros(SHAPE, bool)
    mask[x : x + 6, 4:10, 2:5] = True
    return mask


def write_result(
    folder: Path, instances: np.ndarray, scores: list[float], p_lung: list[float], *, weights: str
) -> None:
    """What `volseg predict` leaves behind, as far as an evaluation reads it."""
    folder.mkdir(parents=True)
    write_nifti(folder / "lesions.nii.gz", instances, AFFINE, dtype=np.uint16)
    lesions = [{"id": n, "score": s, "p_lung": p} for n, (s, p) in enumerate(zip(scores, p_lung, strict=True), start=1)]
    origin = {
        "p_lung": float(np.mean(p_lung)) if p_lung else 0.4, "from_prior": not p_lung, "threshold": 0.5,
        "n_lesions": len(lesions),
    }  # fmt: skip
    document = {"lesions": lesions, "origin": origin, "provenance": {"weights_sha256": weights}}
    (folder / "result.json").write_text(json.dumps(document))


@pytest.fixture
def cohort(tmp_path) -> Path:
    """`cohort`/: datalist, patients.csv, images, labels; `cohort`/pred: results. Patients p0..p5 at B, p6..p11 at A.

    Every third patient is healthy. Lesions are predicted one voxel off; p1's is missed; p0 and p6 have a false one.
    """
    root = tmp_path / "cohort"
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    rng = np.random.default_rng(2)
    document: dict = {"labels": {"0": "background", "1...": "lesion instances"}, "training": [], "testing": []}
    lines = ["patient,site,origin,age,sex,scanner,split"]
    for n in range(PATIENTS):
        section, site = ("training", "B") if n < 6 else ("testing", "A")
        lung = n % 2
        truth, predicted = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.uint16)
        if n % 3:
            truth[block(2)] = 1
        if n % 3 and n != 1:
            predicted[block(3)] = 1
        if n in (0, 6):
            predicted[block(16)] = 1
        found = int(predicted.any())
        scores, p_lung = [0.9 - 0.05 * n if n % 3 else 0.3] * found, [0.3 + 0.3 * lung + 0.02 * n] * found
        write_result(root / "pred" / f"p{n}", predicted, scores, p_lung, weights="ab" * 32)
        write_nifti(root / f"imagesTr/p{n}.nii.gz", rng.integers(-99, 99, SHAPE), AFFINE, dtype=np.int16)
        write_nifti(root / f"labelsTr/p{n}.nii.gz", truth, AFFINE, dtype=np.uint16)
        document[section].append({"image": f"imagesTr/p{n}.nii.gz", "label": f"labelsTr/p{n}.nii.gz"})
        lines.append(f"p{n},{site},{'lung' if lung else 'other'},{50 + n},{'FM'[n % 2]},{'xy'[n % 2]},{section}")
    (root / "patients.csv").write_text("\n".join(lines))
    (root / "datalist.json").write_text(json.dumps(document))
    return root
