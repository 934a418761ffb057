"""Marks that repeat along the body are anatomy: vertebra follows vertebra, rib follows rib, each built like the last.

The loose front of a vertebra looks like a lytic lesion to a network that sees one window at a time; it looks the same
one vertebra further, and so does a catheter a little further along. Here a mark's surroundings are sought elsewhere in
the same scan by HU alone: where they are found again, the inside must differ for the mark to stay. Template matching by
sums of squared differences, as in block matching; nothing is learnt.

Equal metastases at the same place of neighbouring vertebrae lose each other: `volseg predict` says how many marks were
left out, and one entry of the config switches the rule off.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import ScaleIntensityRange
from numpy.typing import NDArray
from scipy import ndimage, signal

from volseg.inference.marks import DropMarksd, near, padded_box, voxels_of_marks

MARKS_THAT_REPEAT = "marks_that_repeat"
# Air and cortex are what they are; between these values lies what tells marrow and soft tissue apart.
TISSUE_HU = (-150.0, 600.0)
SMOOTHING_MM = 1.0
NEAR_BONE_MM = 4.0
# What must be on either side to compare: of the surroundings' weight, of the mark's voxels.
LEAST_IN_VIEW, LEAST_INSIDE_IN_VIEW = 0.9, 0.95


@dataclass(frozen=True)
class Likeness:
    """The place elsewhere whose surroundings are most like a mark's, so many voxels away; root mean squares in HU."""

    shift: tuple[int, int, int]
    surroundings_hu: float
    inside_hu: float


def find_likeness(
    hu: NDArray[np.float32],
    near_bone: NDArray[np.bool_],
    voxels: NDArray[np.int64],
    spacing: NDArray[np.float64],
    *,
    context_mm: float = 8.0,
    reach_mm: Sequence[float] = (20.0, 20.0, 64.0),
    apart_mm: float = 10.0,
) -> Likeness | None:
    """Where the surroundings of a mark are found again; None where too little is in view.

    hu: (X, Y, Z), clipped and smoothed; near_bone: where surroundings count; voxels: (N, 3) of the mark. Its
    surroundings are the box around it and `context_mm` more, less the mark and the voxels that touch it. The place lies
    within `reach_mm` along each axis, at least `apart_mm` and the mark's own length away along one of them.
    """
    margin = np.rint(context_mm / spacing).astype(int)
    reach = np.rint(np.asarray(reach_mm) / spacing).astype(int)
    low, high = voxels.min(axis=0) - margin, voxels.max(axis=0) + margin + 1
    mark = np.zeros(tuple(high - low), bool)
    mark[tuple((voxels - low).T)] = True
    weight = padded_box(near_bone, low, high) * ~ndimage.binary_dilation(mark)
    own = padded_box(hu, low, high)
    there = padded_box(hu, low - reach, high + reach)
    in_view = padded_box(np.broadcast_to(np.float32(1), hu.shape), low - reach, high + reach)
    seen = _correlate(in_view, weight)
    # Outside the scan `there` is 0, and the first term leaves the same voxels out.
    squares = _correlate(in_view, weight * own**2) - 2 * _correlate(there, weight * own) + _correlate(there**2, weight)
    shifts = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1)
    length = np.ptp(voxels, axis=0) + 1
    allowed = (np.abs(shifts) >= np.maximum(length + 1, np.rint(apart_mm / spacing))).any(axis=-1)
    allowed &= seen >= max(LEAST_IN_VIEW * float(weight.sum()), 1.0)
    allowed &= _correlate(in_view, mark.astype(np.float32)) >= LEAST_INSIDE_IN_VIEW * len(voxels)
    if not allowed.any():
        return None
    best = np.unravel_index(np.argmin(np.where(allowed, squares / np.maximum(seen, 1.0), np.inf)), squares.shape)
    moved = voxels - low + np.array(best)
    inside = hu[tuple(voxels.T)] - there[tuple(moved.T)]
    x, y, z = (int(n) for n in shifts[best])
    return Likeness(
        shift=(x, y, z),
        surroundings_hu=float(np.sqrt(max(squares[best], 0.0) / seen[best])),
        inside_hu=float(np.sqrt((inside**2)[in_view[tuple(moved.T)] > 0].mean())),
    )


def _correlate(values: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    return signal.correlate(values.astype(float), weight.astype(float), mode="valid", method="fft")


class DropMarksThatRepeatd(DropMarksd):
    """Take marks that repeat along the body (see `find_likeness`) out of what a network said; how: `DropMarksd`.

    Args:
        image_key: the network's image (C, X, Y, Z) on the same grid, whose first channel is HU scaled to [-1, 1].
        window_hu: the HU window of that channel.
        most_surroundings_hu: surroundings that differ by more than this are not found again.
        most_inside_hu: a mark whose inside differs by more than this is something else than its likeness.
    """

    def __init__(
        self,
        keys: KeysCollection = "probability",
        *,
        image_key: str = "image",
        bone_key: str = "bone",
        window_hu: Sequence[float] = (-250.0, 1050.0),
        threshold: float = 0.5,
        seed_threshold: float | None = None,
        part_at: Sequence[float] = (),
        most_surroundings_hu: float = 120.0,
        most_inside_hu: float = 50.0,
        dropped_key: str = MARKS_THAT_REPEAT,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, bone_key, threshold, seed_threshold, part_at, dropped_key, allow_missing_keys)
        self.image_key = image_key
        low, high = window_hu
        self.to_hu = ScaleIntensityRange(-1.0, 1.0, low, high)
        self.most_surroundings_hu, self.most_inside_hu = most_surroundings_hu, most_inside_hu

    def anatomy(
        self, d: Mapping[Hashable, Any], values: NDArray[np.float32], marks: NDArray[np.int32]
    ) -> list[int] | None:
        if self.image_key not in d:
            return None
        numbers = self.reported(values, marks, np.unique(marks[marks > 0]).tolist())
        if not numbers:
            return []
        bone, spacing = self.bone(d)
        scaled = torch.as_tensor(d[self.image_key])[0].float().cpu().numpy()
        hu = ndimage.gaussian_filter(np.clip(self.to_hu(scaled), *TISSUE_HU), SMOOTHING_MM / spacing)
        near_bone = near(bone, NEAR_BONE_MM, spacing)
        repeat = []
        for number, voxels in voxels_of_marks(np.where(np.isin(marks, numbers), marks, 0)):
            likeness = find_likeness(hu, near_bone, voxels, spacing)
            if likeness is None:
                continue
            found_again = likeness.surroundings_hu <= self.most_surroundings_hu
            if found_again and likeness.inside_hu <= self.most_inside_hu:
                repeat.append(number)
        return repeat
