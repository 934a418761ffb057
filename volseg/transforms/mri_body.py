"""Where the patient is in an MR image: air holds noise, streaks and ghosts, and networks mark what they never saw."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray

from volseg.geometry import closest_axes, spacing_mm
from volseg.labels import MRI_CHANNELS
from volseg.transforms.bone_blocks import block_mean, block_step, stretch
from volseg.transforms.bone_body import GRID_MM, patient
from volseg.transforms.bone_morphology import Mask
from volseg.transforms.mri import reference_of

# Of the patient's own median: fat that is suppressed and cortex lie lower, and are closed in by what does not.
AIR_SHARE = 0.25


def air_limit(image: NDArray) -> float:
    """Below it lies air: a quarter of the median of what lies above, found from a tenth of the 99th percentile down.

    Fluid may be ten times as bright as marrow, so no share of the brightest tells air from marrow. Where the air is as
    bright as that, the limit sinks until everything is the patient: nothing is lost then.
    """
    limit = 0.1 * float(np.percentile(image, 99))
    for _ in range(10):
        limit = min(limit, AIR_SHARE * float(np.median(image[image > limit])))
    return limit


def mr_body_mask(image: NDArray, affine: ArrayLike) -> Mask:
    """The patient in one magnitude image (X, Y, Z), airways and dark cortex included. (X, Y, Z) bool.

    An image with negative values was normalised before and does not tell air: everything is the patient.
    """
    if image.min() < 0 or image.max() <= 0:
        return np.ones(image.shape, dtype=bool)
    step = block_step(spacing_mm(affine), GRID_MM)
    coarse = block_mean(image, step)
    axial = closest_axes(affine)[0][2]
    return stretch(patient(coarse > air_limit(coarse), axial), step, image.shape)


class MrBodyMaskd(MapTransform):
    """`mr_body_mask` of the reference series (the first of `keys` that is there, unless named), under `mask_key`."""

    def __init__(
        self, keys: KeysCollection = MRI_CHANNELS, *, mask_key: str = "body", reference: str | None = None
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.mask_key, self.reference = mask_key, reference

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        reference = reference_of([key for key in self.keys if key in d], self.reference)
        if reference is None:
            return d
        series = d[reference]
        mask = mr_body_mask(series[0].cpu().numpy(), series.affine.cpu().numpy())
        d[self.mask_key] = MetaTensor(mask[None].astype(np.uint8), meta=dict(series.meta))
        return d
