"""One case of a lesion bench as a row, and rows as figures."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.evaluation.lesions import match_lesions
from volseg.geometry import widened
from volseg.inference.bundle import LoadedBundle
from volseg.inference.ensemble import other_weights

IOU = 0.1
SMALL_MM3 = 1000
DIAMETERS_MM = {"under 8 mm": (0, 8), "8 to 15 mm": (8, 15), "15 mm and more": (15, np.inf)}


def heading(bundle: LoadedBundle) -> dict[str, Any]:
    """What was measured, where and when: how a bench's JSON begins. `averaged_with`: the others of an ensemble."""
    others = other_weights(bundle)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, CPU",
        "bundle": f"{bundle.files.name} {bundle.files.version}",
        "weights_sha256": bundle.weights_sha256,
    } | ({"averaged_with": others} if others else {})


def judged(found: NDArray, truth: NDArray, drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Instances against instances on one grid; `drawn` are the parameters of what was drawn, by `id`."""
    match = match_lesions(found, truth, iou=IOU)
    overlap = int(((found > 0) & (truth > 0)).sum())
    size = int((found > 0).sum()) + int((truth > 0).sum())
    hits = {int(i) for i, _, _ in match.hits}
    return {
        "true": match.n_true,
        "hit": len(hits),
        "false_positive": len(match.false_positives),
        "dice": 2 * overlap / size if truth.any() else None,
        # Dice of two masks is 2 IoU / (1 + IoU).
        "hit_dice": [round(2 * iou / (1 + iou), 3) for _, _, iou in match.hits],
        "lesions": [
            {
                "kind": lesion["kind"],
                "mm3": round(lesion["volume_mm3"]),
                "diameter_mm": round((6 * lesion["volume_mm3"] / np.pi) ** (1 / 3), 1),
                "hit": lesion["id"] in hits,
            }
            for lesion in drawn
        ],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sensitivity, false positives per case and Dice of many rows."""
    true, hit = sum(r["true"] for r in rows), sum(r["hit"] for r in rows)
    dices = [r["dice"] for r in rows if r["dice"] is not None]
    hit_dices = [d for r in rows for d in r["hit_dice"]]
    return {
        "cases": len(rows),
        "lesions": true,
        "sensitivity": round(hit / true, 3) if true else None,
        "false_positives_per_case": round(sum(r["false_positive"] for r in rows) / len(rows), 2),
        "mean_dice_over_positives": round(float(np.mean(dices)), 3) if dices else None,
        "mean_dice_of_hits": round(float(np.mean(hit_dices)), 3) if hit_dices else None,
    }


def by_diameter(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sensitivity by diameter of the sphere of a lesion's volume."""
    lesions = [lesion for row in rows for lesion in row["lesions"]]
    return {
        name: _sensitivity([lesion for lesion in lesions if low <= lesion["diameter_mm"] < high])
        for name, (low, high) in DIAMETERS_MM.items()
    }


def by_kind(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sensitivity by kind of lesion."""
    lesions = [lesion for row in rows for lesion in row["lesions"]]
    return {
        kind: _sensitivity([lesion for lesion in lesions if lesion["kind"] == kind])
        for kind in sorted({lesion["kind"] for lesion in lesions})
    }


def changes(before: NDArray, after: NDArray, truth: NDArray, spacing: NDArray) -> dict[int, float]:
    """By a lesion's number: its mean change of HU in standard deviations of what was there, both smoothed by 1 mm.

    Below 1 a lesion is lost in the pattern of the bone that it grew in.
    """
    found = {}
    margin = np.ceil(3 / spacing).astype(int)
    for number, where in enumerate(ndimage.find_objects(truth), start=1):
        if where is not None:
            box = widened(where, margin, truth.shape)
            old, new = (ndimage.gaussian_filter(v[box].astype(np.float32), 1 / spacing) for v in (before, after))
            mask = truth[box] == number
            found[number] = float(np.abs(new - old)[mask].mean() / max(old[mask].std(), 1.0))
    return found


def by_visibility(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sensitivity of small, faint (see `changes`) and plain lesions."""
    lesions = [lesion for row in rows for lesion in row["lesions"]]
    large = [lesion for lesion in lesions if lesion["mm3"] >= SMALL_MM3]
    return {
        "under 1 mL": _sensitivity([lesion for lesion in lesions if lesion["mm3"] < SMALL_MM3]),
        "1 mL and more, change below 1 deviation": _sensitivity([x for x in large if x["change"] < 1]),
        "1 mL and more, change of 1 deviation and more": _sensitivity([x for x in large if x["change"] >= 1]),
    }


def _sensitivity(lesions: list[dict[str, Any]]) -> dict[str, Any]:
    hit = sum(lesion["hit"] for lesion in lesions)
    return {"lesions": len(lesions), "hit": hit, "sensitivity": round(hit / len(lesions), 3) if lesions else None}
