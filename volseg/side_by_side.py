"""Several bundles on one study: reads what each wrote, pairs their lesions, writes one page with all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.io import read_nifti
from volseg.report.side_by_side import BundleColumn, Row, write_side_by_side_page

PAGE = "side_by_side.html"


def write_side_by_side(folder: Path, bundles: Sequence[str]) -> Path:
    """Write `folder`/side_by_side.html from the finished results in `folder`/<bundle>/, one for each of `bundles`.

    Raises InputError if a result is missing, broken or lies on another grid, or the disk refuses.
    """
    columns, masks = [], []
    for name in bundles:
        place = folder / name
        try:
            document = json.loads((place / "result.json").read_text(encoding="utf-8"))
            picture = (place / "preview.png").read_bytes()
        except (OSError, ValueError) as error:
            raise InputError("result-missing", f"{place} holds no finished result ({error}); run it again") from error
        columns.append(BundleColumn(name, document, picture))
        masks.append(read_nifti(place / "lesions.nii.gz", channel="mask")[0].voxels.astype(np.int64))
    if len({m.shape for m in masks}) > 1:
        raise InputError("results-differ", f"{folder}: the results lie on different grids; run all bundles again")
    rows = same_places(masks)
    try:
        return write_side_by_side_page(folder / PAGE, folder.name, columns, rows)
    except OSError as error:
        raise InputError("output-failed", f"{folder / PAGE}: {error.strerror or error}; it was not written") from error


def page_is_due(folder: Path, bundles: Sequence[str]) -> bool:
    """Whether the page is missing or older than one of the finished results that it shows."""
    page, results = folder / PAGE, [folder / name / "result.json" for name in bundles]
    if not all(result.is_file() for result in results):
        return False
    return not page.is_file() or page.stat().st_mtime_ns < max(result.stat().st_mtime_ns for result in results)


def same_places(masks: Sequence[NDArray[np.int64]]) -> list[Row]:
    """Which lesions of several instance maps (one shape) are one place: rows of ids, None where a map has none.

    A row holds lesions that share a voxel, directly or through another lesion of the row, one of each map and each
    lesion once. Of several that a map has there the largest stands for it; the others get rows of their own.
    """
    # (id, map): ids run from the largest lesion on, so that the smallest of these is the largest lesion.
    touching = {(int(i), k): set[tuple[int, int]]() for k, mask in enumerate(masks) for i in np.unique(mask[mask > 0])}
    for a, b in combinations(range(len(masks)), 2):
        both = (masks[a] > 0) & (masks[b] > 0)
        for i, j in np.unique(np.stack([masks[a][both], masks[b][both]], axis=1), axis=0).tolist():
            touching[i, a].add((j, b))
            touching[j, b].add((i, a))
    left = set(touching)
    rows: list[Row] = []
    for lesion in sorted(touching):
        near, row = {lesion} & left, dict[int, int]()
        while near:
            i, k = min(near)
            row[k] = i
            left.remove((i, k))
            near = {other for other in (near | touching[i, k]) & left if other[1] not in row}
        if row:
            rows.append(tuple(row.get(k) for k in range(len(masks))))
    return sorted(rows, key=lambda row: (-sum(i is not None for i in row), [i or 1 << 30 for i in row]))
