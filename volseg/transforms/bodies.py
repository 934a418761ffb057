"""Training patches -> the same lesions in another body: bones bent and sized otherwise, marrow denser or thinner.

A handful of CTs shows a handful of spines; a network that sees them a thousand times learns them by heart and takes
whatever differs for a lesion. The bend is a free-form deformation by cubic B-splines (Rueckert et al., IEEE TMI
1999;18:712), small enough never to fold (Choi and Lee, Graphical Models 2000;62:411). MONAI's Rand3DElasticd smooths
noise at every voxel instead: .2 s for the three parts of a 32-voxel patch, where this takes .01 s (one core, 2026-11).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.utils import create_rotate
from monai.utils import convert_to_tensor, ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from volseg.errors import UsageError

# Control points nearer to each other's places than this fraction of their distance: no fold can come (Choi and Lee).
NO_FOLD = 0.4
SOFT_TISSUE_HU = 40.0


class RandBodyd(RandomizableTransform, MapTransform):
    """Turn, stretch and bend patches (C, X, Y, Z) alike; what leaves is their middle `spatial_size`, plain tensors.

    Linear interpolation for `keys` of mode "bilinear", nearest for "nearest"; beyond the patch its border goes on, so
    give patches some voxels more than `spatial_size`. Where chance spares a patch its middle is cut.

    Args:
        spatial_size: voxels of what leaves, one number or three.
        prob: that a patch is changed at all.
        rotate: largest turn about every axis, radians.
        stretch: largest |log| of the scale along every axis, each axis by itself.
        bend: how far control points move, as a fraction (0 to 1) of what is safe from folds.
        control: range of the distance between control points, in voxels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        spatial_size: int | Sequence[int],
        mode: str | Sequence[str] = "bilinear",
        prob: float = 0.8,
        rotate: float = 0.3,
        stretch: float = 0.25,
        bend: float = 1.0,
        control: tuple[float, float] = (9.0, 18.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= bend <= 1:
            raise UsageError("bend", f"bend {bend:g} is not in [0, 1]: beyond 1 a body can fold into itself")
        self.size = tuple(int(n) for n in ensure_tuple_rep(spatial_size, 3))
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.rotate, self.stretch, self.bend, self.control = rotate, stretch, bend, control

    def places(self) -> Tensor:
        """Draw a body: where each voxel that leaves is taken from, (*size, 3) voxels off the patch's middle."""
        centers = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        at = torch.stack(torch.meshgrid(*centers, indexing="ij"), dim=-1)
        turn = create_rotate(3, self.R.uniform(-self.rotate, self.rotate, 3).tolist())[:3, :3]
        scale = np.diag(np.exp(self.R.uniform(-self.stretch, self.stretch, 3)))
        spacing = self.R.uniform(*self.control)
        bases = [torch.from_numpy(bspline_basis(n, spacing)) for n in self.size]
        reach = self.bend * NO_FOLD * spacing
        moves = torch.from_numpy(self.R.uniform(-reach, reach, (*(b.shape[1] for b in bases), 3)).astype(np.float32))
        bent = spline_sum(moves, bases).movedim(0, -1)
        return (at + bent) @ torch.as_tensor(np.asarray(turn) @ scale, dtype=torch.float32).T

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        places = self.places() if self._do_transform else None
        for key, mode in self.key_iterator(d, self.mode):
            patch = convert_to_tensor(d[key], track_meta=False)
            d[key] = _middle(patch, self.size) if places is None else _taken(patch, places, mode)
        return d


class RandBoneDensityd(RandomizableTransform, MapTransform):
    """Another patient's bone: HU above (and below) soft tissue scaled inside the bone mask, as mineral content varies.

    A dissolved lesion is soft tissue and stays what it is, while the marrow around it moves: from an osteoporotic
    patient's to a young one's.

    Args:
        image_key, bone_key: HU and bone mask (0 outside; a mask that was bent has values between), (1, X, Y, Z).
        prob: that a patch is changed.
        spread: largest |log| of the factor.
    """

    def __init__(
        self, image_key: str = "image", bone_key: str = "bone", *, prob: float = 0.5, spread: float = 0.35
    ) -> None:
        MapTransform.__init__(self, [image_key, bone_key])
        RandomizableTransform.__init__(self, prob)
        self.image_key, self.bone_key, self.spread = image_key, bone_key, spread

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        factor = float(np.exp(self.R.uniform(-self.spread, self.spread)))
        if self._do_transform:
            hu = d[self.image_key]
            weight = convert_to_tensor(d[self.bone_key], track_meta=False).to(torch.float32).clamp(0, 1)
            d[self.image_key] = hu + (factor - 1) * weight * (hu - SOFT_TISSUE_HU)
        return d


def bspline_basis(voxels: int, spacing: float) -> NDArray[np.float32]:
    """(voxels, control points) of uniform cubic B-splines `spacing` voxels apart, centred; every row sums to 1."""
    at = (np.arange(voxels) - (voxels - 1) / 2) / spacing
    outermost = int(np.ceil(at[-1])) + 1
    distance = np.abs(at[:, None] - np.arange(-outermost, outermost + 1)[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis: NDArray[np.float32] = np.where(distance < 1, near, far).astype(np.float32)
    return basis


def spline_sum(coefficients: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Coefficients (I, J, K, ...) of `bspline_basis` along three axes -> values (..., X, Y, Z)."""
    for basis in bases:  # each contracts the first axis and puts its voxels last: x, y, z in the end
        coefficients = torch.tensordot(coefficients, basis, dims=([0], [1]))
    return coefficients


def _middle(patch: Tensor, size: tuple[int, ...]) -> Tensor:
    starts = [(have - want) // 2 for have, want in zip(patch.shape[1:], size, strict=True)]
    return patch[(slice(None), *(slice(s, s + n) for s, n in zip(starts, size, strict=True)))].contiguous()


def _taken(patch: Tensor, places: Tensor, mode: str) -> Tensor:
    """Sample (C, X, Y, Z) at places in voxels off its middle; grid_sample counts from the last axis and to +-1."""
    edges = torch.tensor(patch.shape[1:], dtype=torch.float32)
    grid = (places * 2 / edges).flip(-1)[None]
    taken = grid_sample(patch.float()[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
    return taken.to(patch.dtype)
