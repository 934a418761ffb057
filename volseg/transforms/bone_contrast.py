"""What is as bright as bone and is none: contrast medium and metal. Enter a smoothed CT and a guess, leaves a mask.

A pool of contrast is homogeneous and has no bright shell; a bone has cortex round its marrow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.transforms.bone_blocks import block_mean, stretch
from volseg.transforms.bone_morphology import Mask, dilate, large_parts, with_seed

METAL_HU = 2200.0


def metal_and_contrast(smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """What to take out of `solid`, with its fringe; `smooth` is HU without fine noise. (X, Y, Z) bool."""
    metal = dilate(smooth > METAL_HU, 1.5, spacing)
    return metal | _contrast(smooth, solid & ~metal, spacing)


def _contrast(smooth: NDArray, solid: Mask, spacing: NDArray) -> Mask:
    """Vessels, heart, kidneys and bladder full of contrast medium: homogeneous, and no bright shell around them."""
    step = np.maximum(1, np.round(3.0 / spacing)).astype(int)
    size = step * spacing
    coarse = block_mean(smooth, step)
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
    seed = stretch(seed, step, smooth.shape)
    wall = large_parts(smooth > ceiling + 80.0, 300.0 / spacing.prod())
    free = (smooth < ceiling) & ~dilate(wall, 3.0, spacing)
    # Between the core and its edge the noise dips below the threshold: taken along, so that it is not filled later.
    return with_seed((free & solid) | (seed & solid), seed) | (free & dilate(seed, 4.0, spacing))
