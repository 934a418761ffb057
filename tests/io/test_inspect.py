"""`volseg info`: a table and a dict from headers only, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from volseg.errors import InputError
from volseg.io import format_table, inspect, to_dict


def test_a_folder_with_three_kinds_is_told_row_by_row(series) -> None:
    series()
    series(ks=range(8), prefix="thick", SeriesInstanceUID="1.2.3.4", SeriesDescription="thick\nrecon",
           ImagePositionPatient=lambda k: [0, 0, 5.0 * k])  # fmt: skip
    path = series(ks=[0], prefix="loc", SeriesInstanceUID="1.2.3.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    seen = inspect(path, series_uid="10.1.1")
    by_id = {row.id: row for row in seen.series}
    assert by_id["1.2.826.0.1.3680043.10.1.1"].used
    assert by_id["1.2.826.0.1.3680043.10.1.1"].shape == (5, 6, 4)
    assert by_id["1.2.826.0.1.3680043.10.1.1"].spacing_mm == (0.5, 0.75, 2.5)
    assert by_id["1.2.3.4"].description == r"thick\nrecon"
    by_rule = {row.id: row.why for row in inspect(path).series}
    assert by_rule["1.2.3.5"] == "a localizer"
    assert by_rule["1.2.826.0.1.3680043.10.1.1"] == "covers less"  # 10 mm of 40 mm
    table = format_table(inspect(path))
    assert table.count("\n") == 5  # title, header, rule, three rows
    assert "0.5 x 0.75 x 5" in table
    json.dumps(to_dict(seen))


def test_a_refusal_is_told_and_the_rows_stay(series) -> None:
    seen = inspect(series(ks=[0, 1, 3]))
    assert seen.refusal is not None and seen.refusal[0] == "dicom-missing-slice"
    assert len(seen.series) == 1 and not seen.series[0].used
    assert "refused: dicom-missing-slice" in format_table(seen)
    assert to_dict(seen)["refusal"]["code"] == "dicom-missing-slice"


def test_tilt_and_contrast_are_told(series) -> None:
    seen = inspect(series(ImageOrientationPatient=[1, 0, 0, 0, 0.9659258, 0.2588190], ContrastBolusAgent="Iomeron"))
    assert seen.series[0].tilt_degrees == pytest.approx(15, abs=0.01)
    assert "15.0°" in format_table(seen) and "+contrast" in format_table(seen)


def test_files_are_told_from_their_headers(ct_nifti) -> None:
    seen = inspect(ct_nifti())
    assert seen.series[0].shape == (8, 7, 6)
    assert seen.series[0].orientation == "RAS"
    assert inspect(ct_nifti(edit=lambda h: h.__setitem__("datatype", 128))).refusal is not None


def test_a_missing_path_raises(tmp_path) -> None:
    with pytest.raises(InputError):
        inspect(tmp_path / "none")


def test_looking_at_headers_imports_no_torch(ct_nifti) -> None:
    code = (
        "import sys; from volseg.io import inspect, format_table, read_study, write_nifti;"
        f"print(format_table(inspect({str(ct_nifti())!r}))); read_study({str(ct_nifti())!r});"
        "bad = {'torch', 'monai'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 x 7 x 6" in done.stdout
