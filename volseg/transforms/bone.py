"""Hounsfield units -> where the bone is. No model, no annotation; enters a CT grid, leave three masks on the same grid.

The outline is kept tight: a lesion planted inside `bone` lies in bone. A caller who must not miss the soft-tissue part
of a lesion (sliding-window inference) dilates `bone` by 5-10 mm.

Steps (design: body, hysteresis 150/300 HU, closing, hole filling): body without table, contrast-filled vessels
and organs taken out by a shell test, hysteresis, holes filled where bone surrounds them in 3D or in two of the three
slice directions, fragments dropped. Lengths are in mm, so any spacing works; about 1 mm is best.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from volseg.geometry import closest_axes, spacing_mm

Mask = NDArray[np.bool_]
Faces = list[tuple[bool, bool]]

BODY_HU = -300.0
BONE_HU = 150.0
SURE_BONE_HU = 300.0
SMOOTHING_MM = 0.6
NOISY_SMOOTHING_MM = 0.8
METAL_HU = 2200.0
CLOSING_MM = 2.5
CORTEX_MM = 2.0
GRID_MM = 2.0
THIN_WALL_HU = 120.0
REACH_MM = 35.0
AIR_HU = -150.0
FAT_HU = -20.0
# A shaft of a long bone, with its fat, stays below 10 cm² in section.
LARGEST_SHAFT_MM2 = 1000.0
SMALLEST_BONE_MM3 = 5000.0
# Marrow score at these HU (means over about 4 mm). Fat and soft tissue must be well enclosed, trabeculae need less.
SCORE_HU = (-150.0, 20.0, 60.0, 90.0, 120.0)
SCORE = (-0.6, -0.6, -0.2, 0.2, 0.5)
# What full enclosure adds, by line; an intervertebral disc has endplates above and below and nothing around it.
LINES, IN_PLANE, VERTICAL = 1.3, 1.4, 1.0
ENOUGH = 2.8


@dataclass(frozen=True, eq=False)
class BoneMask:
    """Bone on a CT grid: three bool arrays (X, Y, Z). `bone` is `marrow` plus `cortex`; they do not overlap.

    `marrow` lies at least 2 mm deep in the bone. No bone in the image: all three are False everywhere.
    """

    bone: Mask
    marrow: Mask
    cortex: Mask


def bone_mask(hu: NDArray, affine: ArrayLike) -> BoneMask:
    """Bone of a CT without any model.

    hu: (X, Y, Z) Hounsfield units, any orientation, padding of any constant; affine: voxel -> RAS+ mm.
    """
    spacing = spacing_mm(affine)
    axial = closest_axes(affine)[0][2]
    if np.issubdtype(hu.dtype, np.floating) and np.isnan(hu).any():
        hu = np.nan_to_num(hu, nan=-1024.0)
    empty = np.zeros(hu.shape, dtype=bool)
    dense = (hu > BONE_HU) & body_mask(hu, spacing, axial)
    image = _without_padding(hu)
    box = _bounding_box(dense, np.ceil(2 * CLOSING_MM / spacing).astype(int), image)
    if box is None:
        return BoneMask(empty, empty.copy(), empty.copy())
    # Below -200 HU it is all "not bone": clipped, air and padding do not dim a thin rib when smoothed.
    smooth = np.clip(hu[box].astype(np.float32), -200.0, 3000.0)
    sigma = NOISY_SMOOTHING_MM if _noise_hu(smooth) > 40.0 else SMOOTHING_MM
    smooth = ndimage.gaussian_filter(smooth, sigma / spacing * (spacing < 2.0), truncate=3.0)
    # Metal: brighter than any cortex, and its fringe.
    metal = _dilate(smooth > METAL_HU, 1.5, spacing)
    solid = (smooth > BONE_HU) & _dilate(dense[box], 1.0, spacing)
    del dense
    not_bone = metal | _contrast(smooth, solid & ~metal, spacing)
    solid = _with_seed(solid & ~not_bone, smooth > SURE_BONE_HU)
    cut = [(b.start == i.start, b.stop == i.stop) for b, i in zip(box, image, strict=True)]
    filled = _fill(solid, not_bone, smooth, spacing, axial, cut)
    filled = _drop_fragments(filled, spacing)
    bone = empty
    bone[box] = filled
    marrow = np.zeros_like(bone)
    marrow[box] = _erode(filled, CORTEX_MM, spacing)
    return BoneMask(bone, marrow, bone & ~marrow)


def _noise_hu(hu: NDArray) -> float:
    """Standard deviation of the noise in soft tissue, from the differences between neighbours."""
    sample = hu[::2, ::2, ::2] if hu.size > 4e6 else hu
    middle, right, left = sample[1:-1], sample[2:], sample[:-2]
    tissue = (middle > -150.0) & (middle < 150.0) & (np.abs(left) < 150.0) & (np.abs(right) < 150.0)
    if not tissue.any():
        return 0.0
    second = middle[tissue] - 0.5 * (left[tissue] + right[tissue])
    return float(np.median(np.abs(second)) / 0.6745 / np.sqrt(1.5))


def body_mask(hu: NDArray, spacing: NDArray, axial: int) -> Mask:
    """The patient, lungs and bowel gas included, table excluded; found on a grid of about 3 mm. (X, Y, Z) bool."""
    step = np.maximum(1, np.round(3.0 / spacing)).astype(int)
    coarse = _block_mean(hu, step, lower=-1024.0) > BODY_HU
    opened = ndimage.binary_erosion(coarse, border_value=1)
    labels, count = ndimage.label(opened)
    if count == 0:
        return _stretch(coarse, step, hu.shape)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # Arms and hands beside the trunk are parts of the patient; a table is gone after the erosion.
    body = (sizes >= 0.02 * sizes.max())[labels]
    body = ndimage.binary_dilation(body, iterations=2) & coarse
    plane = np.zeros((3, 3, 3), dtype=bool)
    cross = ndimage.generate_binary_structure(2, 1)
    plane[tuple(1 if a == axial else slice(None) for a in range(3))] = cross
    outside, count = ndimage.label(~body, plane)
    keep_open = _touching_border(outside, count, [a for a in range(3) if a != axial])
    return _stretch(body | ~keep_open[outside], step, hu.shape)


def _contrast(smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """Vessels, heart, kidneys and bladder full of contrast medium: homogeneous, and no bright shell around them."""
    step = np.maximum(1, np.round(3.0 / spacing)).astype(int)
    size = step * spacing
    coarse = _block_mean(smooth, step)
    lowest, highest = ndimage.minimum_filter(coarse, 3), ndimage.maximum_filter(coarse, 3)
    core = (lowest > 130.0) & (highest - lowest < 0.4 * coarse)
    labels, _ = ndimage.label(core)
    out = np.zeros(smooth.shape, dtype=bool)
    for index, where in enumerate(ndimage.find_objects(labels), start=1):
        reach = np.ceil(10.0 / size).astype(int)
        around = tuple(
            slice(max(0, w.start - r), min(n, w.stop + r)) for w, r, n in zip(where, reach, coarse.shape, strict=True)
        )
        blob, values = labels[around] == index, coarse[around]
        if blob.sum() * size.prod() < 1000.0:
            continue
        mean, spread = values[blob].mean(), values[blob].std()
        distance = ndimage.distance_transform_edt(~blob, sampling=size)
        ring, shell = values[(distance > 5.0) & (distance <= 10.0)], values[(distance > 0.0) & (distance <= 5.0)]
        if ring.size == 0 or mean > 1200.0:
            continue
        bright = (ring > mean + 60.0).mean()
        if (shell > mean + 60.0).mean() > 0.04 or spread > 0.12 * mean:
            continue
        if (ring < 100.0).mean() - bright < 0.10:
            continue
        out |= _flood(blob, around, mean + 3 * spread + 50.0, smooth, solid, step, spacing)
    return out


def _flood(
    blob: Mask, around: tuple[slice, ...], ceiling: float, smooth: NDArray, solid: Mask, step: NDArray, spacing: NDArray
) -> Mask:
    """Grow a contrast core through everything below `ceiling` HU that is not beside denser bone."""
    seed = np.zeros(tuple(-(-n // s) for n, s in zip(smooth.shape, step, strict=True)), dtype=bool)
    seed[around] = blob
    seed = _stretch(seed, step, smooth.shape)
    wall = _large_parts(smooth > ceiling + 80.0, 300.0 / spacing.prod())
    free = (smooth < ceiling) & ~_dilate(wall, 3.0, spacing)
    # Between the core and its edge the noise dips below the threshold: taken along, so that it is not filled later.
    return _with_seed((free & solid) | (seed & solid), seed) | (free & _dilate(seed, 4.0, spacing))


def _fill(solid: Mask, not_bone: Mask, smooth: NDArray, spacing: NDArray, axial: int, cut: Faces) -> Mask:
    """Add the marrow: what bone surrounds along rays, weighed against its HU; found on a grid of about 2 mm.

    Rays look 35 mm along the 13 lines through a voxel's neighbours. The line up and down counts by itself: a vertebral
    body has endplates, the spinal canal and soft tissue between two bones have not. A wall eaten by a lesion opens
    some lines only, where hole filling would lose the whole bone.
    """
    step = np.maximum(1, np.round(GRID_MM / spacing)).astype(int)
    size = step * spacing
    mean = _block_mean(smooth, step)
    shell = _block_mean(solid, step) >= 0.4
    # A thin wall, blurred: enough to end a line, not to be bone.
    wall = shell | ((mean > THIN_WALL_HU) & ndimage.binary_dilation(shell))
    lines, in_plane, vertical = _enclosure(wall, size, axial, cut)
    local = ndimage.gaussian_filter(mean, np.minimum(1.5 / size, 1.0))
    score = (
        lines * (LINES / 26) + in_plane * (IN_PLANE / 8) + vertical * (VERTICAL / 2) + np.interp(local, SCORE_HU, SCORE)
    )
    score = np.maximum(score, (ENOUGH + 0.5) * _shafts(wall, mean, size)).astype(np.float32)
    inner = _interpolate(score, step, solid.shape) > ENOUGH
    inner &= (smooth > AIR_HU) & ~not_bone
    closed = _close(solid, CLOSING_MM, spacing) & ~not_bone
    # Of what closing adds, keep pores and gaps in the shell, not the notches between two bones.
    return solid | inner | (closed & _dilate(inner, 1.5, spacing)) | (_close(solid, 1.0, spacing) & ~not_bone)


def _enclosure(wall: Mask, spacing: NDArray, axial: int, cut: Faces) -> tuple[NDArray, NDArray, NDArray]:
    """Of 13 lines through each voxel, those that meet `wall` both ways within 35 mm; of the 4 axial ones; of the
    vertical one. A line counts 2; where the image cuts the body and its border stands for one of the two ends, 1."""
    lines, in_plane = np.zeros(wall.shape, np.uint8), np.zeros(wall.shape, np.uint8)
    vertical = np.zeros(wall.shape, np.uint8)
    for way in itertools.product((-1, 0, 1), repeat=3):
        if way <= (0, 0, 0):
            continue
        back = tuple(-w for w in way)
        ahead, behind = _meets(wall, way, spacing), _meets(wall, back, spacing)
        both = (ahead | _leaves(wall.shape, way, spacing, cut)) & (behind | _leaves(wall.shape, back, spacing, cut))
        both &= ahead | behind
        worth = both.astype(np.uint8) + (ahead & behind)
        lines += worth
        if way[axial] == 0:
            in_plane += worth
        elif sum(map(abs, way)) == 1:
            vertical += worth
    return lines, in_plane, vertical


def _meets(wall: Mask, way: tuple[int, ...], spacing: NDArray) -> Mask:
    """Where a ray in direction `way` (-1, 0, 1 per axis) meets `wall` within 35 mm; a wall does not meet itself."""
    reach = int(REACH_MM / np.linalg.norm(np.array(way) * spacing))
    axis = next(a for a in range(3) if way[a])
    rest = [way[a] for a in range(3) if a != axis]
    take = tuple({0: slice(None), 1: slice(1, None), -1: slice(None, -1)}[w] for w in rest)
    put = tuple({0: slice(None), 1: slice(None, -1), -1: slice(1, None)}[w] for w in rest)
    walls = np.moveaxis(wall, axis, 0)
    # Voxels left to look at; 0 is a miss.
    left = np.zeros(walls.shape, dtype=np.uint8)
    meets = np.zeros(walls.shape, dtype=bool)
    order = range(len(walls)) if way[axis] < 0 else range(len(walls) - 1, -1, -1)
    before = None
    for k in order:
        if before is not None:
            source = left[before][take]
            left[k][put] = source - (source > 0)
            meets[k] = left[k] > 0
        left[k][walls[k]] = min(reach, 254) + 1
        before = k
    return np.moveaxis(meets, 0, axis)


def _leaves(shape: tuple[int, ...], way: tuple[int, ...], spacing: NDArray, cut: Faces) -> Mask:
    """Where a ray in direction `way` leaves the image within 35 mm through a face that cuts the body."""
    reach = int(REACH_MM / np.linalg.norm(np.array(way) * spacing))
    out = np.zeros(shape, dtype=bool)
    for axis in range(3):
        index = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        if way[axis] > 0 and cut[axis][1]:
            out |= index + reach >= shape[axis]
        elif way[axis] < 0 and cut[axis][0]:
            out |= index - reach < 0
    return out


def _shafts(wall: Mask, mean: NDArray, spacing: NDArray) -> Mask:
    """Fat inside a ring of bone in any slice direction: a shaft is open up and down like the spinal canal, but fat."""
    out = np.zeros(wall.shape, dtype=bool)
    for axis in range(3):
        holes, sizes = _holes(wall, [a for a in range(3) if a != axis])
        found = (sizes > 0) & (sizes * spacing.prod() / spacing[axis] <= LARGEST_SHAFT_MM2)
        inside = np.flatnonzero(holes)
        total = np.bincount(holes.ravel()[inside], weights=mean.ravel()[inside], minlength=sizes.size)
        out |= (found & (total < FAT_HU * sizes))[holes]
    return out


def _interpolate(coarse: NDArray, step: NDArray, shape: tuple[int, ...]) -> NDArray:
    """Blocks to voxels, linear between block centers."""
    for axis in range(3):
        if step[axis] == 1:
            coarse = coarse[tuple(slice(shape[a]) if a == axis else slice(None) for a in range(3))]
            continue
        at = (np.arange(shape[axis]) - (step[axis] - 1) / 2) / step[axis]
        at = np.clip(at, 0, coarse.shape[axis] - 1).astype(np.float32)
        low = np.minimum(at.astype(int), max(coarse.shape[axis] - 2, 0))
        high = np.minimum(low + 1, coarse.shape[axis] - 1)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        coarse = coarse.take(low, axis) * (1 - part) + coarse.take(high, axis) * part
    return coarse


def _holes(closed: Mask, axes: list[int]) -> tuple[NDArray, NDArray]:
    """Background parts connected along `axes` only; (labels, voxels per label), 0 voxels where open to the border."""
    structure = np.zeros((3,) * closed.ndim, dtype=bool)
    centre = [1] * closed.ndim
    for axis in axes:
        for side in (0, 1, 2):
            at = list(centre)
            at[axis] = side
            structure[tuple(at)] = True
    labels, count = ndimage.label(~closed, structure)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[_touching_border(labels, count, axes)] = 0
    sizes[0] = 0
    return labels, sizes


def _touching_border(labels: NDArray, count: int, axes: list[int]) -> Mask:
    """Which labels reach the image border along `axes`; (count + 1,) bool."""
    touching = np.zeros(count + 1, dtype=bool)
    for axis in axes:
        for face in (0, -1):
            touching[labels.take(face, axis)] = True
    return touching


def _drop_fragments(bone: Mask, spacing: NDArray) -> Mask:
    """Drop parts below 5 cm³; in a small crop below a twentieth of the largest, cut parts below a fifth of that."""
    labels, count = ndimage.label(bone, np.ones((3, 3, 3)))
    if count == 0:
        return bone
    volume = np.bincount(labels.ravel()) * spacing.prod()
    volume[0] = 0.0
    least = min(SMALLEST_BONE_MM3, 0.05 * volume.max())
    cut = _touching_border(labels, count, [0, 1, 2])
    keep = (volume >= least) | (cut & (volume >= 0.2 * least))
    keep[0] = False
    return keep[labels]


def _with_seed(mask: Mask, seed: Mask) -> Mask:
    """The parts (26-connected) of `mask` that hold a voxel of `seed`."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    keep = np.zeros(count + 1, dtype=bool)
    keep[labels[seed & mask]] = True
    keep[0] = False
    return keep[labels]


