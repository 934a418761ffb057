"""Logits on the working grid -> lesion probability -> instances on the source grid. MONAI dictionary transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from volseg.geometry import spacing_mm
from volseg.labels import LESION
from volseg.measure import label_lesions


class LesionProbabilityd(MapTransform):
    """Logits (K, X, Y, Z) -> probability of the lesion class (1, X, Y, Z) float32 under `output_key`.

    Softmax over the classes, or with `sigmoid` the lesion's channel alone (a network with a head for each region, whose
    channels do not exclude each other).

    The logits leave the dictionary: on a whole CT they are the largest thing in it.

    With `bone_key`, the probability is 0 farther than `margin_mm` from bone: a bone metastasis touches bone. The margin
    leaves room for the soft-tissue part of a lytic lesion.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_key: str = "probability",
        bone_key: str | None = None,
        margin_mm: float = 5.0,
        sigmoid: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sigmoid = sigmoid
        self.output_key = output_key
        self.bone_key = bone_key
        self.margin_mm = margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            logits = d.pop(key)
            plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
            probability = torch.sigmoid(plain[LESION].float())[None] if self.sigmoid else _softmax_of(plain, LESION)
            if self.bone_key is not None and self.bone_key in d:
                probability *= self._near_bone(d[self.bone_key]).to(probability.device)
            d[self.output_key] = (
                MetaTensor(probability, meta=logits.meta) if isinstance(logits, MetaTensor) else probability
            )
        return d

    def _near_bone(self, bone: MetaTensor) -> torch.Tensor:
        mask = torch.as_tensor(bone)[0].cpu().numpy() > 0
        spacing = spacing_mm(bone.affine.cpu().numpy())
        steps = tuple(max(1, round(self.margin_mm / s)) for s in spacing)
        box = mask
        for axis, n in enumerate(steps):
            box = ndimage.maximum_filter1d(box, 2 * n + 1, axis=axis)
        return torch.from_numpy(box[None])


class LesionInstancesd(MapTransform):
    """Probability (1, X, Y, Z) -> lesions numbered from 1, largest first (1, X, Y, Z) uint16, under `mask_key`.

    The probability stays under its own key. See `volseg.measure.label_lesions` for the rules.
    """

    def __init__(
        self,
        keys: KeysCollection = "probability",
        *,
        mask_key: str = "pred",
        threshold: float = 0.5,
        seed_threshold: float | None = None,
        part_at: Sequence[float] = (),
        min_volume_mm3: float = 60.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key
        self.threshold = threshold
        self.seed_threshold = seed_threshold
        self.part_at = tuple(part_at)
        self.min_volume_mm3 = min_volume_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            probability = d[key]
            instances = label_lesions(
                torch.as_tensor(probability)[0].cpu().numpy(),
                probability.affine.cpu().numpy(),
                threshold=self.threshold,
                seed_threshold=self.seed_threshold,
                part_at=self.part_at,
                min_volume_mm3=self.min_volume_mm3,
            )
            d[self.mask_key] = MetaTensor(torch.from_numpy(instances.astype(np.int32))[None], meta=probability.meta)
        return d


def _softmax_of(logits: torch.Tensor, index: int) -> torch.Tensor:
    """Softmax of one class, (K, ...) -> (1, ...) float32, without the other classes' volumes."""
    if logits.shape[0] == 2:
        return torch.sigmoid((logits[index] - logits[1 - index]).float())[None]
    return torch.softmax(logits.float(), dim=0)[index : index + 1]
