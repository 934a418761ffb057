"""Axial pictures for 2D networks: CT slices as 8-bit pictures, and the three augmentations of MFP-DeepLabv3+.

A picture is (1, rows, columns) with grey 0..255, as an 8-bit JPEG has it; the viewer's convention holds (top is the
patient's front, left is the patient's right). MONAI reads a file so with `LoadImaged(..., reader="PILReader",
reverse_indexing=False, ensure_channel_first=True)`. Order in a bundle: read, mask threshold, resize, CLAHE, noise,
mirror, and the scaling to [-1, 1] last.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandFlipd, RandomizableTransform
from monai.utils import convert_to_dst_type
from numpy.typing import NDArray
from torch import Tensor

from volseg.errors import UsageError
from volseg.transforms.clahe import clahe

# The same window as `HounsfieldWindowd`: a picture scaled from 0..255 to [-1, 1] is that CT slice, in 256 steps.
WINDOW_HU = (-200.0, 1000.0)
COLUMNS = 1  # spatial axis of a picture that runs from the patient's right to the left
HIGHEST = 255.0


def axial_picture(hu: NDArray, window_hu: tuple[float, float] = WINDOW_HU) -> NDArray[np.uint8]:
    """A RAS+ slice (X, Y) in HU -> picture (rows, columns), uint8."""
    low, high = window_hu
    grey = (np.asarray(hu, dtype=np.float32) - low) * (HIGHEST / (high - low))
    return as_rows(np.rint(np.clip(grey, 0, HIGHEST)).astype(np.uint8))


def as_rows(slice_xy: NDArray) -> NDArray:
    """(X, Y) of a RAS+ volume -> (rows, columns) as a viewer shows it; `as_xy` is the inverse."""
    return np.ascontiguousarray(slice_xy[::-1, ::-1].T)


def as_xy(picture: NDArray) -> NDArray:
    """(rows, columns) as a viewer shows it -> (X, Y) of a RAS+ volume."""
    return np.ascontiguousarray(picture.T[::-1, ::-1])


class PictureMaskd(MapTransform):
    """Mask pictures (0..255, with JPEG's ripples) -> float32 of 0 and 1: above `threshold` is inside."""

    def __init__(self, keys: KeysCollection, threshold: float = 127.0, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            array = d[key].detach().cpu().numpy() if isinstance(d[key], Tensor) else np.asarray(d[key])
            d[key] = _like((array > self.threshold).astype(np.float32), d[key])
        return d


class SlicesOfCtd(MapTransform):
    """A CT in HU with bone and lesion masks (1, X, Y, Z) -> a stack of pictures of the same shape, all uint8.

    The image becomes grey 0..255, the masks 0 and 1, and what is lesion is bone: as BM-Seg's masks have it.
    """

    def __init__(
        self,
        image_key: str = "image",
        bone_key: str = "bone",
        label_key: str = "label",
        *,
        window_hu: tuple[float, float] = WINDOW_HU,
    ) -> None:
        super().__init__([image_key, bone_key, label_key])
        self.image_key, self.bone_key, self.label_key = image_key, bone_key, label_key
        self.window_hu = window_hu

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        low, high = self.window_hu
        grey = (d[self.image_key].to(torch.float32) - low) * (HIGHEST / (high - low))
        d[self.image_key] = grey.clamp(0, HIGHEST).round().to(torch.uint8)
        lesion = d[self.label_key] > 0
        d[self.label_key] = lesion.to(torch.uint8)
        d[self.bone_key] = ((d[self.bone_key] > 0) | torch.as_tensor(lesion)).to(torch.uint8)
        return d


class RandClahed(RandomizableTransform, MapTransform):
    """Contrast-limited adaptive histogram equalisation of (1, rows, columns), with probability `prob`.

    The paper names CLAHE and no number; 8 x 8 tiles and limit 2 are OpenCV's customary ones. `clip_limit` is a number,
    or a range drawn from once per picture. With prob=1 and one number it is the same for every picture: a preparation
    step rather than an augmentation, and then it belongs to inference too.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 1.0,
        clip_limit: float | tuple[float, float] = 2.0,
        tiles: tuple[int, int] = (8, 8),
        *,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        low, high = (clip_limit, clip_limit) if isinstance(clip_limit, int | float) else clip_limit
        if not 0 < low <= high:
            raise UsageError("clahe-limit", f"RandClahed: clip_limit {clip_limit}; give a number above 0, or low, high")
        self.clip_limits, self.tiles = (float(low), float(high)), (int(tiles[0]), int(tiles[1]))
        self.clip_limit = self.clip_limits[0]

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self.clip_limit = float(self.R.uniform(*self.clip_limits))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(d):
                picture = _picture(d[key], type(self).__name__)
                grey = np.rint(np.clip(picture[0], 0, HIGHEST)).astype(np.uint8)
                d[key] = _like(clahe(grey, self.clip_limit, self.tiles)[None], d[key])
        return d


class RandSaltPepperd(RandomizableTransform, MapTransform):
    """Salt and pepper noise: a share of the pixels turns white or black, evenly, with probability `prob`.

    `share` is the largest one (the paper gives none); every picture draws its own from 0 up to it. The pixels of all
    keys are the same: give image keys only.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, share: float = 0.02, *, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 < share <= 1:
            raise UsageError("noise-share", f"RandSaltPepperd: share {share}; it lies above 0 and up to 1")
        self.share = share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        share = float(self.R.uniform(0, self.share))
        seed = int(self.R.randint(2**31))
        for key in self.key_iterator(d):
            picture = _picture(d[key], type(self).__name__).copy()
            chance = np.random.default_rng(seed).random(picture.shape[1:])
            picture[:, chance < share / 2] = 0
            picture[:, chance >= 1 - share / 2] = HIGHEST
            d[key] = _like(picture, d[key])
        return d


class RandMirrord(RandFlipd):
    """Mirror left and right (columns), all keys together: MONAI's RandFlipd in a picture's words. Invertible."""

    def __init__(self, keys: KeysCollection, prob: float = 0.5, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, prob=prob, spatial_axis=COLUMNS, allow_missing_keys=allow_missing_keys)


def _picture(value: Any, who: str) -> NDArray[np.float32]:
    """(C, rows, columns) in 0..255 as numpy. Refuses pictures already scaled: equalising [-1, 1] would erase them."""
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != 3 or array.shape[0] != 1:
        raise UsageError("picture-shape", f"{who}: (1, rows, columns) is due, not {tuple(array.shape)}")
    if array.size and (array.min() < -0.5 or array.max() > HIGHEST + 0.5):
        told = f"{who}: grey from {array.min():g} to {array.max():g}; it works on 0..255, before the scaling"
        raise UsageError("picture-range", told)
    return array.astype(np.float32)


def _like(array: NDArray, value: Any) -> Any:
    """float32 in the container (MetaTensor, Tensor, array) of `value`, its metadata kept."""
    return convert_to_dst_type(array, dst=value, dtype=torch.float32 if isinstance(value, Tensor) else np.float32)[0]
