"""What is as bright as bone and is none: contrast medium and metal. Enter a smoothed CT and a guess; leaves a mask.

A pool of contrast is homogeneous and has no bright shell; a bone has cortex round its marrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import widened
from volseg.transforms.bone_blocks import block_mean, block_step, stretch
from volseg.transforms.bone_morphology import Mask, dilate, large_parts, with_seed

METAL_HU = 2200.0
GRID_MM = 3.0
# The core of a pool: every block and its neighbours above CORE_HU and alike.
CORE_HU = 130.0
SMALLEST_CORE_MM3 = 1000.0
# Denser than any contrast medium in a vessel or organ.
HIGHEST_MEAN_HU = 1200.0
# Round the core: the shell up to 5 mm, where a bone has its cortex; the ring from there to 10 mm, its surroundings.
SHELL_MM, RING_MM = 5.0, 10.0
BRIGHTER_HU = 60.0
SOFT_HU = 100.0


def metal_and_contrast(smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """Metal with its fringe, and pools of contrast medium: neither is bone. (X, Y, Z) bool.

    smooth: HU without fine noise, (X, Y, Z); solid: what is bright enough for bone; spacing: (3,) mm per voxel.
    """
    metal = dilate(smooth > METAL_HU, 1.5, spacing)
    return metal | _contrast(smooth, solid & ~metal, spacing)


def _contrast(smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """Vessels, heart, kidneys and bladder full of contrast medium: homogeneous, and no bright shell around them."""
    step = block_step(spacing, GRID_MM)
    size = step * spacing
    coarse = block_mean(smooth, step)
    lowest, highest = ndimage.minimum_filter(coarse, 3), ndimage.maximum_filter(coarse, 3)
    labels, _ = ndimage.label((lowest > CORE_HU) & (highest - lowest < 0.4 * coarse))
    reach = np.ceil(RING_MM / size).astype(int)
    out = np.zeros(smooth.shape, dtype=bool)
    for index, where in enumerate(ndimage.find_objects(labels), start=1):
        around = widened(where, reach, coarse.shape)
        ceiling_hu = _ceiling_hu(coarse[around], labels[around] == index, size)
        if ceiling_hu is not None:
            seed = stretch(labels == index, step, smooth.shape)
            out |= _flood(seed, ceiling_hu, smooth, solid, spacing)
    return out


def _ceiling_hu(hu: NDArray, core: Mask, size: NDArray) -> float | None:
    """Up to which HU the pool round a core of contrast medium goes; None where the core is no contrast medium.

    hu: the core and 10 mm around it, in blocks of `size` mm.
    """
    if core.sum() * size.prod() < SMALLEST_CORE_MM3:
        return None
    mean, spread = hu[core].mean(), hu[core].std()
    distance_mm = ndimage.distance_transform_edt(~core, sampling=size)
    shell = hu[(distance_mm > 0.0) & (distance_mm <= SHELL_MM)]
    ring = hu[(distance_mm > SHELL_MM) & (distance_mm <= RING_MM)]
    if ring.size == 0 or mean > HIGHEST_MEAN_HU or spread > 0.12 * mean:
        return None
    if (shell > mean + BRIGHTER_HU).mean() > 0.04:
        return None
    # A pool lies in soft tissue; bone may touch it on one side.
    if (ring < SOFT_HU).mean() - (ring > mean + BRIGHTER_HU).mean() < 0.10:
        return None
    return mean + 3 * spread + 50.0


def _flood(seed: Mask, ceiling_hu: float, smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """Grow a core of contrast through everything below `ceiling_hu` that is not beside denser bone."""
    wall = large_parts(smooth > ceiling_hu + 80.0, 300.0 / spacing.prod())
    free = (smooth < ceiling_hu) & ~dilate(wall, 3.0, spacing)
    # Between the core and its edge the noise dips below the threshold: taken along, so that it is not filled later.
    return with_seed((free | seed) & solid, seed) | (free & dilate(seed, 4.0, spacing))
