"""How each kind of network is trained on a scan (`volseg.training.test_time`): its crops, its loss, what it answers.

A grown case enters (`volseg.training.own_body`), with "counts" where the loss may look. The crops are those of the
bundle's own training, but mostly of the body as it is: that is the one to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from monai.transforms import (
    CastToTyped,
    Compose,
    ConcatItemsd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
)
from torch import Tensor

from volseg.training.lesion_loss import LesionBalancedDiceCELoss
from volseg.training.own_body import only_where
from volseg.training.regions import RegionLoss
from volseg.transforms.bodies import RandBodyd, RandBoneDensityd
from volseg.transforms.bone_context import BoneContextd
from volseg.transforms.crops import RandBoneCropd
from volseg.transforms.marrow_field import RandMarrowFieldd
from volseg.transforms.planes import MiddleSliced, RandPlaned
from volseg.transforms.slices2d import HIGHEST, SlicesOfCtd

# Of a grown case: what is cut.
KEYS = ("image", "bone", "label", "counts")
# How often a crop is turned, stretched and bent, and its bone made denser or thinner or its marrow uneven.
OTHER_BODY, OTHER_BONE = 0.3, 0.15
# Voxels that bending a slab of slices may draw from beyond it, as `slab_margin` in the bundle's train.json.
SLAB_MARGIN = (8, 8, 16)


class Recipe(Protocol):
    """What test-time training has to know of a network. spacing_mm: edge of a voxel of its working grid."""

    @property
    def spacing_mm(self) -> float: ...

    def crops(self) -> Compose:
        """A grown case -> [{"image", "label", "counts"}], what the network takes and is to answer."""
        ...

    def loss(self, logits: Tensor, label: Tensor, counts: Tensor) -> Tensor:
        """Of a batch of crops; nothing outside `counts` (True where it may look) has a part in it."""
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """(2, X, Y, Z) -> the same shape; the second one is a lesion's."""
        ...

    def logits(self, probabilities: Tensor) -> Tensor:
        """`probabilities` undone."""
        ...


@dataclass(frozen=True)
class VolumeRecipe:
    """For a 3D network with classes that exclude each other, background and lesion: SegMamba.

    spacing_mm: edge of a voxel of the working grid. windows_hu: the network's HU windows
    (`volseg.transforms.bone_context.BoneContextd`). crop_size: voxels; what the network was trained on.
    """

    spacing_mm: float = 2.0
    windows_hu: Sequence[Sequence[float]] = ((-250.0, 1050.0), (-150.0, 450.0))
    crop_size: Sequence[int] = (32, 32, 32)

    def crops(self) -> Compose:
        roomy = [n + 8 for n in self.crop_size]
        modes = ["bilinear", "bilinear", "nearest", "nearest"]
        return Compose(
            [
                RandBoneCropd(KEYS, label_key="label", roi_size=roomy, weights=(0.55, 0.4, 0.05)),
                CastToTyped(["image", "bone"], dtype=torch.float32),
                RandBodyd(KEYS, spatial_size=tuple(self.crop_size), mode=modes, prob=OTHER_BODY),
                RandBoneDensityd(prob=OTHER_BONE),
                RandMarrowFieldd(prob=OTHER_BONE),
                RandFlipd(KEYS, prob=0.5, spatial_axis=0),
                RandGaussianNoised("image", prob=0.3, mean=0.0, std=20.0),
                RandScaleIntensityd("image", prob=0.3, factors=0.12),
                RandShiftIntensityd("image", prob=0.3, offsets=30.0),
                BoneContextd(windows_hu=self.windows_hu),
            ]
        )  # fmt: skip

    def loss(self, logits: Tensor, label: Tensor, counts: Tensor) -> Tensor:
        value: Tensor = LesionBalancedDiceCELoss(self.spacing_mm)(*only_where(counts, logits, label))
        return value

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(0)

    def logits(self, probabilities: Tensor) -> Tensor:
        return probabilities.clamp_min(1e-7).log()


@dataclass(frozen=True)
class SliceRecipe:
    """For a 2D network that reads slices of three planes and has a head each for bone and lesion: BMSMM-Net.

    spacing_mm: edge of a voxel of the working grid. window_hu: black and white of its pictures. crop_size: pixels.
    context: neighbouring slices to either side. even_mm: cross-sections of lesions smaller than a disk of this
    diameter weigh more (`even_area` of RegionLoss).
    """

    spacing_mm: float = 1.5
    window_hu: tuple[float, float] = (-200.0, 1000.0)
    crop_size: Sequence[int] = (64, 64)
    context: int = 2
    even_mm: float = 15.0

    def crops(self) -> Compose:
        slab = [*self.crop_size, 2 * self.context + 1]
        roomy = [n + more for n, more in zip(slab, SLAB_MARGIN, strict=True)]
        modes = ["bilinear", "nearest", "nearest", "nearest"]
        shown = ["image", "label", "counts"]
        return Compose(
            [
                RandPlaned(KEYS),
                RandBoneCropd(KEYS, label_key="label", roi_size=roomy, weights=(0.6, 0.3, 0.1)),
                CastToTyped("image", dtype=torch.float32),
                RandBodyd(KEYS, spatial_size=slab, mode=modes, prob=OTHER_BODY),
                RandBoneDensityd(prob=OTHER_BONE),
                RandMarrowFieldd(prob=OTHER_BONE, control=(8.0, 20.0)),
                RandFlipd(KEYS, prob=0.3, spatial_axis=2),
                SlicesOfCtd(window_hu=self.window_hu),
                MiddleSliced(KEYS, "image", self.context),
                ConcatItemsd(["bone", "label"], name="label", dim=0),
                CastToTyped(["image", "label"], dtype=torch.float32),
                RandFlipd(shown, prob=0.5, spatial_axis=0),
                RandFlipd(shown, prob=0.2, spatial_axis=1),
                RandGaussianNoised("image", prob=0.3, mean=0.0, std=4.0),
                RandScaleIntensityd("image", prob=0.3, factors=0.12),
                RandShiftIntensityd("image", prob=0.3, offsets=6.0),
                ScaleIntensityRanged("image", a_min=0, a_max=HIGHEST, b_min=-1.0, b_max=1.0, clip=True),
            ]
        )  # fmt: skip

    def loss(self, logits: Tensor, label: Tensor, counts: Tensor) -> Tensor:
        even_area = int(torch.pi / 4 * (self.even_mm / self.spacing_mm) ** 2)
        value: Tensor = RegionLoss((0.3, 0.7), even_area=even_area)(*only_where(counts, logits, label))
        return value

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()

    def logits(self, probabilities: Tensor) -> Tensor:
        return torch.logit(probabilities, eps=1e-7)
