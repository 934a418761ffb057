"""Training patches -> the same lesions in marrow that is not one value: lighter and darker regions without a border.

Healthy marrow changes slowly within one bone: the front of a vertebral body is less dense than its back, red marrow
lies in islands in the yellow. A network that saw a handful of bodies takes what is new to it for a lesion: in BLDS
patch 1 it marked the same loose front of three neighbouring lumbar bodies. What makes a lesion is its border and its
texture, and both stay.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn.functional import avg_pool3d

from volseg.errors import UsageError
from volseg.transforms.bodies import bspline_basis, spline_sum


class RandMarrowFieldd(RandomizableTransform, MapTransform):
    """Add a smooth random field of HU inside the marrow of a patch (1, X, Y, Z).

    The field is a sum of cubic B-splines with normal coefficients, scaled to the deviation that was drawn.

    Args:
        image_key, bone_key: HU; bone mask (0 outside, 1 cortex, 2 marrow; a bent mask has values between).
        prob: that a patch is changed.
        spread_hu: largest standard deviation of the field; each patch draws its own from 0 up.
        control: range of the distance between control points, in voxels: structures are about as large.

    Raises:
        UsageError: a negative spread, or control points nearer to each other than two voxels.
    """

    def __init__(
        self,
        image_key: str = "image",
        bone_key: str = "bone",
        *,
        prob: float = 0.6,
        spread_hu: float = 45.0,
        control: tuple[float, float] = (6.0, 16.0),
    ) -> None:
        MapTransform.__init__(self, [image_key, bone_key])
        RandomizableTransform.__init__(self, prob)
        if spread_hu < 0:
            raise UsageError("marrow-field", f"a standard deviation is not negative, got {spread_hu:g} HU")
        if not 2 <= control[0] <= control[1]:
            raise UsageError("marrow-field", f"control points lie 2 or more voxels apart, got {control}")
        self.image_key, self.bone_key = image_key, bone_key
        self.spread_hu, self.control = spread_hu, control

    def field(self, size: tuple[int, ...]) -> Tensor:
        """Draw a field of `size`: expected mean 0, deviation up to `spread_hu`."""
        deviation = self.R.uniform(0, self.spread_hu)
        spacing = self.R.uniform(*self.control)
        bases = [torch.from_numpy(bspline_basis(n, spacing)) for n in size]
        coefficients = torch.from_numpy(self.R.standard_normal([b.shape[1] for b in bases]).astype(np.float32))
        # A spline averages its coefficients; what that takes from their deviation is given back.
        scaled = [basis / basis.square().sum(dim=1).mean().sqrt() for basis in bases]
        return spline_sum(coefficients, scaled) * deviation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            hu = d[self.image_key]
            mask = convert_to_tensor(d[self.bone_key], track_meta=False).to(torch.float32)
            # Averaged over three voxels: the field must not draw the outline of the marrow.
            weight = avg_pool3d((mask - 1).clamp(0, 1)[None], 3, stride=1, padding=1)[0]
            d[self.image_key] = hu + weight * self.field(tuple(mask.shape[1:]))
        return d
