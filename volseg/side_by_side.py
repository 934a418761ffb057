"""Several bundles on one study: reads what each wrote, pairs their lesions, writes one page with all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.io import read_nifti
from volseg.report.side_by_side import BundleColumn, Row, write_side_by_side_page

PAGE = "side_by_side.html"


def write_side_by_side(folder: Path, bundles: Sequence[str]) -> Path:
    """Write `folder`/side_by_side.html from the finished results in `folder`/<bundle>/, one for each of `bundles`.

    Raises InputError if a result is missing, broken or lies on another grid.
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
    return write_side_by_side_page(folder / PAGE, folder.name, columns, same_places(masks))


def same_places(masks: Sequence[NDArray[np.int64]]) -> list[Row]:
    """Which lesions of several instance maps (one shape) are one place: rows of ids, None where a map has none.

    Lesions that share a voxel, directly or through a third map's lesion, lie in one place; of several in one map the
    largest stands for it and the others get rows of their own.
    """
    place: dict[tuple[int, int], int] = {}
    groups: list[set[tuple[int, int]]] = []
    for k, mask in enumerate(masks):
        for i in np.unique(mask[mask > 0]):
            place[(k, int(i))] = len(groups)
            groups.append({(k, int(i))})
    for a in range(len(masks)):
        for b in range(a + 1, len(masks)):
            both = (masks[a] > 0) & (masks[b] > 0)
            for i, j in {(int(i), int(j)) for i, j in zip(masks[a][both], masks[b][both], strict=True)}:
                one, other = place[(a, i)], place[(b, j)]
                if one != other:
                    groups[one] |= groups[other]
                    for lesion in groups[other]:
                        place[lesion] = one
                    groups[other] = set()
    rows: list[Row] = []
    for group in groups:
        of_map = [sorted(i for k, i in group if k == number) for number in range(len(masks))]
        # Ids run from the largest lesion on.
        for rank in range(max((len(ids) for ids in of_map), default=0)):
            rows.append(tuple(ids[rank] if rank < len(ids) else None for ids in of_map))
    return sorted(rows, key=lambda row: (-sum(i is not None for i in row), [i or 1 << 30 for i in row]))
