"""What a small window of CT cannot show a network by itself: the marrow's contrast, and where bone should be.

HU and the bone mask enter (`BoneMaskd`), an image of several channels leaves. A metastasis in marrow differs from it by
50 to 300 HU, a twentieth of the range that also holds cortex; and a bone that is dissolved looks like any soft tissue
unless one knows that it lies inside a bone's outline.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, ScaleIntensityRange
from monai.utils import convert_to_tensor

from volseg.errors import UsageError

MARROW = 2.0  # the largest value of a bone mask: 0 no bone, 1 cortex, 2 marrow


class BoneContextd(MapTransform):
    """`image_key` (1, X, Y, Z) in HU -> (W + 1, X, Y, Z) in [-1, 1], float32: one channel per HU window, then bone.

    Each window is scaled linearly and clipped; in the last channel no bone is -1, cortex 0, marrow 1 (a mask that was
    rotated with the image has values between). The mask stays where it is; metadata are the image's.

    Args:
        windows_hu: (low, high) of each window, the first the one that people look at.

    Raises:
        UsageError: a window that is empty or reversed; an image of more than one channel.
    """

    def __init__(
        self,
        image_key: str = "image",
        mask_key: str = "bone",
        *,
        windows_hu: Sequence[Sequence[float]] = ((-250.0, 1050.0), (-150.0, 450.0)),
    ) -> None:
        super().__init__([image_key, mask_key])
        self.image_key, self.mask_key = image_key, mask_key
        for low, high in windows_hu:
            if not low < high:
                raise UsageError("window", f"a HU window goes from low to high, got {low:g} to {high:g}")
        self.windows = [ScaleIntensityRange(low, high, -1.0, 1.0, clip=True) for low, high in windows_hu]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        image = d[self.image_key]
        if len(image) != 1:
            raise UsageError("channels", f"{self.image_key!r} has {len(image)} channels, BoneContextd takes one of HU")
        # Plain tensors: the bone channel has the image's metadata, not its own.
        hu, mask = (convert_to_tensor(values, dtype=torch.float32) for values in (image, d[self.mask_key]))
        channels = torch.cat([*(torch.as_tensor(window(hu)) for window in self.windows), mask * (2 / MARROW) - 1])
        d[self.image_key] = (
            MetaTensor(channels, meta=dict(image.meta), applied_operations=list(image.applied_operations))
            if isinstance(image, MetaTensor)
            else channels
        )
        return d
