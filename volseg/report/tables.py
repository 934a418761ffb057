"""PatientResult -> lesions.csv for people with spreadsheets, result.json for programs.

Column names and JSON keys are a promise: they carry their units, and a change of meaning raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from volseg.geometry import Affine, axis_codes, box_corners_ras_mm, box_to_ras_mm, is_axis_aligned, spacing_mm
from volseg.report.files import write_whole
from volseg.report.summary import INTENDED_USE, PatientSummary, by_size, lesions_have_origin, summarise
from volseg.types import Lesion, PatientResult

SCHEMA_VERSION = "1.0"

CSV_COLUMNS = (
    "study",
    "lesion_id",
    "kind",
    "volume_mm3",
    "longest_axial_diameter_mm",
    "mean_hu",
    "min_hu",
    "max_hu",
    "score",
    "center_right_mm",
    "center_anterior_mm",
    "center_superior_mm",
    "box_x0_voxel",
    "box_y0_voxel",
    "box_z0_voxel",
    "box_x1_voxel",
    "box_y1_voxel",
    "box_z1_voxel",
)
# Behind the others, and only where it was asked whether the tumour started in the lung.
ORIGIN_COLUMNS = ("p_lung", "patient_p_lung")


def write_lesions_csv(result: PatientResult, path: Path | str) -> Path:
    """One row per lesion, largest first; a header alone if there is none.

    Columns are `CSV_COLUMNS`, then `ORIGIN_COLUMNS` where the result says if the tumour started in the lung.
    `center_*` are RAS+ mm, boxes half-open voxel indices on the source grid. NaN and Inf are empty cells; a text that
    a spreadsheet would run as a formula is prefixed with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    with_origin = result.origin is not None or lesions_have_origin(result)
    writer.writerow((*CSV_COLUMNS, *ORIGIN_COLUMNS) if with_origin else CSV_COLUMNS)
    patient_p_lung = math.nan if result.origin is None else result.origin.p_lung
    for lesion in by_size(result):
        row = _row(result.study.name, lesion)
        if with_origin:
            row = (*row, math.nan if lesion.p_lung is None else lesion.p_lung, patient_p_lung)
        writer.writerow([_cell(value) for value in row])
    return write_whole(path, text.getvalue())


def result_document(
    result: PatientResult, files: Iterable[str | Path] = (), *, seconds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Everything about one study as JSON types; NaN and Inf become None.

    `files` are the names of the files written beside it; `seconds` adds stages timed after the result was sealed
    (writing), by name. `origin`, and `p_lung` of a lesion, are there only where the result has them. In MRI HU, kinds
    and bone volume are None, and `study.sequences` says what was read.
    """
    summary = summarise(result)
    image = result.image
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "intended_use": INTENDED_USE,
        "study": {
            "name": result.study.name,
            "site": result.study.site,
            "source": result.study.source,
            "asked": dict(result.study.asked),
            "notes": list(result.study.notes),
            "channel": image.channel,
            "series_uid": image.series_uid,
            "shape": list(image.voxels.shape),
            "spacing_mm": spacing_mm(image.affine),
            "axes": axis_codes(image.affine),
            "affine_ras": np.asarray(image.affine),
        },
        "summary": {
            "lesion_count": summary.count,
            "total_volume_mm3": summary.total_volume_mm3,
            "by_kind": summary.by_kind if result.in_hounsfield else None,
            "largest_lesion_id": summary.largest.id if summary.largest else None,
            "largest_volume_mm3": summary.largest.volume_mm3 if summary.largest else None,
            "longest_axial_diameter_mm": max(
                (lesion.longest_axial_diameter_mm for lesion in result.lesions), default=None
            ),
            "bone_volume_mm3": result.bone_volume_mm3,
        },
        "lesions": [_lesion_document(lesion, image.affine) for lesion in by_size(result)],
        "normal_marrow": {
            "median_hu": result.marrow_hu[0],
            "robust_sd_hu": result.marrow_hu[1],
            "kinds_judged_by": _judged_by(result, summary),
        },
        "provenance": asdict(result.provenance),
        "device": result.provenance.device,
        "seconds": {**result.seconds, **(seconds or {})},
        "warnings": list(result.warnings),
        "files": [str(name) for name in files],
    }
    if not result.in_hounsfield:
        # The image the masks lie on is `study.channel`; these are all that were read.
        document["study"]["sequences"] = {
            channel: {
                "shape": list(volume.voxels.shape),
                "spacing_mm": spacing_mm(volume.affine),
                "series_uid": volume.series_uid,
            }
            for channel, volume in result.study.volumes.items()
        }
    if result.origin is not None:
        document["origin"] = {**asdict(result.origin), "verdict": result.origin.verdict}
    return {key: as_json(value) for key, value in document.items()}


def _judged_by(result: PatientResult, summary: PatientSummary) -> str:
    if not result.in_hounsfield:
        return "nothing: MRI has no Hounsfield units"
    return "the patient's own marrow" if summary.marrow_known else "fixed HU limits"


def write_result_json(
    result: PatientResult,
    path: Path | str,
    *,
    files: Iterable[str | Path] = (),
    seconds: Mapping[str, float] | None = None,
) -> Path:
    """Write `result_document` as indented, strict JSON (no NaN)."""
    document = result_document(result, files, seconds=seconds)
    return write_whole(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _row(study: str, lesion: Lesion) -> tuple[Any, ...]:
    return (
        study,
        lesion.id,
        lesion.kind,
        lesion.volume_mm3,
        lesion.longest_axial_diameter_mm,
        lesion.mean_hu,
        lesion.min_hu,
        lesion.max_hu,
        lesion.score,
        *lesion.center_ras_mm,
        *lesion.box,
    )


def _lesion_document(lesion: Lesion, affine: Affine) -> dict[str, Any]:
    """`box` in voxels; `box_ras_mm` holds it in RAS+ mm. An oblique box is tighter: its corners say how it lies."""
    document = asdict(lesion) | {"box_ras_mm": np.round(box_to_ras_mm(lesion.box, affine), 3)}
    if not is_axis_aligned(affine):
        document["box_corners_ras_mm"] = np.round(box_corners_ras_mm(lesion.box, affine), 3)
    if lesion.p_lung is None:
        del document["p_lung"]
    return document


def _cell(value: Any) -> str:
    """Text of a cell: at most four decimals, no formula, no line break."""
    if isinstance(value, str):
        value = " ".join(value.split())
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    if isinstance(value, float | np.floating):
        return f"{float(value):.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""
    return str(value)


def as_json(value: Any) -> Any:
    """Anything we hold -> what JSON knows; NaN and Inf become None."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
