"""What several bundles said of one study -> one HTML page: their pictures beside each other, their lesions in pairs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from volseg.report.files import write_whole
from volseg.report.html import center_in_words
from volseg.report.summary import INTENDED_USE, volume_in_words


@dataclass(frozen=True)
class BundleColumn:
    """One bundle's answer. `document` is its result.json, `folder` the name of its folder beside the page."""

    folder: str
    document: dict[str, Any]
    preview_png: bytes


Row = tuple[int | None, ...]  # lesion id per bundle, None where that bundle has no lesion there


def write_side_by_side_page(path: Path, study: str, columns: Sequence[BundleColumn], rows: Sequence[Row]) -> Path:
    """Write the page; `rows` says which lesions of the bundles are the same place, one entry a bundle."""
    lesions = [{item["id"]: item for item in column.document["lesions"]} for column in columns]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files(__package__).joinpath("side_by_side.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        study=study,
        intended_use=INTENDED_USE,
        columns=[_column(column) for column in columns],
        rows=[[None if i is None else _cell(known[i]) for i, known in zip(row, lesions, strict=True)] for row in rows],
        agreed=sum(all(i is not None for i in row) for row in rows),
    )
    return write_whole(path, page)


def _column(column: BundleColumn) -> dict[str, Any]:
    summary = column.document["summary"]
    origin = column.document.get("origin") or {}
    return {
        "name": column.document["provenance"]["bundle"],
        "version": column.document["provenance"]["bundle_version"],
        "count": summary["lesion_count"],
        "volume": volume_in_words(summary["total_volume_mm3"]),
        "seconds": f"{sum(column.document['seconds'].values()):.0f} s",
        "p_lung": None if origin.get("from_prior", True) else f"{origin['p_lung']:.2f}",
        "report": f"{column.folder}/report.html",
        "picture": "data:image/png;base64," + base64.b64encode(column.preview_png).decode("ascii"),
        "warnings": column.document["warnings"],
    }


def _cell(lesion: dict[str, Any]) -> dict[str, Any]:
    p_lung = lesion.get("p_lung")
    return {
        "id": lesion["id"],
        "kind": "lesion" if lesion["kind"] == "unknown" else lesion["kind"],
        "volume": volume_in_words(lesion["volume_mm3"]),
        "score": f"{lesion['score']:.2f}",
        "center": center_in_words(tuple(lesion["center_ras_mm"])),
        "p_lung": None if p_lung is None else f"{p_lung:.2f}",
    }
