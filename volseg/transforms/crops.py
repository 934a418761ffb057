"""Training volumes -> training patches: crops around lesions, around bone, or anywhere, in given proportions.

`CacheCropIndicesd` (deterministic, so CacheDataset keeps its result) notes where candidates lie; `RandBoneCropd` draws
from that note and cuts, which costs no more than the copy of the patch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.transforms.traits import MultiSampleTrait
from monai.utils import ensure_tuple_rep
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import pad

from volseg.errors import UsageError
from volseg.geometry import TOUCHING

CROP_INDICES = "crop_indices"
KINDS = ("lesion", "bone", "anywhere")
# Cached lists are subsampled by a generator of their own: the same volume always gives the same list.
SUBSAMPLE_SEED = 20261121


def crop_indices(label: Tensor, bone: Tensor, max_per_kind: int = 4096) -> dict[str, NDArray[np.int32]]:
    """Voxels (n, 3) to crop around, by kind, from masks (1, X, Y, Z): at most `max_per_kind` each, 0 rows if none.

    Every lesion (26-connected) gets the same number of rows, so that small ones are drawn as often as large ones.
    """
    rng = np.random.default_rng(SUBSAMPLE_SEED)
    voxels = {
        "lesion": _nonzero(label),
        "bone": _subsample(_nonzero(bone), max_per_kind, rng),
    }
    voxels["lesion"] = _equal_share(voxels["lesion"], max_per_kind, rng)
    return voxels


def _nonzero(mask: Tensor) -> NDArray[np.int32]:
    return torch.nonzero(torch.as_tensor(mask)[0] > 0).to(torch.int32).cpu().numpy()


def _subsample(rows: NDArray[np.int32], most: int, rng: np.random.Generator) -> NDArray[np.int32]:
    return rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]


def _equal_share(rows: NDArray[np.int32], most: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """The same number of rows from each 26-connected component; small components repeat."""
    if not len(rows):
        return rows
    low = rows.min(axis=0)
    local = rows - low
    box = np.zeros(local.max(axis=0) + 1, dtype=bool)
    box[tuple(local.T)] = True
    components, n = ndimage.label(box, structure=TOUCHING)
    of_row = components[tuple(local.T)]
    by_component = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row)[1:])[:-1])
    share = max(1, most // n)
    picked = [c[rng.choice(len(c), share, replace=len(c) < share)] for c in by_component]
    return _subsample(rows[np.concatenate(picked)], most, rng)


class CacheCropIndicesd(MapTransform):
    """Add `indices_key`: what `crop_indices` finds in `label_key` and `bone_key`. Deterministic, cacheable."""

    def __init__(
        self,
        label_key: str = "label",
        bone_key: str = "bone",
        max_per_kind: int = 4096,
        indices_key: str = CROP_INDICES,
    ) -> None:
        super().__init__([label_key, bone_key])
        self.label_key, self.bone_key = label_key, bone_key
        self.max_per_kind, self.indices_key = max_per_kind, indices_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        d[self.indices_key] = crop_indices(d[self.label_key], d[self.bone_key], self.max_per_kind)
        return d


class RandBoneCropd(Randomizable, MapTransform, MultiSampleTrait):
    """Cut `num_samples` patches of `roi_size` voxels, around lesions, bone or anywhere. Returns a list of dicts.

    Args:
        keys: (C, X, Y, Z) tensors to cut, all on one grid.
        label_key, bone_key: masks, read only if `indices_key` is missing (see CacheCropIndicesd).
        roi_size: patch size in voxels (one number: all axes).
        weights: relative frequency of lesion, bone, anywhere. A kind the volume lacks gives its share to the others;
            if nothing is left, anywhere.
        num_samples: patches per call.
        jitter: the drawn voxel lies off the patch's centre by up to this fraction of `roi_size` along each axis, so
            that "the middle is lesion" cannot be learnt. Below 0.5, or the voxel may be lost.
        pad_values: what fills up volumes smaller than `roi_size`, one or one per key, in the units of that key;
            None: the volume's own minimum (air in an image, background in a mask).
    Each patch carries `crop_kind` in its metadata.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str = "label",
        bone_key: str = "bone",
        *,
        roi_size: int | Sequence[int],
        weights: Sequence[float] = (0.5, 0.4, 0.1),
        num_samples: int = 1,
        jitter: float = 0.25,
        pad_values: float | Sequence[float | None] | None = None,
        indices_key: str = CROP_INDICES,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(weights) != 3 or min(weights) < 0 or sum(weights) <= 0:
            raise UsageError("crop-weights", f"weights are (lesion, bone, anywhere), none negative, not {weights}")
        if not 0 <= jitter < 0.5:
            raise UsageError(
                "crop-jitter", f"jitter {jitter} is not in [0, 0.5): the drawn voxel could leave the patch"
            )
        self.label_key, self.bone_key, self.indices_key = label_key, bone_key, indices_key
        self.roi_size = np.array(ensure_tuple_rep(roi_size, 3), dtype=int)
        self.weights = np.array(weights, dtype=float)
        self.num_samples, self.jitter = num_samples, jitter
        self.pad_values = ensure_tuple_rep(pad_values, len(self.keys))

    def randomize(  # type: ignore[override]
        self, indices: Mapping[str, NDArray[np.int32]], shape: Sequence[int]
    ) -> list[tuple[str, NDArray[np.int64]]]:
        """Draw (kind, first voxel of the patch) `num_samples` times; negative where the volume is smaller."""
        there = np.array([bool(len(indices["lesion"])), bool(len(indices["bone"])), True])
        weights = self.weights * there
        weights = weights / weights.sum() if weights.sum() else np.array([0.0, 0.0, 1.0])
        size = np.array(shape)
        starts = []
        for _ in range(self.num_samples):
            kind = KINDS[self.R.choice(3, p=weights)]
            candidates = indices.get(kind)
            voxel = self.R.randint(0, size) if candidates is None else candidates[self.R.randint(len(candidates))]
            # Drawn for every kind, so that the stream of random numbers does not depend on the kind.
            off = np.rint(self.R.uniform(-self.jitter, self.jitter, 3) * self.roi_size)
            start = voxel + off.astype(int) - self.roi_size // 2
            free = size - self.roi_size
            # A patch stays inside the volume; a volume smaller than the patch sits in its middle.
            starts.append((kind, np.where(free >= 0, np.clip(start, 0, np.maximum(free, 0)), free // 2)))
        return starts

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        d = dict(data)
        indices = d.pop(self.indices_key, None)
        if indices is None:
            indices = crop_indices(d[self.label_key], d[self.bone_key])
        shapes = {str(key): tuple(d[key].shape[1:]) for key in self.key_iterator(d)}
        if len(set(shapes.values())) != 1:
            raise UsageError("crop-shapes", f"cannot cut one patch from tensors of different shapes: {shapes}")
        starts = self.randomize(indices, next(iter(shapes.values())))
        untouched = {k: v for k, v in d.items() if k not in self.keys}
        samples = [dict(untouched) for _ in starts]
        for key, pad_value in self.key_iterator(d, self.pad_values):
            for sample, (kind, start) in zip(samples, starts, strict=True):
                sample[key] = cut(d[key], start, self.roi_size, pad_value, kind)
        return samples


def cut(
    tensor: Tensor, start: NDArray[np.int64], size: NDArray[np.int64], pad_value: float | None, kind: str
) -> MetaTensor:
    """The patch (C, *size) whose first voxel is `start`, its affine moved along; a copy, so the volume can be freed."""
    values = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    low = np.maximum(start, 0)
    high = np.minimum(start + size, values.shape[1:])
    patch = values[(slice(None), *(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)))]
    before, after = low - start, start + size - high
    if before.any() or after.any():
        fill = float(values.amin()) if pad_value is None else float(pad_value)
        widths = [int(w) for axis in (2, 1, 0) for w in (before[axis], after[axis])]
        patch = pad(patch, widths, value=fill)
    else:
        patch = patch.clone(memory_format=torch.contiguous_format)
    meta: dict[str, Any] = {"crop_kind": kind}
    affine = torch.eye(4, dtype=torch.float64)
    if isinstance(tensor, MetaTensor):
        affine = tensor.affine.to(torch.float64).clone()
        affine[:3, 3] += affine[:3, :3] @ torch.as_tensor(start, dtype=torch.float64)
        meta["filename_or_obj"] = str(tensor.meta.get("filename_or_obj", ""))
    return MetaTensor(patch, affine=affine, meta=meta)
