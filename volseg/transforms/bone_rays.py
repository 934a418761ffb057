"""Dense bone -> whole bone: marrow is what bone surrounds along rays. Enter shell and HU, leaves the filled mask."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.transforms.bone_blocks import block_mean, block_step, interpolate
from volseg.transforms.bone_morphology import Mask, close, dilate, holes

# Per axis: does the image cut the body at its first, at its last slice?
Faces = list[tuple[bool, bool]]

CLOSING_MM = 2.5
GRID_MM = 2.0
THIN_WALL_HU = 120.0
REACH_MM = 35.0
AIR_HU = -150.0
FAT_HU = -20.0
# A shaft of a long bone, with its fat, stays below 10 cm² in section.
LARGEST_SHAFT_MM2 = 1000.0
# Marrow score at these HU (means over about 4 mm). Fat and soft tissue must be well enclosed, trabeculae need less.
SCORE_HU = (-150.0, 20.0, 60.0, 90.0, 120.0)
SCORE = (-0.6, -0.6, -0.2, 0.2, 0.5)
# What full enclosure adds: by all 13 lines, the 4 in the axial plane, the vertical one. ENOUGH, HU score added: marrow.
# An intervertebral disc has endplates above and below and nothing around it.
LINES, IN_PLANE, VERTICAL = 1.3, 1.4, 1.0
ENOUGH = 2.8


def fill(solid: Mask, smooth: NDArray, *, not_bone: Mask, spacing: NDArray, axial: int, cut: Faces) -> Mask:
    """`solid` and the marrow: what bone surrounds along rays, weighed against its HU; found on a grid of about 2 mm.

    solid: dense bone; smooth: HU without fine noise; not_bone: never added; all (X, Y, Z). spacing: (3,) mm per voxel;
    axial: the array axis that runs along the body.

    Rays look 35 mm along the 13 lines through a voxel's neighbours. The line up and down counts by itself: a vertebral
    body has endplates, the spinal canal and soft tissue between two bones have not. A wall eaten by a lesion opens
    some lines only, where hole filling would lose the whole bone.
    """
    step = block_step(spacing, GRID_MM)
    size = step * spacing
    mean = block_mean(smooth, step)
    shell = block_mean(solid, step) >= 0.4
    # A thin wall, blurred: enough to end a line, not to be bone.
    wall = shell | ((mean > THIN_WALL_HU) & ndimage.binary_dilation(shell))
    lines, in_plane, vertical = _enclosure(wall, size, axial, cut)
    local = ndimage.gaussian_filter(mean, np.minimum(1.5 / size, 1.0))
    surrounded = lines * (LINES / 26) + in_plane * (IN_PLANE / 8) + vertical * (VERTICAL / 2)
    score = surrounded + np.interp(local, SCORE_HU, SCORE)
    score = np.maximum(score, (ENOUGH + 0.5) * _shafts(wall, mean, size)).astype(np.float32)
    inner = interpolate(score, step, solid.shape) > ENOUGH
    inner &= (smooth > AIR_HU) & ~not_bone
    closed = close(solid, CLOSING_MM, spacing) & ~not_bone
    # Of what closing adds, keep pores and gaps in the shell, not the notches between two bones.
    return solid | inner | (closed & dilate(inner, 1.5, spacing)) | (close(solid, 1.0, spacing) & ~not_bone)


def _enclosure(wall: Mask, spacing: NDArray, axial: int, cut: Faces) -> tuple[NDArray, NDArray, NDArray]:
    """How many lines through each voxel meet `wall` both ways within 35 mm: of all 13, of the 4 in the axial plane, of
    the vertical one. A line counts 2; where the image cuts the body and its border stands for one of the two ends, 1.
    """
    lines, in_plane = np.zeros(wall.shape, np.uint8), np.zeros(wall.shape, np.uint8)
    vertical = np.zeros(wall.shape, np.uint8)
    for way in itertools.product((-1, 0, 1), repeat=3):
        # One way of each line.
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
    # From one slice to the next the ray also shifts by `rest` within the slice.
    take = tuple({0: slice(None), 1: slice(1, None), -1: slice(None, -1)}[w] for w in rest)
    put = tuple({0: slice(None), 1: slice(None, -1), -1: slice(1, None)}[w] for w in rest)
    walls = np.moveaxis(wall, axis, 0)
    # How many voxels further a wall just passed is still in reach; 0 is out of reach.
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
        labels, sizes = holes(wall, [a for a in range(3) if a != axis])
        found = (sizes > 0) & (sizes * spacing.prod() / spacing[axis] <= LARGEST_SHAFT_MM2)
        total_hu = np.bincount(labels.ravel(), weights=mean.ravel())
        out |= (found & (total_hu < FAT_HU * sizes))[labels]
    return out
