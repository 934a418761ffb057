"""Hounsfield units -> where the bone is. No model, no annotation; enters a CT, leave three masks on its grid.

The outline is kept tight: a lesion planted inside `bone` lies in bone. A caller who must not miss the soft-tissue part
of a lesion (sliding-window inference) dilates `bone` by 5-10 mm.

Steps: body without table (`bone_body`), metal and contrast medium taken out (`bone_contrast`), hysteresis 150/300 HU,
marrow filled in by rays (`bone_rays`), fragments dropped. Lengths are in mm, so any spacing works; about 1 mm is best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from volseg.geometry import TOUCHING, closest_axes, spacing_mm
from volseg.transforms.bone_body import body_mask
from volseg.transforms.bone_contrast import metal_and_contrast
from volseg.transforms.bone_morphology import Mask, dilate, erode, touching_border, with_seed
from volseg.transforms.bone_rays import CLOSING_MM, fill

__all__ = ["BoneMask", "body_mask", "bone_mask", "without_padding"]

BONE_HU = 150.0
SURE_BONE_HU = 300.0
# Sigma; more where the noise is above NOISY_HU, none along an axis of thicker voxels, which are means already.
SMOOTHING_MM, NOISY_SMOOTHING_MM = 0.6, 0.8
NOISY_HU = 40.0
THICK_VOXEL_MM = 2.0
CORTEX_MM = 2.0
SMALLEST_BONE_MM3 = 5000.0
# Resampling leaves this much on a constant, and no scanner measures as little noise.
RESAMPLED_HU = 0.01


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
    bone, marrow = np.zeros(hu.shape, dtype=bool), np.zeros(hu.shape, dtype=bool)
    image = without_padding(hu)
    # Padding before the first slice must not move the coarse grids, or all bone in the scan changes a little.
    scan = tuple(image[a] if a == axial else slice(None) for a in range(3))
    dense = np.zeros(hu.shape, dtype=bool)
    dense[scan] = (hu[scan] > BONE_HU) & body_mask(hu[scan], spacing, axial)
    box = _bounding_box(dense, np.ceil(2 * CLOSING_MM / spacing).astype(int), image)
    if box is None:
        return BoneMask(bone, marrow, bone.copy())
    # Below -200 HU it is all "not bone": clipped, air and padding do not dim a thin rib when smoothed.
    smooth = np.clip(hu[box].astype(np.float32), -200.0, 3000.0)
    sigma = NOISY_SMOOTHING_MM if _noise_hu(smooth) > NOISY_HU else SMOOTHING_MM
    smooth = ndimage.gaussian_filter(smooth, sigma / spacing * (spacing < THICK_VOXEL_MM), truncate=3.0)
    solid = (smooth > BONE_HU) & dilate(dense[box], 1.0, spacing)
    del dense
    not_bone = metal_and_contrast(smooth, solid, spacing)
    solid = with_seed(solid & ~not_bone, smooth > SURE_BONE_HU)
    cut = [(b.start == i.start, b.stop == i.stop) for b, i in zip(box, image, strict=True)]
    filled = fill(solid, smooth, not_bone=not_bone, spacing=spacing, axial=axial, cut=cut)
    filled = _drop_fragments(filled, spacing)
    bone[box] = filled
    marrow[box] = erode(filled, CORTEX_MM, spacing)
    return BoneMask(bone, marrow, bone & ~marrow)


def _noise_hu(hu: NDArray) -> float:
    """Standard deviation of the noise in soft tissue, from the differences between neighbours; 0 without any."""
    sample = hu[::2, ::2, ::2] if hu.size > 4e6 else hu
    middle, right, left = sample[1:-1], sample[2:], sample[:-2]
    tissue = (middle > -150.0) & (middle < 150.0) & (np.abs(left) < 150.0) & (np.abs(right) < 150.0)
    if not tissue.any():
        return 0.0
    second = middle[tissue] - 0.5 * (left[tissue] + right[tissue])
    # Median -> standard deviation of a normal; a value less the mean of two others has 1.5 times its variance.
    return float(np.median(np.abs(second)) / 0.6745 / np.sqrt(1.5))


def _drop_fragments(bone: Mask, spacing: NDArray) -> Mask:
    """Keep parts of 5 cm³ or, where all is small, a twentieth of the largest; a fifth of that at the image border."""
    labels, count = ndimage.label(bone, TOUCHING)
    volume = np.bincount(labels.ravel()) * spacing.prod()
    volume[0] = 0.0
    least = min(SMALLEST_BONE_MM3, 0.05 * volume.max())
    at_border = touching_border(labels, count, [0, 1, 2])
    keep = (volume >= least) | (at_border & (volume >= 0.2 * least))
    keep[0] = False
    return keep[labels]


def without_padding(hu: NDArray) -> tuple[slice, ...]:
    """The part between constant outer slices: padding is not anatomy. All of an image that is constant throughout."""
    inner = []
    for axis in range(3):
        rest = tuple(a for a in range(3) if a != axis)
        highest = hu.max(axis=rest)
        constant = highest - hu.min(axis=rest).astype(float) < RESAMPLED_HU
        varied = np.flatnonzero(~(constant & (highest <= BONE_HU)))
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
