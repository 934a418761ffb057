"""What a DetectionInferer left on the working grid -> numbered lesions on the source grid, as MONAI transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import voxel_volume_mm3
from volseg.transforms.invert import to_source_grid

PROBABLE = 0.5  # where a lesion's own outline runs on the working grid


class DetectedLesionsd(MapTransform):
    """(3, X, Y, Z) of `DetectionInferer` -> instances and probability on the source grid, and the lesions' scores.

    Under `keys` lies afterwards the instance mask (1, X, Y, Z) int32, lesions numbered from 1, largest first; under
    `probability_key` float32; under `scores_key` a tuple: the detection score of lesion 1, 2, ... The outline is cut
    where the probability, interpolated linearly, reaches `threshold`; whose it is comes from the nearest voxel. Lesions
    below `min_volume_mm3`, or with `bone_key` and no voxel in bone or within a voxel of it, are dropped.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        probability_key: str = "probability",
        scores_key: str = "scores",
        bone_key: str | None = None,
        threshold: float = 0.5,
        min_volume_mm3: float = 30.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.probability_key, self.scores_key, self.bone_key = probability_key, scores_key, bone_key
        self.threshold, self.min_volume_mm3 = threshold, min_volume_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            found = d[key]
            if self.bone_key is not None and self.bone_key in d:
                found = _touching_bone(found, d[self.bone_key])
            scores = _scores_by_owner(found)
            probability = to_source_grid(found[:1])
            owner = to_source_grid(found[1:2], mode="nearest")
            instances = np.where(
                np.asarray(probability[0].cpu()) >= self.threshold, np.asarray(owner[0].cpu()), 0
            ).astype(np.int32)
            numbered, kept = by_volume(instances, probability.affine.cpu().numpy(), self.min_volume_mm3)
            d[key] = MetaTensor(torch.from_numpy(numbered)[None], meta=probability.meta)
            d[self.probability_key] = probability
            d[self.scores_key] = tuple(scores.get(i, 0.0) for i in kept)
        return d


class OwnedVoxelsd(MapTransform):
    """(3, X, Y, Z) of `DetectionInferer` -> instances (1, X, Y, Z) int32 on the same working grid: for validation."""

    def __init__(
        self, keys: KeysCollection = "pred", *, threshold: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = torch.where(d[key][:1] >= self.threshold, d[key][1:2], 0).to(torch.int32)
        return d


def by_volume(instances: NDArray[np.int32], affine: NDArray, least_mm3: float) -> tuple[NDArray[np.int32], list[int]]:
    """Renumber lesions (X, Y, Z) from 1, largest first, without those below `least_mm3`; and their old numbers."""
    voxels = np.bincount(instances.ravel())
    voxels[0] = 0
    # A millionth of slack: a limit of exactly n voxels must not fall to the rounding of the determinant.
    kept = np.flatnonzero((voxels > 0) & (voxels * voxel_volume_mm3(affine) >= least_mm3 * (1 - 1e-6)))
    kept = kept[np.argsort(-voxels[kept], kind="stable")]
    number = np.zeros(max(1, voxels.size), dtype=np.int32)
    number[kept] = np.arange(1, kept.size + 1)
    return number[instances], [int(k) for k in kept]


def _scores_by_owner(found: MetaTensor) -> dict[int, float]:
    plain = found.as_tensor() if isinstance(found, MetaTensor) else found
    owner, first = np.unique(plain[1].cpu().numpy().ravel(), return_index=True)
    score = plain[2].cpu().numpy().ravel()
    return {int(o): float(score[i]) for o, i in zip(owner, first, strict=True) if o > 0}


def _touching_bone(found: MetaTensor, bone: Any) -> MetaTensor:
    """Erase the lesions of which no probable voxel lies in bone or beside it."""
    near = ndimage.binary_dilation(np.asarray(torch.as_tensor(bone)[0].cpu()) > 0)
    plain = found.as_tensor()
    owner = plain[1].cpu().numpy().astype(np.int64)
    touching = np.zeros(int(owner.max()) + 1, dtype=bool)
    touching[np.unique(owner[near & (plain[0].cpu().numpy() >= PROBABLE)])] = True
    return MetaTensor(plain * torch.from_numpy(touching[owner]).to(plain.device), meta=found.meta)
