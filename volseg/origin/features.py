"""Lesions -> numbers: one row per lesion, one named column per feature. What the origin head reads.

Mask-weighted RoI features (inside mean, ring mean, max) beside size, HU and place: Zhao et al. 2024, as the evidence
in papers/convnextv2_mask_rcnn.md suggests. The clinical table is the baseline that any image model must beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.errors import InputError
from volseg.geometry import ras_mm_to_voxel, voxel_to_ras_mm
from volseg.labels import LESION_KINDS
from volseg.measure import kind_limits_hu
from volseg.origin.neighbourhood import RING_MM, Neighbourhood, neighbourhoods
from volseg.origin.position import POSITION_NAMES, body_positions
from volseg.types import Lesion

# Air and metal are cut off: a rib lesion beside the lung must not be told by its air.
HU_RANGE = (-200.0, 1500.0)
LESION_NAMES = (
    *("log_volume", "longest_mm", "middle_mm", "shortest_mm", "sphericity"),
    *("hu_mean", "hu_sd", "hu_p10", "hu_p50", "hu_p90"),
    *("ring_hu_mean", "ring_hu_sd", "ring_hu_p10", "ring_hu_p90", "contrast_hu"),
    *("lytic_fraction", "sclerotic_fraction"),
    *POSITION_NAMES,
)
CLINICAL_NAMES = (*LESION_KINDS, "log_volume", "longest_axial_diameter_mm", "log_count", *POSITION_NAMES)


@dataclass(frozen=True, eq=False)
class LesionTable:
    """Features of one or many lesions. `names` (F), `ids` (N) voxel values in the instance mask, `values` (N, F).

    NaN means not known; the head puts its training mean there.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.ids), len(self.names)):
            raise ValueError(f"{len(self.ids)} lesions, {len(self.names)} names, values {self.values.shape}")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"feature names are not unique: {', '.join(self.names)}")

    def select(self, names: Sequence[str]) -> LesionTable:
        """The named columns in that order. Raises InputError("origin-features") naming what is missing."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise InputError(
                "origin-features",
                f"{len(missing)} of {len(names)} features that the origin head was trained on are missing "
                f"({', '.join(missing[:4])}); compute them as in training (deep features included)",
            )
        return LesionTable(tuple(names), self.ids, self.values[:, [self.names.index(name) for name in names]])

    def join(self, names: Sequence[str], values: NDArray) -> LesionTable:
        """The same lesions with more columns, `values` (N, len(names)): RoI features pooled elsewhere, say."""
        return LesionTable((*self.names, *names), self.ids, np.concatenate([self.values, values], axis=1))


def lesion_features(
    voxels_hu: NDArray,
    instance_mask: NDArray,
    affine: ArrayLike,
    *,
    marrow_hu: tuple[float, float] = (math.nan, math.nan),
    ring_mm: tuple[float, float] = RING_MM,
    deep: NDArray | None = None,
    deep_affine: ArrayLike | None = None,
) -> LesionTable:
    """Features of every lesion, by id: columns `LESION_NAMES`, then 3 C deep ones where `deep` is given.

    Args:
        voxels_hu: CT (X, Y, Z) in HU.
        instance_mask: (X, Y, Z) integers on the CT's grid, 0 outside lesions.
        affine: voxel -> RAS+ mm.
        marrow_hu: the patient's normal marrow as `volseg.measure.normal_marrow_hu` gives it, for the two fractions.
        ring_mm: from where to where around the lesion the ring lies, mm between voxel centers.
        deep: a feature map (C, x, y, z) of any stride, with `deep_affine` (its voxels -> RAS+ mm; None: the CT's).

    Units: `log_volume` ln mm³; `*_mm` mm (axes of the equivalent ellipsoid); `hu_*`, `ring_hu_*`, `contrast_hu`
    (inside mean less ring mean) HU, each voxel clipped to -200..1500; fractions of the lesion's voxels clearly below
    and above the marrow; positions as `body_positions`. An empty mask gives a table of no rows.
    """
    limits = kind_limits_hu(marrow_hu)
    rows, deep_rows, centers, ids = [], [], [], []
    for lesion in neighbourhoods(voxels_hu, instance_mask, affine, ring_mm=ring_mm):
        rows.append(_row(lesion, limits))
        centers.append(lesion.center_ras_mm)
        ids.append(lesion.id)
        if deep is not None:
            deep_rows.append(_deep_row(lesion, deep, affine if deep_affine is None else deep_affine))
    hand_made = np.asarray(rows, dtype=np.float64).reshape(len(ids), len(LESION_NAMES) - len(POSITION_NAMES))
    places = body_positions(voxels_hu, affine, np.asarray(centers).reshape(len(ids), 3))
    table = LesionTable(LESION_NAMES, tuple(ids), np.concatenate([hand_made, places], axis=1))
    if deep is None:
        return table
    return table.join(deep_names(len(deep)), np.asarray(deep_rows, dtype=np.float64).reshape(len(ids), 3 * len(deep)))


def clinical_features(lesions: Sequence[Lesion], table: LesionTable) -> LesionTable:
    """Kind, size, count and location of one patient's lesions, columns `CLINICAL_NAMES`: what a reader can tabulate.

    Kinds are 0 or 1; `log_volume` ln mm³; `longest_axial_diameter_mm` mm; `log_count` ln of the patient's lesions;
    positions come from `table` (`lesion_features` of the same lesions). Raises ValueError if the ids differ.
    """
    if sorted(lesion.id for lesion in lesions) != sorted(table.ids):
        raise ValueError(f"lesions {[lesion.id for lesion in lesions]} and table {list(table.ids)}: not one patient")
    by_id = {lesion.id: lesion for lesion in lesions}
    places = table.select(POSITION_NAMES).values
    rows = []
    for id_, place in zip(table.ids, places, strict=True):
        lesion = by_id[id_]
        kinds = [float(lesion.kind == kind) for kind in LESION_KINDS]
        size = [math.log(lesion.volume_mm3), lesion.longest_axial_diameter_mm, math.log(len(lesions))]
        rows.append([*kinds, *size, *place])
    values = np.asarray(rows, dtype=np.float64).reshape(len(table.ids), len(CLINICAL_NAMES))
    return LesionTable(CLINICAL_NAMES, table.ids, values)


def deep_names(channels: int) -> tuple[str, ...]:
    """Column names of the pooled deep features: all inside means, all ring means, all maxima."""
    return tuple(f"deep_{part}_{c:03d}" for part in ("inside", "ring", "max") for c in range(channels))


def _row(lesion: Neighbourhood, limits_hu: tuple[float, float]) -> list[float]:
    inside, ring = _clipped(lesion.hu[lesion.inside]), _clipped(lesion.hu[lesion.ring])
    own, around = _statistics(inside), _statistics(ring)
    lytic, sclerotic = (inside < limits_hu[0], inside > limits_hu[1])
    return [
        math.log(lesion.volume_mm3),
        *lesion.extents_mm,
        lesion.sphericity,
        *own,
        *(around[i] for i in (0, 1, 2, 4)),
        own[0] - around[0],
        *(float(where.mean()) if inside.size else math.nan for where in (lytic, sclerotic)),
    ]


def _clipped(hu: NDArray) -> NDArray[np.float64]:
    hu = hu.astype(np.float64)
    return np.clip(hu[np.isfinite(hu)], *HU_RANGE)


def _statistics(hu: NDArray[np.float64]) -> tuple[float, ...]:
    """Mean, standard deviation, 10th, 50th and 90th percentile; NaN of nothing."""
    if hu.size == 0:
        return (math.nan,) * 5
    return float(hu.mean()), float(hu.std()), *(float(v) for v in np.percentile(hu, (10, 50, 90)))


def _deep_row(lesion: Neighbourhood, deep: NDArray, deep_affine: ArrayLike) -> NDArray[np.float64]:
    """Inside mean, ring mean and inside maximum of (C, x, y, z), each feature voxel weighted by what of the mask it
    holds; NaN where the map does not reach the lesion."""
    channels = len(deep)
    pooled = np.full((3, channels), np.nan)
    for part, mask in enumerate((lesion.inside, lesion.ring)):
        places_mm = voxel_to_ras_mm(lesion.affine, np.argwhere(mask))
        ijk = np.rint(ras_mm_to_voxel(deep_affine, places_mm)).astype(np.int64)
        ijk = ijk[((ijk >= 0) & (ijk < deep.shape[1:])).all(axis=1)]
        if len(ijk) == 0:
            continue
        where, weight = np.unique(np.ravel_multi_index(tuple(ijk.T), deep.shape[1:]), return_counts=True)
        i, j, k = np.unravel_index(where, deep.shape[1:])
        seen = deep[:, i, j, k].astype(np.float64)
        pooled[part] = seen @ weight / weight.sum()
        if part == 0:
            pooled[2] = seen.max(axis=1)
    return pooled.ravel()
