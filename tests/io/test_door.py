"""Bad input at the command line: one line with a reason code, exit code 1, and nothing left behind."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from volseg.cli import main


def _nifti(write, tmp_path: Path, spoil) -> Path:
    path = write()
    content = bytearray(gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes())
    out = tmp_path / "spoilt.nii.gz"
    out.write_bytes(spoil(content))
    return out


def _flipped(content: bytearray) -> bytes:
    packed = bytearray(gzip.compress(bytes(content)))
    packed[len(packed) // 2] ^= 0x10
    return bytes(packed)


BAD_NIFTI = {
    "truncated": lambda content: gzip.compress(bytes(content))[:-40],
    "bit flipped": _flipped,
    "header only": lambda content: gzip.compress(bytes(content[:352])),
    "a web page": lambda content: b"<!DOCTYPE html><html>not found</html>",
}
BAD_DICOM = {
    "missing slice": ({"ks": (0, 1, 3)}, "dicom-missing-slice"),
    "no positions": ({"ImagePositionPatient": None}, "dicom-no-positions"),
}


def _refused(path: Path, out: Path, capsys) -> str:
    code = main(["predict", str(path), "-o", str(out), "--quiet"])
    error = capsys.readouterr().err.strip()
    assert code == 1
    assert len(error.splitlines()) == 1 and error.startswith("volseg: ")
    assert not out.exists() or not list(out.iterdir())
    return error


@pytest.mark.parametrize("kind", BAD_NIFTI)
def test_a_spoilt_nifti_is_refused(kind, ct_nifti, tmp_path, capsys):
    error = _refused(_nifti(ct_nifti, tmp_path, BAD_NIFTI[kind]), tmp_path / "out", capsys)
    assert "spoilt.nii.gz" in error


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_numbers_are_refused(value, ct_nifti, tmp_path, capsys):
    import nibabel as nib

    image = nib.load(ct_nifti())
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[1, 1, 1] = value
    path = tmp_path / "odd.nii.gz"
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    _refused(path, tmp_path / "out", capsys)


@pytest.mark.parametrize("kind", ["missing slice", "no positions"])
def test_a_spoilt_series_is_refused_by_name(kind, series, tmp_path, capsys):
    changes, code = BAD_DICOM[kind]
    assert code in _refused(series(**changes), tmp_path / "out", capsys)


def test_two_series_are_refused_with_the_way_out(series, tmp_path, capsys):
    series()
    folder = series(prefix="t", SeriesInstanceUID="1.2.826.0.1.3680043.10.1.2")
    error = _refused(folder, tmp_path / "out", capsys)
    assert "dicom-several-series" in error and "--series" in error


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty" in _refused(tmp_path / "empty", tmp_path / "out", capsys)
