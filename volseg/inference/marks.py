"""Marks of a network on the working grid, and taking those out that a rule knows for anatomy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import spacing_mm
from volseg.lesion_parts import connected_parts


class DropMarksd(MapTransform):
    """Take marks that `anatomy` names out of what a network said on the working grid (RAS+).

    (1, X, Y, Z) probability: the marks are the connected parts at `threshold` and `part_at`
    (`volseg.lesion_parts.connected_parts`), as they will be numbered; those named go down to just below `threshold`.
    (3, X, Y, Z) of a DetectionInferer (probability, owner, score): the marks are its lesions; those named go
    altogether. Under `dropped_key` lies afterwards how many went. Without a bone mask nothing is done.

    Args:
        bone_key: the bone mask (1, X, Y, Z) on the same grid.
        seed_threshold: only marks that reach it are counted, for only they would have been reported; all without it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        bone_key: str,
        threshold: float,
        seed_threshold: float | None,
        part_at: Sequence[float],
        dropped_key: str,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.bone_key, self.threshold, self.part_at = bone_key, threshold, tuple(part_at)
        self.seed_threshold, self.dropped_key = seed_threshold, dropped_key

    @abstractmethod
    def anatomy(
        self, d: Mapping[Hashable, Any], values: NDArray[np.float32], marks: NDArray[np.int32]
    ) -> list[int] | None:
        """Which of `marks` (X, Y, Z; numbered from 1) are anatomy; None: it cannot be told of this image.

        `values` (1 or 3, X, Y, Z) is what the network said.
        """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.bone_key not in d:
            return d
        for key in self.key_iterator(d):
            found = d[key]
            values = torch.as_tensor(found).cpu().numpy()
            marks = self._marks(d, values)
            named = self.anatomy(d, values, marks) if marks.any() else None
            if named is None:
                continue
            gone = np.isin(marks if len(values) == 1 else values[1], named)
            left = values.copy()
            left[:, gone] = np.nextafter(np.float32(self.threshold), np.float32(0)) if len(values) == 1 else 0
            out = torch.from_numpy(left)
            d[key] = MetaTensor(out, meta=found.meta) if isinstance(found, MetaTensor) else out
            d[self.dropped_key] = len(self.reported(values, marks, named))
        return d

    def bone(self, d: Mapping[Hashable, Any]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """The bone (X, Y, Z) and the grid's spacing in mm."""
        mask = d[self.bone_key]
        return torch.as_tensor(mask)[0].cpu().numpy() > 0, spacing_mm(mask.affine.cpu().numpy())

    def reported(self, values: NDArray[np.float32], marks: NDArray[np.int32], numbers: list[int]) -> list[int]:
        """Those of `numbers` whose mark reaches `seed_threshold`."""
        peaks = np.atleast_1d(ndimage.maximum(values[0], marks, numbers)) if numbers else np.zeros(0)
        return [n for n, peak in zip(numbers, peaks, strict=True) if peak >= (self.seed_threshold or 0)]

    def _marks(self, d: Mapping[Hashable, Any], values: NDArray[np.float32]) -> NDArray[np.int32]:
        if len(values) == 1:
            affine = d[self.bone_key].affine.cpu().numpy()
            return connected_parts(values[0], affine, threshold=self.threshold, levels=self.part_at)[0]
        return np.where(values[0] >= self.threshold, values[1], 0).astype(np.int32)


def voxels_of_marks(marks: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Number and voxels (N, 3) of each mark (X, Y, Z; numbered from 1)."""
    for number, where in enumerate(ndimage.find_objects(marks), start=1):
        if where is not None:
            yield number, np.argwhere(marks[where] == number) + [s.start for s in where]


def near(bone: NDArray[np.bool_], reach_mm: float, spacing: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Bone and what lies within `reach_mm` of it by steps along the axes, at least a voxel."""
    return ndimage.binary_dilation(bone, iterations=max(1, round(reach_mm / float(np.mean(spacing)))))


def padded_box(values: NDArray, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float32]:
    """The box [low, high) of a volume as float32, 0 where it reaches outside."""
    box = np.zeros(tuple(high - low), dtype=np.float32)
    first, last = np.clip(low, 0, values.shape), np.clip(high, 0, values.shape)
    if (last > first).all():
        to = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, low, strict=True))
        box[to] = values[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return box
