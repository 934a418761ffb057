"""Preparing CT: HU on the source grid -> RAS+, 1 mm, bone mask, [-1, 1]. What bundles name in their JSON."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRanged, SpatialCrop
from torch import Tensor

from volseg.geometry import Affine, closest_axes, spacing_mm
from volseg.transforms.bone import bone_mask, without_padding
from volseg.transforms.interpolate import LINEAR, interpolation_mode
from volseg.transforms.invert import SCAN
from volseg.transforms.resample import (
    AxisAlignedSpacing,
    AxisAlignedSpacingd,
    Shape,
    resample_to_grid,
    spacing_grid,
)

AIR_HU = -1024.0


class RasIsotropic(AxisAlignedSpacing):
    """Axes to R, A, S and cubic voxels of `spacing_mm`, in one interpolation without a turned copy in between.

    The same as MONAI's Orientation("RAS") followed by Spacing; oblique grids keep their rotation, sheared ones are
    made rectangular (see AxisAlignedSpacing).

    Args:
        spacing_mm: edge of a voxel.
        mode: "bilinear" for HU, "nearest" for labels.
        low_hu: with "bilinear", values below are raised to this first (None: they stay). Scanners mark what lies
            outside the reconstruction circle with -2000, -3024 or less; interpolated, such a mark leaves a false edge.
        outside, antialias: see AxisAlignedSpacing.
    """

    def __init__(
        self,
        spacing_mm: float = 1.0,
        mode: str = "bilinear",
        *,
        low_hu: float | None = AIR_HU,
        outside: float | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__(spacing_mm, mode, outside=outside, antialias=antialias)
        self.low_hu = low_hu

    def __call__(self, tensor: Tensor, mode: str | None = None) -> MetaTensor:
        # amin, not min: 9 ms against 1.1 s on a chest CT stored slice by slice (torch 2.13).
        linear = interpolation_mode(mode or self.to_grid.mode) == LINEAR
        if linear and self.low_hu is not None and float(tensor.amin()) < self.low_hu:
            tensor = torch.clamp(tensor, min=self.low_hu)
        return super().__call__(tensor, mode)

    def target_grid(self, tensor: MetaTensor) -> tuple[Affine, Shape]:
        affine, shape = ras_grid(tensor.affine.cpu().numpy(), tensor.shape[1:])
        return spacing_grid(affine, shape, self.pixdim)


class RasIsotropicd(AxisAlignedSpacingd):
    """Dictionary version of `RasIsotropic`: image keys "bilinear", label keys "nearest"; invertible in one step."""

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: float = 1.0,
        mode: str | Sequence[str] = "bilinear",
        *,
        low_hu: float | None = AIR_HU,
        outside: float | None = None,
        antialias: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, spacing_mm, mode, outside=outside, allow_missing_keys=allow_missing_keys)
        self.spacing = RasIsotropic(spacing_mm, low_hu=low_hu, outside=outside, antialias=antialias)


def ras_grid(affine: Affine, shape: Sequence[int]) -> tuple[Affine, Shape]:
    """Affine and shape of the same grid with its axes permuted and flipped to run closest to R, A and S."""
    order, signs = closest_axes(affine)
    a = np.asarray(affine, dtype=np.float64)
    out = a.copy()
    for world, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        out[:3, world] = sign * a[:3, axis]
        if sign < 0:
            out[:3, 3] += a[:3, axis] * (shape[axis] - 1)
    return out, (int(shape[order[0]]), int(shape[order[1]]), int(shape[order[2]]))


class CropPaddingd(MapTransform):
    """Cut constant outer slices (air, a filler value) off images (1, X, Y, Z) in HU; `to_source_grid` puts zeros there.

    Comes before the resampling. On a coarser grid the scan's first slice and the padding mix, bone seems to begin a
    voxel earlier and windows lie elsewhere: 96 mm of air below a CT of 3 mm voxels left 2 of 12 marks of a detector
    where they had been (2026-11-24). The cut is written into the metadata (`volseg.transforms.invert.SCAN`).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            inner = without_padding(d[key].as_tensor().cpu().numpy()[0])
            d[key] = SpatialCrop(roi_slices=inner)(d[key])
            d[key].meta[SCAN] = np.array([(s.start, s.stop) for s in inner])
        return d


class BoneMaskd(MapTransform):
    """Add `mask_key`: the bone of `image_key` (1, X, Y, Z) in HU, as a uint8 MetaTensor on the same grid.

    0 is no bone, 1 is cortex, 2 is marrow (2 mm deep and deeper), so `> 0` is bone.

    Comes after resampling to cubic voxels and before the HU window. Bone is told from contrast medium by its shell, and
    what tells them apart was tuned on voxels of 1 to 1.5 mm: an image coarser than `coarsest_mm` is interpolated to
    that for the search (on a 2 mm grid a contrast-filled heart came out as bone, interpolated to 1.5 mm it does not).
    That finer grid begins where the scan begins, not where its padding does: air put around a scan moves no voxel.
    """

    def __init__(self, image_key: str = "image", mask_key: str = "bone", *, coarsest_mm: float = 1.5) -> None:
        super().__init__([image_key])
        self.image_key, self.mask_key, self.coarsest_mm = image_key, mask_key, coarsest_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        inner = without_padding(image.as_tensor().cpu().numpy()[0])
        values = torch.zeros(image.shape, dtype=torch.uint8)
        values[(slice(None), *inner)] = self._found(image[(slice(None), *inner)])
        # The mask shares the image's history, so that whatever inverts the image inverts the mask.
        d[self.mask_key] = MetaTensor(values, meta=dict(image.meta), applied_operations=list(image.applied_operations))
        return d

    def _found(self, image: MetaTensor) -> Tensor:
        own = image.affine.cpu().numpy()
        searched = image
        if spacing_mm(own).min() > 1.01 * self.coarsest_mm:
            affine, shape = spacing_grid(own, image.shape[1:], (self.coarsest_mm,) * 3)
            searched = resample_to_grid(image, affine=affine, shape=shape)
        found = bone_mask(searched.as_tensor().cpu().numpy()[0], searched.affine.cpu().numpy())
        values = torch.from_numpy((found.bone.astype(np.uint8) + found.marrow)[None])
        if searched is image:
            return values
        mask = MetaTensor(values, affine=searched.affine)
        return resample_to_grid(mask, affine=own, shape=image.shape[1:], mode="nearest").as_tensor()


class HounsfieldWindowd(ScaleIntensityRanged):
    """HU -> [-1, 1], linearly from `low` to `high` and clipped: MONAI's ScaleIntensityRange in a CT reader's words.

    The default keeps fat, marrow (-100..150 HU), lytic soft tissue and all but the densest cortex apart.
    """

    def __init__(
        self, keys: KeysCollection, low: float = -200.0, high: float = 1000.0, *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(
            keys, a_min=low, a_max=high, b_min=-1.0, b_max=1.0, clip=True, allow_missing_keys=allow_missing_keys
        )
