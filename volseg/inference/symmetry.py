"""Marks with a twin on the other side of the body are anatomy: bone is built alike left and right, metastases are not.

Pedicles, costovertebral joints and rib cartilage look like lesions to a network that never saw such a spine, and do so
on both sides. The midline is found from the bone mask alone, tilted or not; where the bone in view has no mirror image
(one hip, say) nothing is dropped. A patient with two equal metastases at mirrored places loses both: `volseg predict`
says how many marks were left out, and one entry of the config switches the rule off.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.config import KeysCollection
from numpy.typing import NDArray

from volseg.inference.marks import DropMarksd, near, padded_box, voxels_of_marks

MARKS_WITH_A_TWIN = "marks_with_a_twin"
MOST_POINTS = 6000
# A bone voxel has a mirror image if bone lies this near to where it should be.
NEAR_MM = 3.0
TILTS_DEGREES = np.arange(-12.0, 12.1, 3.0)


@dataclass(frozen=True)
class Midline:
    """The plane {p: normal . p = offset} in voxel coordinates; `agreement`: share of bone that has a mirror image."""

    normal: NDArray[np.float64]
    offset: float
    agreement: float

    def mirrored(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) voxel coordinates -> their mirror images."""
        return points - 2 * (points @ self.normal - self.offset)[:, None] * self.normal

    def distance(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 3) -> voxels from the plane."""
        return np.abs(points @ self.normal - self.offset)


def find_midline(bone: NDArray[np.bool_], spacing: NDArray[np.float64]) -> Midline | None:
    """The plane across the first axis (left to right) in which most bone (X, Y, Z) has its mirror image; None: no bone.

    Coarse to fine over the plane's two tilts and its place; voxels are taken for cubes of `spacing`'s mean.
    """
    points = np.argwhere(bone).astype(float)
    if not len(points):
        return None
    points = points[:: max(1, len(points) // MOST_POINTS)]
    near_bone = near(bone, NEAR_MM, spacing)
    middle = points.mean(axis=0)
    best = Midline(np.array([1.0, 0, 0]), float(middle[0]), -1.0)
    tilts, places = TILTS_DEGREES, np.arange(-0.35, 0.36, 0.02) * bone.shape[0]
    for fineness in (1.0, 3.0, 9.0):
        start = best
        turn, lean = np.degrees(np.arcsin(start.normal[1:]))
        around = float(start.normal @ middle) if fineness == 1.0 else start.offset
        for a in turn + tilts / fineness:
            for b in lean + tilts / fineness:
                y, z = np.sin(np.radians(a)), np.sin(np.radians(b))
                normal = np.array([np.sqrt(max(0.0, 1 - y * y - z * z)), y, z])
                shift = float((normal - start.normal) @ middle)  # turned about the bone's middle
                for place in around + shift + places / fineness:
                    best = max(best, _tried(normal, place, points, near_bone), key=lambda m: m.agreement)
        places = places[np.abs(places) <= 0.13 * bone.shape[0]]
        tilts = TILTS_DEGREES[2:-2]
    return best


def _tried(
    normal: NDArray[np.float64], offset: float, points: NDArray[np.float64], near_bone: NDArray[np.bool_]
) -> Midline:
    there = np.rint(Midline(normal, offset, 0.0).mirrored(points)).astype(int)
    inside = ((there >= 0) & (there < near_bone.shape)).all(axis=1)
    found = near_bone[tuple(there[inside].T)].sum() if inside.any() else 0
    return Midline(normal, offset, float(found) / len(points))


def marks_with_a_twin(
    probability: NDArray[np.float32],
    marks: NDArray[np.int32],
    midline: Midline,
    spacing: NDArray[np.float64],
    *,
    slack_mm: float = 6.0,
    share: float = 0.5,
    off_midline_mm: float = 8.0,
) -> list[int]:
    """Numbers of the marks whose mirror image is marked as well.

    A mark (X, Y, Z, numbered from 1) has a twin if the mean probability over its mirror image, moved by up to
    `slack_mm`, reaches `share` of the mean over itself. Marks nearer to the midline than `off_midline_mm` are their own
    mirror image and are never dropped.
    """
    step = float(np.mean(spacing))
    reach = max(1, round(slack_mm / step))
    moves = np.arange(-reach, reach + 1)
    twins = []
    for number, voxels in voxels_of_marks(marks):
        if float(midline.distance(voxels.mean(axis=0, keepdims=True))[0]) * step < off_midline_mm:
            continue
        image = np.rint(midline.mirrored(voxels.astype(float))).astype(int)
        # The image's surroundings, so that every move is a shift of one small box.
        low, high = image.min(axis=0) - reach, image.max(axis=0) + reach + 1
        box = padded_box(probability, low, high)
        at = image - low
        own = float(probability[tuple(voxels.T)].mean())
        found = max(
            float(box[at[:, 0] + x, at[:, 1] + y, at[:, 2] + z].mean()) for x in moves for y in moves for z in moves
        )
        if found >= share * own:
            twins.append(number)
    return twins


class DropMarksWithTwinsd(DropMarksd):
    """Take marks with a twin (see `marks_with_a_twin`) out of what a network said; how: `DropMarksd`.

    Args:
        least_agreement: share of bone that must have a mirror image, or nothing is done.
    """

    def __init__(
        self,
        keys: KeysCollection = "probability",
        *,
        bone_key: str = "bone",
        threshold: float = 0.5,
        seed_threshold: float | None = None,
        part_at: Sequence[float] = (),
        least_agreement: float = 0.73,
        dropped_key: str = MARKS_WITH_A_TWIN,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, bone_key, threshold, seed_threshold, part_at, dropped_key, allow_missing_keys)
        self.least_agreement = least_agreement

    def anatomy(
        self, d: Mapping[Hashable, Any], values: NDArray[np.float32], marks: NDArray[np.int32]
    ) -> list[int] | None:
        bone, spacing = self.bone(d)
        midline = find_midline(bone, spacing)
        if midline is None or midline.agreement < self.least_agreement:
            return None
        # A detector's weak mark says little about the strong one across from it.
        evidence = values[0] if len(values) == 1 else values[0] * values[2]
        return marks_with_a_twin(evidence, marks, midline, spacing)
