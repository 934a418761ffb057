"""Axial, coronal or sagittal, by chance: training for a 2D network that is to read volumes in all three planes.

A slice comes with its neighbours as further channels (2.5D), in the order of `volseg.networks.slicewise.to_slices`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor, ensure_tuple

from volseg.errors import UsageError
from volseg.transforms.crops import CROP_INDICES


class RandPlaned(Randomizable, MapTransform):
    """Turn volumes (C, X, Y, Z) in RAS+ so that their last axis runs across the plane that was drawn.

    Axial leaves them as they are; coronal gives (C, X, Z, Y), sagittal (C, Y, Z, X), as `volseg.networks.SliceWise`
    cuts slices. Crops of one slice cut afterwards lie in that plane. Plain tensors come out: the affine would no longer
    hold.

    Args:
        keys: tensors to turn, all on one grid.
        weights: how often sagittal, coronal and axial are drawn.
        indices_key: where `CacheCropIndicesd` left its voxels; they are turned along.
    """

    def __init__(
        self, keys: KeysCollection, weights: Sequence[float] = (1.0, 1.0, 1.0), *, indices_key: str = CROP_INDICES
    ) -> None:
        super().__init__(keys)
        if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
            raise UsageError("plane-weights", f"weights are (sagittal, coronal, axial), none negative, not {weights}")
        self.weights = [weight / sum(weights) for weight in weights]
        self.indices_key = indices_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        across = int(self.R.choice(3, p=self.weights))
        for key in self.key_iterator(d):
            tensor = d[key].as_tensor() if isinstance(d[key], MetaTensor) else d[key]
            d[key] = tensor.movedim(1 + across, 3)
        if self.indices_key in d:
            order = [axis for axis in range(3) if axis != across] + [across]
            d[self.indices_key] = {kind: voxels[:, order] for kind, voxels in d[self.indices_key].items()}
        return d


class MiddleSliced(MapTransform):
    """Slabs (C, X, Y, N) -> their middle slice (C, X, Y), plain tensors.

    Args:
        keys: slabs on one grid.
        context_keys: those of `keys` whose neighbours come along as channels, (C * (2 * context + 1), X, Y).
        context: neighbours to either side; beyond the slab its outermost slice, so one slice alone comes repeated.
    """

    def __init__(self, keys: KeysCollection, context_keys: KeysCollection = (), context: int = 0) -> None:
        super().__init__(keys)
        if context < 0:
            raise UsageError("context", f"neighbours to either side are 0 or more, not {context}")
        self.context_keys, self.context = ensure_tuple(context_keys), context

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            slab = convert_to_tensor(d[key], track_meta=False)
            reach = self.context if key in self.context_keys else 0
            last, middle = slab.shape[3] - 1, slab.shape[3] // 2
            places = torch.arange(middle - reach, middle + reach + 1).clamp(0, last)
            d[key] = slab[..., places].movedim(3, 1).flatten(0, 1).contiguous()
        return d
