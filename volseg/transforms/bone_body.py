"""Hounsfield units -> where the patient is. Enters a CT grid, leaves one mask without air, table and pads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.transforms.bone_blocks import block_mean, block_step, stretch
from volseg.transforms.bone_morphology import Mask, holes

BODY_HU = -300.0
GRID_MM = 3.0


def body_mask(hu: NDArray, spacing: NDArray, axial: int) -> Mask:
    """The patient, lungs and bowel gas included, table excluded; found on a grid of about 3 mm. (X, Y, Z) bool.

    hu: (X, Y, Z); spacing: (3,) mm per voxel; axial: the array axis that runs along the body, 0 to 2.
    """
    step = block_step(spacing, GRID_MM)
    return stretch(patient(block_mean(hu, step) > BODY_HU, axial), step, hu.shape)


def patient(coarse: Mask, axial: int) -> Mask:
    """The parts of a coarse mask (about 3 mm) that are a patient's, with the gas that axial slices close in."""
    opened = ndimage.binary_erosion(coarse, border_value=1)
    labels, count = ndimage.label(opened)
    if count == 0:
        return coarse
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # Arms and hands beside the trunk are parts of the patient; a table is gone after the erosion.
    body = (sizes >= 0.02 * sizes.max())[labels]
    body = ndimage.binary_dilation(body, iterations=2) & coarse
    # Gas is closed in by every axial slice, though airways and bowel may be cut by the last one.
    gaps, sizes = holes(body, [a for a in range(3) if a != axial])
    return body | (sizes > 0)[gaps]
