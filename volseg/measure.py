"""The measuring room: lesion probability -> instance mask -> Lesions in mm, mm³ and HU. Knows no network and no file.

Everything after the labelling works in each lesion's own box, on any axis order, anisotropic, oblique or sheared.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from volseg.errors import InputError
from volseg.geometry import voxel_to_ras_mm, voxel_volume_mm3, voxels_within, widened
from volseg.labels import LesionKind
from volseg.lesion_parts import connected_parts
from volseg.types import Lesion

log = logging.getLogger(__name__)

Box = tuple[slice, slice, slice]
MOST_LESIONS = 65535  # what uint16 can number

# Kinds. Half-widths and fractions chosen on the contrasts of design/synthesis.md: soft-tissue lytic 50 +- 15 HU,
# sclerotic 654 +- 176 HU (AJR 2016) and not below 350; normal marrow has 16 % of its voxels beyond one robust sd.
SMALLEST_CONTRAST_HU = 50.0
DENSEST_SOFT_TISSUE_HU = 150.0  # a soft-tissue metastasis is denser than fatty marrow, yet it is not sclerotic
CLEAR_FRACTION = 0.2
FIXED_ANCHORS_HU = (100.0, 350.0)


def label_lesions(
    probability: NDArray,
    affine: ArrayLike,
    *,
    threshold: float = 0.5,
    min_volume_mm3: float = 30.0,
    seed_threshold: float | None = None,
    part_at: Sequence[float] = (),
    bone: NDArray | None = None,
) -> NDArray[np.uint16]:
    """Cut a lesion probability (X, Y, Z) into lesions: uint16 (X, Y, Z), 0 outside, id 1 the largest.

    A lesion is a 26-connected component of `probability >= threshold` of at least `min_volume_mm3`, or what it is
    parted into at the levels `part_at` (`volseg.lesion_parts.connected_parts`). With `seed_threshold`, only those that
    reach it somewhere stay (hysteresis); with `bone` (X, Y, Z), only those that share a voxel with bone. Equal volumes
    keep the order of their first voxel. NaN counts as no lesion.
    Raises InputError("too-many-lesions") above 65535.
    """
    instances = np.zeros(probability.shape, dtype=np.uint16)
    inside = probability >= threshold
    box = _occupied_box(inside)
    if box is None:
        return instances
    labelled, found = connected_parts(probability[box], affine, threshold=threshold, levels=part_at)
    voxels = np.bincount(labelled.ravel(), minlength=found + 1)
    # A millionth of slack: a limit of exactly n voxels must not fall to the rounding of the determinant.
    keep = voxels * voxel_volume_mm3(affine) >= min_volume_mm3 * (1 - 1e-6)
    if seed_threshold is not None:
        keep &= _meets(labelled, probability[box] >= seed_threshold, found)
    if bone is not None:
        keep &= _meets(labelled, np.asarray(bone[box], dtype=bool), found)
    keep[0] = False
    kept = np.flatnonzero(keep)
    if kept.size > MOST_LESIONS:
        raise InputError(
            "too-many-lesions",
            f"{kept.size} separate lesions of at least {min_volume_mm3:g} mm³ at probability {threshold:g}; "
            f"a mask numbers {MOST_LESIONS}: raise the threshold or the smallest volume (is this image CT in HU?)",
        )
    new_id = np.zeros(found + 1, dtype=np.uint16)
    new_id[kept[np.argsort(-voxels[kept], kind="stable")]] = np.arange(1, kept.size + 1, dtype=np.uint16)
    instances[box] = new_id[labelled]
    return instances


def normal_marrow_hu(
    hu: NDArray,
    marrow: NDArray,
    instances: NDArray,
    affine: ArrayLike,
    *,
    margin_mm: float = 5.0,
    min_volume_mm3: float = 1000.0,
) -> tuple[float, float]:
    """The patient's own normal marrow: (median, robust standard deviation 1.4826 MAD) in HU.

    `marrow` (X, Y, Z) counts where no lesion lies within `margin_mm` (center to center, true mm on any grid).
    (NaN, NaN) if less than `min_volume_mm3` of it is left.
    """
    normal = np.asarray(marrow, dtype=bool) & (instances == 0)
    affine = np.asarray(affine, dtype=np.float64)
    reach = voxels_within(margin_mm, affine)
    for id_, box in _boxes(instances):
        wide = widened(box, reach, instances.shape)
        near = np.argwhere(normal[wide])
        lesion = instances[wide] == id_
        rim = np.argwhere(lesion & ~ndimage.binary_erosion(lesion))
        if near.size == 0 or rim.size == 0:
            continue
        distance, _ = cKDTree(rim @ affine[:3, :3].T).query(
            near @ affine[:3, :3].T, distance_upper_bound=margin_mm * (1 + 1e-9)
        )
        i, j, k = near[np.isfinite(distance)].T
        normal[wide][i, j, k] = False
    values = hu[normal]
    values = values[np.isfinite(values)].astype(np.float64)
    if values.size == 0 or values.size * voxel_volume_mm3(affine) < min_volume_mm3:
        return math.nan, math.nan
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


def kind_limits_hu(marrow_hu: tuple[float, float]) -> tuple[float, float]:
    """Below the first a voxel is clearly destroyed bone, above the second clearly too dense, in HU.

    One robust sd (at least 50 HU) to either side of the patient's own marrow; what is as dense as soft tissue
    (150 HU) is never sclerotic. Fixed anchors 100 and 350 HU where the marrow is unknown (NaN).
    """
    median, sd = marrow_hu
    if not (math.isfinite(median) and math.isfinite(sd)):
        return FIXED_ANCHORS_HU
    contrast = max(sd, SMALLEST_CONTRAST_HU)
    return median - contrast, max(median + contrast, DENSEST_SOFT_TISSUE_HU)


def lesion_kind(hu: NDArray, marrow_hu: tuple[float, float]) -> LesionKind:
    """Kind of a lesion from the HU of its voxels (n,).

    A fifth of the voxels clearly below the marrow makes it lytic, a fifth clearly above sclerotic, both mixed. If
    neither: sclerotic where the mean is denser than the marrow and than soft tissue, otherwise lytic (a soft-tissue
    metastasis in fatty marrow has no contrast).
    """
    low, high = kind_limits_hu(marrow_hu)
    lytic, sclerotic = float(np.mean(hu < low)) >= CLEAR_FRACTION, float(np.mean(hu > high)) >= CLEAR_FRACTION
    if lytic and sclerotic:
        return "mixed"
    if lytic != sclerotic:
        return "lytic" if lytic else "sclerotic"
    median = marrow_hu[0] if math.isfinite(marrow_hu[0]) else sum(FIXED_ANCHORS_HU) / 2
    return "sclerotic" if float(np.mean(hu)) > max(median, DENSEST_SOFT_TISSUE_HU) else "lytic"


def longest_axial_diameter_mm(mask: NDArray, affine: ArrayLike) -> float:
    """Longest line across a lesion mask (X, Y, Z) within one axial slice, in mm. 0 for an empty mask.

    Axial slices are the voxel planes whose normal runs closest to S. In each slice the two lesion voxels with the
    largest distance between centers give the line; it is drawn out to the far faces of both voxels, one half voxel
    at each end (along an axis that adds one spacing; for two centers n voxels apart along the axis on which they are
    furthest apart it multiplies by 1 + 1/n). A slice with a single voxel counts its longer in-plane spacing.
    """
    direction = np.asarray(affine, dtype=np.float64)[:3, :3]
    normals = np.linalg.inv(direction)
    axis = int(np.argmax(np.abs(normals[:, 2]) / np.linalg.norm(normals, axis=1)))
    in_plane = np.delete(direction, axis, axis=1)
    slices = np.moveaxis(np.asarray(mask, dtype=bool), axis, 0)
    candidates = [_row_ends(plane) for plane in slices if plane.any()]
    # The diagonal of what a slice spans is an upper limit: most slices need no search.
    ordered = sorted(((_longest_possible(ends, in_plane), n) for n, ends in enumerate(candidates)), reverse=True)
    longest = 0.0
    for limit, n in ordered:
        if limit <= longest:
            break
        longest = max(longest, _longest_line(candidates[n], in_plane))
    return longest


def measure_lesions(
    instances: NDArray,
    hu: NDArray | None,
    affine: ArrayLike,
    *,
    probability: NDArray,
    marrow_hu: tuple[float, float] = (math.nan, math.nan),
) -> tuple[Lesion, ...]:
    """Measure every lesion of an instance mask; `instances`, `hu`, `probability` (X, Y, Z) on one grid, in id order.

    `marrow_hu` is what `normal_marrow_hu` returned; with NaN the kinds come from fixed HU anchors (logged).
    Without `hu` (MRI, whose signals are arbitrary) HU are NaN and every kind is "unknown".
    An empty mask gives (). Raises ValueError if the shapes differ.
    """
    if instances.shape != probability.shape or (hu is not None and hu.shape != instances.shape):
        given = "" if hu is None else f"hu {hu.shape}, "
        raise ValueError(f"instances {instances.shape}, {given}probability {probability.shape}: not one grid")
    if hu is not None and not math.isfinite(marrow_hu[0]):
        log.info("no normal marrow was found: kinds are judged by fixed limits of %g and %g HU", *FIXED_ANCHORS_HU)
    lesions = []
    for id_, box in _boxes(instances):
        mask = instances[box] == id_
        values = None if hu is None else hu[box][mask].astype(np.float64)
        start = [s.start for s in box]
        center = voxel_to_ras_mm(affine, np.argwhere(mask).mean(axis=0) + start)
        lesions.append(
            Lesion(
                id=id_,
                score=float(probability[box][mask].mean(dtype=np.float64)),
                center_ras_mm=(float(center[0]), float(center[1]), float(center[2])),
                volume_mm3=int(np.count_nonzero(mask)) * voxel_volume_mm3(affine),
                longest_axial_diameter_mm=longest_axial_diameter_mm(mask, affine),
                mean_hu=math.nan if values is None else float(values.mean()),
                min_hu=math.nan if values is None else float(values.min()),
                max_hu=math.nan if values is None else float(values.max()),
                kind="unknown" if values is None else lesion_kind(values, marrow_hu),
                box=(start[0], start[1], start[2], box[0].stop, box[1].stop, box[2].stop),
            )
        )
    return tuple(lesions)


def _occupied_box(mask: NDArray) -> Box | None:
    """Smallest box around the non-zero voxels."""
    spans = []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if where.size == 0:
            return None
        spans.append(slice(int(where[0]), int(where[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _boxes(instances: NDArray) -> list[tuple[int, Box]]:
    """(id, box on the full grid) of every lesion, by id."""
    outer = _occupied_box(instances)
    if outer is None:
        return []
    found = []
    for id_, inner in enumerate(ndimage.find_objects(instances[outer]), start=1):
        if inner is not None:
            x, y, z = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
            found.append((id_, (x, y, z)))
    return found


def _meets(labelled: NDArray, where: NDArray, found: int) -> NDArray[np.bool_]:
    """For labels 0..found: whether any of their voxels lies in `where`."""
    return np.bincount(labelled[where], minlength=found + 1) > 0


def _row_ends(plane: NDArray) -> NDArray[np.int64]:
    """First and last voxel of every row (n, 2): the corners of the convex hull are among them."""
    rows = np.flatnonzero(plane.any(axis=1))
    first = plane[rows].argmax(axis=1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])


def _longest_possible(ends: NDArray, in_plane: NDArray) -> float:
    steps = ends.max(axis=0) - ends.min(axis=0) + 1
    corners = in_plane @ np.array([[steps[0], steps[0]], [steps[1], -steps[1]]], dtype=np.float64)
    return float(np.linalg.norm(corners, axis=0).max())


def _longest_line(ends: NDArray, in_plane: NDArray) -> float:
    steps = (ends[:, None, :] - ends[None, :, :]).reshape(-1, 2)
    between_centers = np.linalg.norm(steps @ in_plane.T, axis=1)
    longest = between_centers.max()
    if longest == 0:
        return float(np.linalg.norm(in_plane, axis=0).max())
    furthest = np.abs(steps[between_centers >= longest * (1 - 1e-9)]).max(axis=1)
    return float(longest * (1 + 1 / furthest.min()))
