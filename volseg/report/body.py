"""CT -> where the patient is, roughly: keeps the scanner's table out of the projections. For pictures only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import Affine, spacing_mm

COARSE_MM = 4.0
SKIN_HU = -300.0
SMALLEST_SHARE = 0.01  # of the largest part: arms and hands beside the body stay, the shells of a table go


def body(hu: NDArray, affine: Affine) -> NDArray[np.bool_]:
    """Rough mask (X, Y, Z) of the patient: tissue in parts thicker than about 8 mm, judged on a 4 mm grid.

    Everything, where nothing is that thick.
    """
    steps = [max(1, math.floor(COARSE_MM / step)) for step in spacing_mm(affine)]
    tissue = hu[tuple(slice(None, None, step) for step in steps)] > SKIN_HU
    # Beyond the border the patient goes on: tissue cut off by the field of view is not thin.
    thick = ndimage.binary_erosion(tissue, border_value=1)
    parts, _ = ndimage.label(thick)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.any():
        return np.ones(hu.shape, dtype=bool)
    kept = (sizes >= SMALLEST_SHARE * sizes.max())[parts]
    mask = ndimage.binary_dilation(kept, iterations=2)
    for axis, step in enumerate(steps):
        mask = mask.repeat(step, axis=axis)
    return mask[tuple(slice(0, n) for n in hu.shape)]
