"""Hounsfield units -> where the patient is. Enters a CT grid, leaves one mask without air, table and pads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.transforms.bone_blocks import block_mean, stretch
from volseg.transforms.bone_morphology import Mask, touching_border

BODY_HU = -300.0


def body_mask(hu: NDArray, spacing: NDArray, axial: int) -> Mask:
    """The patient, lungs and bowel gas included, table excluded; found on a grid of about 3 mm. (X, Y, Z) bool."""
    step = np.maximum(1, np.round(3.0 / spacing)).astype(int)
    coarse = block_mean(hu, step, lower=-1024.0) > BODY_HU
    opened = ndimage.binary_erosion(coarse, border_value=1)
    labels, count = ndimage.label(opened)
    if count == 0:
        return stretch(coarse, step, hu.shape)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # Arms and hands beside the trunk are parts of the patient; a table is gone after the erosion.
    body = (sizes >= 0.02 * sizes.max())[labels]
    body = ndimage.binary_dilation(body, iterations=2) & coarse
    plane = np.zeros((3, 3, 3), dtype=bool)
    cross = ndimage.generate_binary_structure(2, 1)
    plane[tuple(1 if a == axial else slice(None) for a in range(3))] = cross
    outside, count = ndimage.label(~body, plane)
    keep_open = touching_border(outside, count, [a for a in range(3) if a != axial])
    return stretch(body | ~keep_open[outside], step, hu.shape)
