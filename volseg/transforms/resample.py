"""MetaTensor -> MetaTensor on another grid: MONAI's Spacing, fast for grids without shear and right for those with it.

Grids come out exactly as from MONAI 1.6.1's `Spacing` (shape, affine, align_corners=False, border padding), values
within rounding, through `interpolate.py`. Two deliberate differences: voxel (0, 0, 0) stays in place even if a header's
direction cosines are rounded; and a sheared grid (tilted gantry) goes to a rectangular grid along the world axes that
covers it, where MONAI keeps the slices' own frame and cuts the corners.
Every step is recorded as MONAI's are, so `Invertd` undoes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, affine_to_spacing, compute_shape_offset, zoom_affine
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ensure_tuple_rep
from monai.utils.enums import TraceKeys
from numpy.typing import ArrayLike
from torch import Tensor

from volseg.geometry import Affine, closest_axes, shear, voxel_to_ras_mm
from volseg.transforms.interpolate import LINEAR, NEAREST, interpolate, interpolation_mode

# sin(0.06 degrees): below it a grid is rectangular up to the digits of its header (0.5 mm over 500 mm).
LARGEST_SHEAR_OF_A_RECTANGULAR_GRID = 1e-3

Shape = tuple[int, int, int]


def spacing_grid(affine: ArrayLike, shape: Sequence[int], pixdim: Sequence[float]) -> tuple[Affine, Shape]:
    """Affine and shape of the grid with voxels of `pixdim` mm (along the same voxel axes) that covers a given one.

    As MONAI's Spacing: voxel (0, 0, 0) stays, the rotation stays, an axis within 0.001 mm of `pixdim` is left as it is;
    a non-positive entry of `pixdim` means the present spacing. A sheared grid gets `covering_grid`.
    """
    a = np.asarray(affine, dtype=np.float64)
    present = affine_to_spacing(a, 3)
    wanted = np.asarray(pixdim, dtype=np.float64)
    wanted = np.where((wanted <= 0) | (np.abs(present - wanted) <= AFFINE_TOL), present, wanted)
    if shear(a) > LARGEST_SHEAR_OF_A_RECTANGULAR_GRID:
        return covering_grid(a, shape, wanted)
    out = zoom_affine(a, wanted, diagonal=False)
    size, _ = compute_shape_offset(shape, a, out)
    # Not compute_shape_offset's own position: direction cosines rounded in the sixth digit make it align centres by
    # shape / 2 instead, which shifts 5 mm slices by 2 mm (MONAI 1.6.1, 2026-11). For exact cosines the two are equal.
    out[:3, 3] = a[:3, 3]
    return out, (int(size[0]), int(size[1]), int(size[2]))


def covering_grid(affine: ArrayLike, shape: Sequence[int], pixdim: ArrayLike) -> tuple[Affine, Shape]:
    """The grid along the world axes (same order and sense as the voxel axes) that holds every voxel centre.

    Upright, not along the slices: with a tilted gantry the table, and so the patient, runs along the world axis and
    not along the slices' normal, and networks know upright patients.
    """
    a = np.asarray(affine, dtype=np.float64)
    steps = np.asarray(pixdim, dtype=np.float64)
    last = np.asarray(shape) - 1
    corners = voxel_to_ras_mm(a, np.array(np.meshgrid(*((0, n) for n in last))).reshape(3, -1).T)
    low, high = corners.min(axis=0), corners.max(axis=0)
    out = np.eye(4)
    out[:3, :3] = 0
    size = [0, 0, 0]
    for world, (axis, sign) in enumerate(zip(*closest_axes(a), strict=True)):
        step = float(steps[axis])
        out[world, axis] = sign * step
        out[world, 3] = low[world] if sign > 0 else high[world]
        size[axis] = int(np.ceil((high[world] - low[world]) / step - AFFINE_TOL)) + 1
    return out, (size[0], size[1], size[2])


def resample_to_grid(
    tensor: MetaTensor,
    *,
    affine: ArrayLike,
    shape: Sequence[int],
    mode: str = LINEAR,
    outside: float | None = None,
    antialias: bool = False,
) -> MetaTensor:
    """A (C, X, Y, Z) MetaTensor on the grid with this affine (voxel -> RAS mm) and shape, by its own affine.

    Any pair of grids: permuted, flipped, of other spacing (three 1-D interpolations), rotated or sheared against each
    other (one 3-D interpolation in slabs). `mode` is "linear" (gives float32) or "nearest" (keeps the dtype).
    Beyond the tensor's grid its border value holds, or `outside` if given; `antialias`: see `interpolate`. Metadata
    are kept, the trace is not touched.
    """
    target = torch.as_tensor(np.asarray(affine), dtype=torch.float64)
    voxel_map = torch.linalg.solve(tensor.affine.to(dtype=torch.float64, device="cpu"), target)
    values = interpolate(tensor.as_tensor(), voxel_map.numpy(), shape, mode=mode, outside=outside, antialias=antialias)
    out = MetaTensor(values, meta=dict(tensor.meta), applied_operations=list(tensor.applied_operations))
    out.affine = target
    return out


class ResampleToGrid(InvertibleTransform):
    """`resample_to_grid` as an invertible transform: `t(tensor, affine=..., shape=...)`, then `t.inverse(tensor)`."""

    def __init__(self, mode: str = "bilinear") -> None:
        self.mode = mode

    def __call__(  # type: ignore[override]
        self,
        tensor: MetaTensor,
        *,
        affine: ArrayLike,
        shape: Sequence[int],
        mode: str | None = None,
        outside: float | None = None,
        antialias: bool = False,
    ) -> MetaTensor:
        mode = mode or self.mode
        extra = {
            # MONAI's word for the mode, so that Invertd(nearest_interp=True) can turn it into "nearest".
            "mode": "nearest" if interpolation_mode(mode) == NEAREST else "bilinear",
            "align_corners": False,
            "src_affine": torch.as_tensor(tensor.affine, dtype=torch.float64),
        }
        size = tuple(tensor.shape[1:])
        out = resample_to_grid(tensor, affine=affine, shape=shape, mode=mode, outside=outside, antialias=antialias)
        self.push_transform(out, orig_size=size, extra_info=extra)
        return out

    def inverse(self, data: MetaTensor) -> MetaTensor:
        done = self.pop_transform(data)
        extra = done[TraceKeys.EXTRA_INFO]
        return resample_to_grid(data, affine=extra["src_affine"], shape=done[TraceKeys.ORIG_SIZE], mode=extra["mode"])


class AxisAlignedSpacing(InvertibleTransform):
    """MONAI's `Spacing(pixdim, diagonal=False)` as three 1-D interpolations; a sheared grid is made rectangular.

    Args:
        pixdim: voxel size in mm along each voxel axis (one number: all three).
        mode: "bilinear" (float32 out) or "nearest" (dtype kept; a tie goes to the upper voxel).
        outside: value where a sheared grid leaves the covering box empty; None means the volume's minimum, which is
            air in CT and background in a label. Border values there would smear skin and bone into wedges of
            anatomy that does not exist. Rectangular grids have no outside; their last half voxel repeats the border.
        antialias: where the target is coarser, "bilinear" averages what a target voxel covers (MONAI's Spacing does
            not): the noise of 0.7 mm voxels falls to a third on the way to 2 mm. The way back interpolates.
    """

    def __init__(
        self,
        pixdim: float | Sequence[float],
        mode: str = "bilinear",
        *,
        outside: float | None = None,
        antialias: bool = False,
    ) -> None:
        interpolation_mode(mode)
        self.pixdim = tuple(float(p) for p in ensure_tuple_rep(pixdim, 3))
        self.outside = outside
        self.antialias = antialias
        self.to_grid = ResampleToGrid(mode)

    def target_grid(self, tensor: MetaTensor) -> tuple[Affine, Shape]:
        """Affine and shape the tensor (C, X, Y, Z) will have."""
        return spacing_grid(tensor.affine.cpu().numpy(), tensor.shape[1:], self.pixdim)

    def __call__(self, tensor: Tensor, mode: str | None = None) -> MetaTensor:
        if not isinstance(tensor, MetaTensor):
            tensor = MetaTensor(tensor)
        affine, shape = self.target_grid(tensor)
        outside = None
        if shear(tensor.affine.cpu().numpy()) > LARGEST_SHEAR_OF_A_RECTANGULAR_GRID:
            outside = float(tensor.amin()) if self.outside is None else self.outside
        return self.to_grid(tensor, affine=affine, shape=shape, mode=mode, outside=outside, antialias=self.antialias)

    def inverse(self, data: MetaTensor) -> MetaTensor:
        return self.to_grid.inverse(data)


class AxisAlignedSpacingd(MapTransform, InvertibleTransform):
    """Dictionary version of `AxisAlignedSpacing`; `mode` may be one per key."""

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: float | Sequence[float],
        mode: str | Sequence[str] = "bilinear",
        *,
        outside: float | None = None,
        antialias: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.spacing = AxisAlignedSpacing(pixdim, outside=outside, antialias=antialias)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.spacing(d[key], mode=mode)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.spacing.inverse(d[key])
        return d
