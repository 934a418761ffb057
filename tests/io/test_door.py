"""Bad input at the command line: one line with a reason code, exit code 1, and nothing left behind."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from volseg.cli import main

looking = importlib.import_module("volseg.io.inspect")  # the module: the package has a function of that name


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


def test_a_name_that_the_terminal_cannot_show_is_told_in_escapes(series, monkeypatch):
    """Japanese names in a log that is written as ASCII: `LC_ALL=C`, cron."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    folder = series(SpecificCharacterSet="ISO_IR 192", SeriesDescription="胸部")
    assert main(["info", str(folder)]) == 0
    screen.flush()
    assert rb"\u80f8\u90e8" in screen.buffer.getvalue()


def test_the_index_of_a_disc_is_told_to_be_one(series, capsys):
    folder = series(SOPClassUID="1.2.840.10008.1.3.10", Rows=None, Columns=None, PixelData=None)
    (folder / "s000").rename(folder / "DICOMDIR")
    assert main(["info", str(folder / "DICOMDIR")]) == 1
    assert "give the folder it lies in" in capsys.readouterr().out


def test_what_pydicom_says_of_each_file_is_told_only_when_asked(series, caplog):
    """In a process of its own: pydicom sets the level of its log when it is imported, after the front door did."""
    folder = series(SpecificCharacterSet="ISO_IR 999")
    command = [sys.executable, "-m", "volseg.cli", "info", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert told.stderr == "" and "5 x 6 x 4" in told.stdout
    assert main(["info", "--verbose", str(folder)]) == 0
    assert any("Unknown encoding" in record.message for record in caplog.records if record.name == "pydicom")


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    return folder.with_suffix(".zip")


def test_a_run_that_is_told_to_end_leaves_no_unpacked_patient_behind(series, tmp_path, monkeypatch):
    archive = zipped(series())
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    unpacked = []

    def ended(folder):
        unpacked.append(len(list(folder.iterdir())))
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal came too late")

    monkeypatch.setattr(looking, "gather", ended)
    with pytest.raises(SystemExit) as stop:
        main(["info", str(archive)])
    assert stop.value.code == 143
    assert unpacked == [4] and not any((tmp_path / "t").iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_somebody_else_sees_to_stays_theirs(ct_nifti, monkeypatch):
    path, seen = str(ct_nifti()), []
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        theirs = signal.getsignal(signal.SIGTERM)
        look = looking.what_is
        monkeypatch.setattr(looking, "what_is", lambda p: seen.append(signal.getsignal(signal.SIGTERM)) or look(p))
        assert main(["info", path]) == 0
        assert seen[0] is theirs is signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_command_line_runs_beside_the_main_thread(ct_nifti, capsys):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["info", str(ct_nifti())])))
    thread.start()
    thread.join()
    assert codes == [0]
