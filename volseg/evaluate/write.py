"""An evaluation -> its files: one page, one JSON, tables as CSV, figures as PNG."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg import __version__
from volseg.evaluation.cases import CaseResult
from volseg.evaluation.page import Section, render_page
from volseg.evaluation.tables import harmless
from volseg.report.files import write_whole
from volseg.report.tables import as_json

SCHEMA_VERSION = "1.0"


def write_report(
    out: Path,
    name: str,
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    tiles: Mapping[str, str],
    notes: Sequence[str],
    document: Mapping[str, Any],
) -> Path:
    """Write `name`.html, `name`.json, tables/*.csv and figures/*.png into `out`; returns the page's path.

    Raises ValueError, before anything is written, if two tables or two figures would be one file.
    """
    files: dict[Path, str | bytes] = {}
    for section in sections:
        parts: list[tuple[Path, str | bytes]]
        parts = [(out / "tables" / f"{file_name(table.title)}.csv", table.to_csv()) for table in section.tables]
        parts += [(out / "figures" / f"{file_name(words)}.png", png) for words, png in section.figures.items()]
        for path, content in parts:
            if path in files:
                raise ValueError(f"section {section.heading!r}: {path.name} is another part's file; change its title")
            files[path] = content
    for path, content in files.items():
        write_whole(path, content)
    full = {"schema_version": SCHEMA_VERSION, "volseg": __version__, "notes": list(notes), **document}
    write_whole(out / f"{name}.json", json.dumps(as_json(full), indent=1, allow_nan=False) + "\n")
    footer = f"volseg {__version__}. The numbers behind this page: {name}.json, tables/, cases/."
    return write_whole(
        out / f"{name}.html", render_page(title, sections, lead=lead, tiles=tiles, notes=notes, footer=footer)
    )


def write_case_tables(cases: Sequence[CaseResult], out: Path, *, iou: float) -> None:
    """cases.csv (one line per volume) and lesions.csv (one per true or predicted lesion)."""
    rows: list[dict[str, Any]] = []
    lesions: list[dict[str, Any]] = []
    for case in cases:
        found, overlap = case.found(iou), case.overlap
        hits = int(found.sum())
        rows.append(
            {
                "case": case.case, "patient": case.patient, "dice": overlap.dice, "nsd": case.nsd,
                "hd95_mm": case.hd95_mm, "assd_mm": case.assd_mm, "true_mm3": overlap.true_mm3,
                "predicted_mm3": overlap.predicted_mm3, "true_lesions": len(found), "found": hits,
                "false_positives": len(case.predicted_lesions) - hits, "highest_score": case.patient_score,
            }
        )  # fmt: skip
        best = case.iou_matrix()
        for true, listed in ((True, case.true_lesions), (False, case.predicted_lesions)):
            over = best.max(axis=1 if true else 0, initial=0.0)
            lesions += [
                {
                    "case": case.case, "patient": case.patient, "side": "truth" if true else "prediction",
                    "lesion_id": lesion.id, "volume_mm3": lesion.volume_mm3,
                    "longest_axial_diameter_mm": lesion.longest_axial_diameter_mm, "kind": lesion.kind,
                    "score": lesion.score, "best_iou": float(over[n]), "found": bool(found[n]) if true else "",
                }
                for n, lesion in enumerate(listed)
            ]  # fmt: skip
    write_whole(out / "cases.csv", _csv(rows))
    write_whole(out / "lesions.csv", _csv(lesions))


def file_name(words: str) -> str:
    """`"Sensitivity by size"` -> `sensitivity_by_size`."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in words.lower())
    return "_".join(part for part in plain.split("_") if part)[:60]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return harmless(value) if isinstance(value, str) else value