def _large_parts(mask: Mask, voxels: float) -> Mask:
    """The parts (26-connected) of `mask` with at least so many voxels."""
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    keep = np.bincount(labels.ravel()) >= voxels
    keep[0] = False
    return keep[labels]


def _dilate(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    """Ball of `radius_mm` by turns of cross and box, one voxel each: some ten array passes whatever the radius."""
    steps = np.round(radius_mm / spacing).astype(int)
    turns = int(steps.max(initial=0))
    out = mask
    for turn in range(turns):
        axes = [a for a in range(3) if (turn + 1) * steps[a] // turns > turn * steps[a] // turns]
        source, out = out, out.copy()
        for axis in axes:
            # Cross: every shift starts from `source`. Box: shifts build on one another.
            base = source if turn % 2 == 0 else out.copy()
            low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
            high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
            out[high] |= base[low]
            out[low] |= base[high]
    return out


def _erode(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    """Erosion to match `_dilate`; bone cut by the image border is not eroded from there."""
    return ~_dilate(~mask, radius_mm, spacing)


def _close(mask: Mask, radius_mm: float, spacing: NDArray) -> Mask:
    return _erode(_dilate(mask, radius_mm, spacing), radius_mm, spacing) | mask


def _without_padding(hu: NDArray) -> tuple[slice, ...]:
    """The part between constant outer slices: padding is not anatomy."""
    inner = []
    for axis in range(3):
        rest = tuple(a for a in range(3) if a != axis)
        highest = hu.max(axis=rest)
        varied = np.flatnonzero(~((highest == hu.min(axis=rest)) & (highest <= BONE_HU)))
        inner.append(slice(int(varied[0]), int(varied[-1]) + 1) if varied.size else slice(0, hu.shape[axis]))
    return tuple(inner)


def _bounding_box(mask: Mask, margin: NDArray, limit: tuple[slice, ...]) -> tuple[slice, ...] | None:
    """Box round a mask with a margin, inside `limit`; None where the mask is empty."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if hit.size == 0:
            return None
        start, stop = int(hit[0] - margin[axis]), int(hit[-1] + 1 + margin[axis])
        box.append(slice(max(limit[axis].start, start), min(limit[axis].stop, stop)))
    return tuple(box)


def _block_mean(image: NDArray, step: NDArray, lower: float = -np.inf) -> NDArray:
    """Mean over blocks of `step` voxels; the last block repeats the edge."""
    missing = [(0, int(-n % s)) for n, s in zip(image.shape, step, strict=True)]
    padded = np.pad(image, missing, mode="edge")
    x, y, z = (n // s for n, s in zip(padded.shape, step, strict=True))
    blocks = padded.reshape(x, step[0], y, step[1], z, step[2])
    return np.maximum(blocks.mean(axis=(1, 3, 5), dtype=np.float32), lower)


def _stretch(coarse: Mask, step: NDArray, shape: tuple[int, ...]) -> Mask:
    """Back from blocks to voxels."""
    for axis in range(3):
        coarse = coarse.repeat(step[axis], axis=axis)
    return coarse[tuple(slice(n) for n in shape)]
