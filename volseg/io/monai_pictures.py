"""MONAI's door to 2-D pictures: JPEG or PNG files become volumes of one slice, as strictly as in `volseg bmseg`."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from volseg.errors import InputError
from volseg.io.pictures import SUFFIXES, read_mask, read_picture
from volseg.transforms.slices2d import as_xy


def are_pictures(cases: Sequence[Mapping[str, str]]) -> bool:
    """Whether a data set lists pictures (True) or volumes (False).

    Raises InputError("datalist-mixed") if it lists both: one training reads one kind.
    """
    kinds = {str(case["image"]).lower().endswith(SUFFIXES) for case in cases}
    if len(kinds) > 1:
        raise InputError(
            "datalist-mixed", "the datalist names pictures and volumes; keep each in a data set of its own"
        )
    return True in kinds


class LoadPicturesd(MapTransform):
    """Paths -> MetaTensors (1, X, Y, 1), uint8, turned as a RAS+ volume is: grey 0..255, masks (`mask_keys`) 0 and 1.

    A picture has no geometry, so the affine is the identity. Raises InputError as `volseg.io.pictures` does, and
    "size-differs" if the pictures of one item differ in size.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "bone", "label"),
        mask_keys: Collection[str] = ("bone", "label"),
        *,
        grey_rgb: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_keys, self.grey_rgb = frozenset(mask_keys), grey_rgb

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        sizes: dict[str, tuple[int, ...]] = {}
        for key in self.key_iterator(d):
            path = Path(d[key])
            read = read_mask if key in self.mask_keys else read_picture
            pixels = as_xy(read(path, grey_rgb=self.grey_rgb)).astype(np.uint8)
            sizes[path.as_posix()] = pixels.shape
            d[key] = MetaTensor(
                torch.from_numpy(pixels[None, :, :, None]),
                affine=torch.eye(4, dtype=torch.float64),
                meta={"filename_or_obj": str(path)},
            )
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size[0]} x {size[1]}" for name, size in sizes.items())
            raise InputError("size-differs", f"one slice, pictures of different sizes: {told}; do not stretch a mask")
        return d
