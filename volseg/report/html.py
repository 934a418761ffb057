"""PatientResult -> report.html: one file that needs nothing else, for the clinician and for hospital IT."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from volseg.geometry import axis_codes, spacing_mm
from volseg.report.drawing import KIND_COLOURS
from volseg.report.figures import lesion_views, overview
from volseg.report.files import write_whole
from volseg.report.summary import (
    INTENDED_USE,
    MOST_PICTURED,
    by_size,
    lesions_have_origin,
    origin_in_words,
    pictured,
    summarise,
    volume_in_words,
)
from volseg.report.views import Upright, upright
from volseg.types import Lesion, PatientResult, Provenance

MOST_ROWS = 500
PROVENANCE_NAMES = {
    "bundle": "Model",
    "bundle_version": "Model version",
    "weights_sha256": "Weights (sha256)",
    "volseg_version": "volseg",
    "torch_version": "PyTorch",
    "monai_version": "MONAI",
    "device": "Device",
    "precision": "Precision",
    "settings": "Settings",
    "other_weights": "Other networks heeded",
    "study_fingerprint": "Study (fingerprint of its files)",
}


def write_report(result: PatientResult, path: Path | str, *, seconds: Mapping[str, float] | None = None) -> Path:
    """Write one self-contained HTML file: summary, overview, table, pictures of the 20 largest lesions, provenance.

    `seconds` adds stages timed after the result was sealed, by name. No script, no link to anywhere, every text
    escaped; a content security policy in the page forbids anything but its own pictures and styles.
    """
    return write_whole(path, render_report(result, seconds=seconds))


def render_report(result: PatientResult, *, seconds: Mapping[str, float] | None = None) -> str:
    """What `write_report` writes."""
    summary, grid, image = summarise(result), upright(result), result.image
    largest_volume_mm3 = summary.largest.volume_mm3 if summary.largest else 1.0
    with_pictures = pictured(result)
    ids_with_pictures = {lesion.id for lesion in with_pictures}
    all_seconds = {**result.seconds, **(seconds or {})}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("template.html.j2").read_text("utf-8"))
    return template.render(
        intended_use=INTENDED_USE,
        study=result.study,
        ct=result.in_hounsfield,
        modality="CT" if result.in_hounsfield else f"MRI ({', '.join(result.study.volumes)})",
        summary=summary,
        total_volume=volume_in_words(summary.total_volume_mm3),
        bone_share=_share_of_bone(result, summary.total_volume_mm3),
        longest=max(result.lesions, key=lambda le: le.longest_axial_diameter_mm, default=None),
        origin=result.origin,
        origin_words=origin_in_words(result.origin) if result.origin else "",
        lesions_have_origin=lesions_have_origin(result),
        warnings=result.warnings,
        notes=[note for note in result.study.notes if note not in result.warnings],
        no_bone=result.in_hounsfield and not result.bone_volume_mm3 > 0,
        overview=_inline(overview(result)),
        rows=[
            _row(lesion, grid, largest_volume_mm3, pictured=lesion.id in ids_with_pictures)
            for lesion in by_size(result)[:MOST_ROWS]
        ],
        pictures=[
            {**_row(lesion, grid, largest_volume_mm3, pictured=True), "picture": _inline(lesion_views(result, lesion))}
            for lesion in with_pictures
        ],
        most_pictured=MOST_PICTURED,
        most_rows=MOST_ROWS,
        colours=KIND_COLOURS,
        marrow=[_number(v) for v in result.marrow_hu],
        image_facts={
            "Source": result.study.source or "not recorded",
            "Channel": image.channel,
            "Series UID": image.series_uid or "none",
            "Voxels": " × ".join(str(n) for n in image.voxels.shape),
            "Voxel size": " × ".join(f"{s:.3g}" for s in spacing_mm(image.affine)) + " mm",
            "Voxel axes run to": axis_codes(image.affine),
        },
        provenance=_provenance(result.provenance),
        seconds={stage: f"{value:.1f} s" for stage, value in all_seconds.items()},
        total_seconds=f"{math.fsum(all_seconds.values()):.1f} s",
    )


def _provenance(provenance: Provenance) -> dict[str, str]:
    """What made the result, in words."""
    facts = asdict(provenance)
    changed = ", ".join(f"{entry} {value}" for entry, value in facts["settings"].items())
    facts["settings"] = changed or "the bundle's own"
    others = ", ".join(f"{name} (weights {weights[:12]})" for name, weights in facts["other_weights"].items())
    facts["other_weights"] = others or "none"
    return {PROVENANCE_NAMES.get(name, name): value or "not recorded" for name, value in facts.items()}


def _row(lesion: Lesion, grid: Upright, largest_volume_mm3: float, *, pictured: bool) -> dict[str, Any]:
    """A lesion in words."""
    return {
        "id": lesion.id,
        "kind": lesion.kind,
        "volume": volume_in_words(lesion.volume_mm3),
        "volume_share": round(100 * lesion.volume_mm3 / largest_volume_mm3),
        "diameter": f"{lesion.longest_axial_diameter_mm:.0f} mm",
        "mean_hu": _number(lesion.mean_hu),
        "hu_range": f"{_number(lesion.min_hu)} to {_number(lesion.max_hu)}",
        "score": f"{lesion.score:.2f}",
        "p_lung": "n/a" if lesion.p_lung is None else f"{lesion.p_lung:.2f}",
        "center": center_in_words(lesion.center_ras_mm),
        "slice": f"{grid.slice_of('axial', lesion) + 1} of {grid.values.shape[2]}",
        "pictured": pictured,
    }


def center_in_words(center_ras_mm: tuple[float, float, float]) -> str:
    """RAS mm with a letter for each direction, so that no sign can be misread: `"L 12, A 30, I 101"`."""
    letters = (("R", "L"), ("A", "P"), ("S", "I"))
    return ", ".join(f"{pair[v < 0]} {abs(v):.0f}" for pair, v in zip(letters, center_ras_mm, strict=True))


def _share_of_bone(result: PatientResult, total_volume_mm3: float) -> str | None:
    """`"1.4 %"`, None where the bone volume is not known. A lesion may leave bone: this is a size, not a fraction."""
    if not result.lesions or not result.bone_volume_mm3 > 0:
        return None
    return f"{100 * total_volume_mm3 / result.bone_volume_mm3:.2g} %"


def _number(value: float) -> str:
    """A HU value as people read it, with a true minus sign; "n/a" for NaN."""
    return f"{value:.0f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "n/a"


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
