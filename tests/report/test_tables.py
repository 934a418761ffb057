"""Tables: stable columns, no formula, no NaN, nothing half-written."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from volseg.report import tables
from volseg.report.files import write_whole
from volseg.report.summary import origin_in_words, summarise, volume_in_words
from volseg.report.tables import (
    CSV_COLUMNS,
    ORIGIN_COLUMNS,
    SCHEMA_VERSION,
    result_document,
    write_lesions_csv,
    write_result_json,
)
from volseg.types import Lesion, PatientOrigin, PatientResult, Provenance, Study, Volume

PROVENANCE = Provenance(
    bundle="bone_ct_segmamba_segmentation",
    bundle_version="0.1.0",
    weights_sha256="ab" * 32,
    volseg_version="0.1.0",
    torch_version="2.13.0",
    monai_version="1.6.1",
    device="cpu",
    precision="float32",
)


def a_lesion(id_: int, volume_mm3: float, **changes) -> Lesion:
    lesion = Lesion(
        id=id_,
        score=0.9,
        center_ras_mm=(-12.5, 3.0, 101.25),
        volume_mm3=volume_mm3,
        longest_axial_diameter_mm=12.34567,
        mean_hu=55.0,
        min_hu=-20.0,
        max_hu=210.0,
        kind="lytic",
        box=(1, 2, 3, 4, 5, 6),
    )
    return replace(lesion, **changes)


def a_result(*lesions: Lesion, name: str = "case1", affine: np.ndarray | None = None, **changes) -> PatientResult:
    shape = (6, 7, 8)
    grid = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    volume = Volume(np.zeros(shape, np.int16), grid, series_uid="1.2.3")
    result = PatientResult(
        study=Study(name=name, volumes={"CT": volume}, source="case1.nii.gz", notes=("read one file",)),
        instances=np.zeros(shape, np.uint16),
        probability=np.zeros(shape, np.float32),
        lesions=lesions,
        provenance=PROVENANCE,
        marrow_hu=(180.0, 60.0),
        seconds={"read": 0.5, "infer": 60.0},
    )
    return replace(result, **changes)


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_per_lesion_largest_first_and_units_in_its_names(tmp_path):
    path = write_lesions_csv(
        a_result(a_lesion(1, 100.0), a_lesion(2, 900.0, kind="mixed")), tmp_path / "new" / "lesions.csv"
    )
    rows = rows_of(path)
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["lesion_id"] for row in rows] == ["2", "1"]
    assert rows[0]["kind"] == "mixed"
    assert rows[1]["longest_axial_diameter_mm"] == "12.3457"
    assert rows[1]["min_hu"] == "-20"
    assert [rows[0][f"center_{w}_mm"] for w in ("right", "anterior", "superior")] == ["-12.5", "3", "101.25"]
    assert [rows[0][f"box_{c}_voxel"] for c in ("x0", "y0", "z0", "x1", "y1", "z1")] == list("123456")


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "\t=1+1", "\r\n=1+1"])
def test_no_csv_cell_can_start_a_formula(name, tmp_path):
    path = write_lesions_csv(a_result(a_lesion(1, 1.0), name=name), tmp_path / "lesions.csv")
    (row,) = rows_of(path)
    assert row["study"].startswith("'")


def test_csv_of_nothing_is_its_header_and_nan_is_an_empty_cell(tmp_path):
    assert write_lesions_csv(a_result(), tmp_path / "a.csv").read_text() == ",".join(CSV_COLUMNS) + "\n"
    (row,) = rows_of(write_lesions_csv(a_result(a_lesion(1, 1.0, mean_hu=math.nan)), tmp_path / "b.csv"))
    assert row["mean_hu"] == ""


def test_document_carries_schema_summary_provenance_and_time(tmp_path):
    result = a_result(a_lesion(1, 1500.0), a_lesion(2, 500.0, kind="sclerotic", longest_axial_diameter_mm=30.0))
    written = ["lesions.nii.gz", tmp_path / "x"]
    path = write_result_json(result, tmp_path / "result.json", files=written, seconds={"write": 1.5})
    read = json.loads(path.read_text())
    assert read == result_document(result, written, seconds={"write": 1.5})
    assert read["schema_version"] == SCHEMA_VERSION
    assert read["summary"]["lesion_count"] == 2
    assert read["summary"]["total_volume_mm3"] == 2000.0
    assert read["summary"]["by_kind"] == {"lytic": 1, "sclerotic": 1, "mixed": 0}
    assert read["summary"]["largest_lesion_id"] == 1
    assert read["summary"]["longest_axial_diameter_mm"] == 30.0
    assert read["provenance"]["weights_sha256"] == "ab" * 32
    assert read["seconds"] == {"read": 0.5, "infer": 60.0, "write": 1.5}
    assert read["study"]["spacing_mm"] == [1.0, 2.0, 3.0]
    assert read["study"]["axes"] == "RAS"
    assert read["study"]["notes"] == ["read one file"]
    assert read["files"] == ["lesions.nii.gz", str(tmp_path / "x")]
    assert read["lesions"][1]["center_ras_mm"] == [-12.5, 3.0, 101.25]


def test_boxes_come_in_voxels_and_in_millimetres_and_on_an_oblique_grid_with_all_corners():
    lesion = a_lesion(1, 10.0, box=(1, 0, 5, 3, 1, 6))
    (straight,) = result_document(a_result(lesion))["lesions"]
    assert straight["box"] == [1, 0, 5, 3, 1, 6] and "box_corners_ras_mm" not in straight
    assert straight["box_ras_mm"] == [0.5, -1.0, 13.5, 2.5, 1.0, 16.5]  # voxels of 1 x 2 x 3 mm
    turn = np.deg2rad(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    (oblique,) = result_document(a_result(lesion, affine=affine))["lesions"]
    corners = np.array(oblique["box_corners_ras_mm"])
    assert corners.shape == (8, 3)
    assert oblique["box_ras_mm"] == pytest.approx([*corners.min(axis=0), *corners.max(axis=0)], abs=0.002)
    assert np.linalg.norm(corners[0] - corners[4]) == pytest.approx(2, abs=0.002)  # 2 voxels, whatever the turn


def test_nan_and_infinity_become_null(tmp_path):
    result = a_result(a_lesion(1, 1.0, mean_hu=math.nan, max_hu=np.float32("inf")), marrow_hu=(math.nan, math.nan))
    read = json.loads(write_result_json(result, tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert read["lesions"][0]["mean_hu"] is None
    assert read["lesions"][0]["max_hu"] is None
    assert read["normal_marrow"] == {
        "median_hu": None,
        "robust_sd_hu": None,
        "kinds_judged_by": "fixed HU limits",
    }


def test_a_study_without_lesions_is_a_document_too(tmp_path):
    read = json.loads(write_result_json(a_result(), tmp_path / "r.json").read_text())
    assert read["summary"]["lesion_count"] == 0
    assert read["summary"]["largest_lesion_id"] is None
    assert read["lesions"] == []


def test_what_fails_while_writing_leaves_no_file(tmp_path, monkeypatch):
    target = write_whole(tmp_path / "report", "old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(tables.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(target, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["report"]
    assert target.read_text() == "old"


def test_a_name_that_is_no_text_does_not_lose_the_result(tmp_path):
    """What Python makes of the bytes b"M\\xfcller" on a UTF-8 machine."""
    path = write_whole(tmp_path / "report", "M\udcfcller")
    assert path.read_text(encoding="utf-8") == "M\\udcfcller"


def test_where_the_tumour_started_is_in_csv_and_json_where_it_was_asked(tmp_path):
    origin = PatientOrigin(0.73, 2, False, 0.41, "mean of lesion logits", 0.6)
    result = a_result(a_lesion(1, 900.0, p_lung=0.8), a_lesion(2, 100.0), origin=origin)
    path = write_lesions_csv(result, tmp_path / "lesions.csv")
    rows = rows_of(path)
    assert tuple(rows[0]) == (*CSV_COLUMNS, *ORIGIN_COLUMNS)
    assert [(row["p_lung"], row["patient_p_lung"]) for row in rows] == [("0.8", "0.73"), ("", "0.73")]
    read = json.loads(write_result_json(result, tmp_path / "r.json").read_text())
    assert read["origin"] == {
        "p_lung": 0.73,
        "n_lesions": 2,
        "from_prior": False,
        "threshold": 0.41,
        "method": "mean of lesion logits",
        "clinical_p_lung": 0.6,
        "verdict": "lung",
    }
    assert read["lesions"][0]["p_lung"] == 0.8 and "p_lung" not in read["lesions"][1]


def test_where_it_was_not_asked_csv_and_json_are_what_they_were(tmp_path):
    result = a_result(a_lesion(1, 900.0))
    assert tuple(rows_of(write_lesions_csv(result, tmp_path / "lesions.csv"))[0]) == CSV_COLUMNS
    read = result_document(result)
    assert "origin" not in read and "p_lung" not in read["lesions"][0]


def test_a_prior_is_not_called_an_answer():
    nobody = PatientOrigin(p_lung=0.45, n_lesions=0, from_prior=True, threshold=0.4)
    assert nobody.verdict == "no lesion"
    assert origin_in_words(nobody).startswith("Not answered: no lesion was found")
    assert result_document(a_result(origin=nobody))["origin"]["verdict"] == "no lesion"
    assert origin_in_words(PatientOrigin(0.4, 1, False, 0.4)) == "Rather lung: probability 0.40, threshold 0.40"
    assert origin_in_words(PatientOrigin(0.39, 1, False, 0.4)).startswith("Rather not lung")


def test_headline_in_words():
    assert summarise(a_result()).headline == "No lesion found"
    assert summarise(a_result(a_lesion(1, 350.0))).headline == "1 lesion, 0.35 mL"
    two = summarise(a_result(a_lesion(1, 12_000.0), a_lesion(2, 400.0, kind="mixed")))
    assert two.headline == "2 lesions, 12.4 mL"
    assert two.kinds_in_words == "1 lytic, 1 mixed"
    assert volume_in_words(1000.0) == "1.0 mL"
