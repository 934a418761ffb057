"""Test-time training learns from lesions grown in the patient's own bone, in one half of the body or the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from volseg.geometry import TOUCHING
from volseg.transforms.bone import BoneMask
from volseg.transforms.crops import CacheCropIndicesd
from volseg.transforms.ct import BoneMaskd
from volseg.transforms.synthesis import grow_lesions
from volseg.transforms.synthesis_scanner import measure_scanner
from volseg.types import Volume

# The halves: slabs about a vertebra high. What is suspected at first sight stays whole, with a rim.
SLAB_MM, RIM_MM = 32.0, 4.0
# As dense as a patch of spine with seven lesions; as many cases as bring `LESIONS` of them.
LESIONS_PER_LITER, LESIONS, FEWEST_CASES, MOST_CASES = 28.0, 150, 5, 20
HEALTHY_CASES = 0.1
# Logits where the loss is not to look: as good as sure.
SURE = 12.0

Case = dict[str, Any]


def first_half(bone: NDArray[np.bool_], suspected: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.bool_]:
    """True in one half of a volume (X, Y, Z) in RAS+, False in the other; mirrored places lie in different halves.

    Slabs across the body alternate; to the right of the middle (the median of the bone) they alternate the other way.
    Each 26-connected piece of `suspected` lies, with a rim, in the half in which its middle lies. Pieces whose rims
    meet count as one: the rim of either could cut the other.
    """
    across = bone.sum(axis=(1, 2)).cumsum()
    right = np.arange(bone.shape[0]) > np.searchsorted(across, across[-1] / 2)
    slab = np.arange(bone.shape[2]) * spacing_mm // SLAB_MM % 2 == 1
    half = np.broadcast_to(right[:, None, None] ^ slab, bone.shape).copy()
    whole = half.copy()
    groups, _ = ndimage.label(near(suspected, RIM_MM, spacing_mm), structure=TOUCHING)
    for number, box in enumerate(ndimage.find_objects(groups), start=1):
        rims = groups[box] == number
        voxels = np.argwhere(rims & suspected[box])
        middle = voxels.mean(axis=0).round().astype(int) + [s.start for s in box]
        whole[box][rims] = half[tuple(middle)]
    return whole


def near(mask: NDArray, reach_mm: float, spacing_mm: float) -> NDArray[np.bool_]:
    """A mask (X, Y, Z) and what lies within `reach_mm` of it along every axis, at least a voxel."""
    reach = max(1, round(reach_mm / spacing_mm))
    # Cubes of 2 reach + 1 voxels, one axis after the other: a third of the time of a dilation (2026-11).
    return ndimage.maximum_filter(mask.astype(np.uint8), size=2 * reach + 1, mode="constant") > 0


def grown_cases(hu: NDArray, bone: NDArray[np.uint8], spacing_mm: float, seed: int) -> list[Case]:
    """The CT (X, Y, Z) again and again, each time with other lesions: image int16 in HU, label, bone (1, X, Y, Z)."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    volume = Volume(hu.astype(np.float32), affine, channel="CT")
    mask = BoneMask(bone=bone > 0, marrow=bone == 2, cortex=bone == 1)
    scanner = measure_scanner(volume.voxels, affine)
    per_case = max(2, round(LESIONS_PER_LITER * mask.bone.sum() * spacing_mm**3 / 1e6))
    finish = Compose([BoneMaskd(), CacheCropIndicesd(), CastToTyped("image", dtype=torch.int16)])
    cases = []
    for number in range(int(np.clip(LESIONS // per_case, FEWEST_CASES, MOST_CASES))):
        rng = np.random.default_rng([seed, number])
        healthy = rng.random() < HEALTHY_CASES
        n = 0 if healthy else int(rng.integers(max(1, per_case // 2), per_case + per_case // 2 + 1))
        benign = int(rng.integers(0, 3))
        grown = grow_lesions(volume, n=n, rng=rng, bone=mask, scanner=scanner, distractors=benign, warn=False)
        cases.append(
            finish(
                {
                    "image": MetaTensor(torch.from_numpy(grown.volume.voxels)[None], affine=torch.from_numpy(affine)),
                    "label": torch.from_numpy((grown.instances > 0).astype(np.uint8))[None],
                }
            )
        )
    return cases


def only_where(counts: Tensor, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, 2, *axes) and label for a loss that is to see nothing outside `counts` (B, 1, *axes).

    Outside, the label says background and the logits agree, with no gradient. A label (B, 1, *axes) belongs to classes
    that exclude each other; one of (B, 2, *axes) to regions with a head each, none of which is background.
    """
    first = -SURE if label.shape[1] == logits.shape[1] else SURE
    sure = logits.new_tensor([first, -SURE]).view(1, 2, *[1] * (logits.ndim - 2))
    return torch.where(counts, logits, sure), torch.where(counts, label, torch.zeros_like(label))


def plain(tensor: Tensor) -> Tensor:
    """Without MONAI's bookkeeping."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
