"""Where in the body does a lesion lie? A CT and points in mm enter; fractions of the body leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volseg.geometry import closest_axes, spacing_mm, voxel_to_ras_mm
from volseg.transforms.bone_body import body_mask

POSITION_NAMES = ("off_midline", "depth_from_front", "height_in_view")
COARSE_MM = 4.0
SLAB_MM = 15.0  # to either side: the body's outline at the lesion's own height


def body_positions(voxels_hu: NDArray, affine: ArrayLike, centers_ras_mm: NDArray) -> NDArray[np.float64]:
    """Position of points (N, 3) RAS+ mm in the body of a CT (X, Y, Z) in HU; (N, 3) fractions, `POSITION_NAMES`.

    `off_midline` 0 in the middle, 1 at either flank; `depth_from_front` 0 at the front, 1 at the back, both of the
    body's outline within 15 mm of the point's height; `height_in_view` 0 at the lowest, 1 at the highest body in the
    picture: it depends on how much was scanned. NaN where there is no body.
    """
    positions = np.full((len(centers_ras_mm), 3), np.nan)
    if len(centers_ras_mm) == 0:
        return positions
    steps = [max(1, int(COARSE_MM // step)) for step in spacing_mm(affine)]
    coarse = np.asarray(affine, dtype=np.float64).copy()
    coarse[:3, :3] *= steps
    hu = np.nan_to_num(voxels_hu[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32), nan=-1024.0)
    body = body_mask(hu, spacing_mm(coarse), closest_axes(coarse)[0][2])
    points = voxel_to_ras_mm(coarse, np.argwhere(body))
    if len(points) == 0:
        return positions
    low, high = points[:, 2].min(), points[:, 2].max()
    for row, center in zip(positions, centers_ras_mm, strict=True):
        slab = points[np.abs(points[:, 2] - center[2]) <= SLAB_MM]
        if len(slab) == 0:
            continue
        (right, front), (left, back) = slab[:, :2].max(axis=0), slab[:, :2].min(axis=0)
        half_width_mm = max((right - left) / 2, COARSE_MM)
        row[0] = abs(center[0] - (right + left) / 2) / half_width_mm
        row[1] = (front - center[1]) / max(front - back, COARSE_MM)
        row[2] = (center[2] - low) / max(high - low, COARSE_MM)
    return np.clip(positions, 0.0, 1.0)
