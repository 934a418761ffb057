"""Frames of one volume -> their order and affine, or a refusal by name. Pure geometry: no file is opened.

Slices are ordered by ImagePositionPatient along the normal, never by InstanceNumber; spacing comes from positions,
never from SliceThickness; a tilted gantry stays in the affine as shear. Source: DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.geometry import Affine, check_affine, lps_to_ras
from volseg.io.frames import Frame

# Positions are often written to 0.1 mm, so a slice may lie 0.05 mm off its place without anything being wrong.
POSITION_TOLERANCE_MM = 0.06
POSITION_TOLERANCE = 0.02
SAME_POSITION_MM = 0.01
LARGEST_TILT_DEGREES = 45.0


@dataclass(frozen=True, eq=False)
class Stack:
    """Ordered frames, affine (columns, rows, slices) -> RAS+ mm, step between slice centers and tilt of the gantry."""

    frames: tuple[Frame, ...]
    affine: Affine
    gap_mm: float
    tilt_degrees: float

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames[0].columns, self.frames[0].rows, len(self.frames)


def normal_of(frame: Frame) -> NDArray[np.float64] | None:
    """Unit normal of the image plane in LPS, None where the header gives no usable orientation."""
    if frame.orientation is None:
        return None
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(row @ column) > 0.01:
        return None
    normal = np.cross(row, column)
    return np.asarray(normal / np.linalg.norm(normal))


def heights_mm(frames: Sequence[Frame]) -> NDArray[np.float64] | None:
    """Position of each frame along the normal of the first, in mm; None where positions are missing."""
    normal = normal_of(frames[0])
    if normal is None or any(f.position is None for f in frames):
        return None
    return np.array([f.position for f in frames], dtype=np.float64) @ normal


def has_duplicates(frames: Sequence[Frame]) -> bool:
    """Whether two frames lie at one position."""
    heights = heights_mm(frames)
    return heights is not None and len(frames) > 1 and bool(np.diff(np.sort(heights)).min() < SAME_POSITION_MM)


def stack_frames(frames: Sequence[Frame], where: str) -> Stack:
    """Order frames of one orientation, matrix and pixel spacing.

    Raises:
        InputError: dicom-no-positions, dicom-no-pixel-spacing, dicom-orientation-invalid, dicom-single-slice,
            dicom-duplicate-positions, dicom-missing-slice, dicom-uneven-gaps, dicom-crooked-positions,
            and those of `check_affine`.
    """
    first = frames[0]
    if first.orientation is None or any(f.position is None for f in frames):
        lacking = sum(f.position is None or f.orientation is None for f in frames)
        raise InputError(
            "dicom-no-positions",
            f"{where}: {lacking} of {len(frames)} images lack ImagePositionPatient or ImageOrientationPatient, so "
            "their order and spacing are unknown; export the original series",
        )
    if first.row_spacing_mm is None or first.column_spacing_mm is None:
        raise InputError("dicom-no-pixel-spacing", f"{where}: no PixelSpacing, so sizes in mm are unknown")
    normal = normal_of(first)
    if normal is None:
        raise InputError(
            "dicom-orientation-invalid", f"{where}: ImageOrientationPatient {first.orientation} is no pair of axes"
        )
    if len(frames) < 2:
        raise InputError(
            "dicom-single-slice", f"{where}: 1 image; a volume needs at least 2 (give the folder of the whole series)"
        )
    positions = np.array([f.position for f in frames], dtype=np.float64)
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    ordered, positions, heights = [frames[i] for i in order], positions[order], heights[order]
    _check_gaps(ordered, heights, where)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    gap = float(step @ normal)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(ordered))[:, None] * step, axis=1)
    if off.max() > _tolerance_mm(gap):
        raise InputError(
            "dicom-crooked-positions",
            f"{where}: image {int(off.argmax()) + 1} of {len(ordered)} lies {off.max():.2f} mm off the line through "
            "the first and the last; two series may be mixed",
        )
    tilt = math.degrees(math.acos(min(1.0, gap / float(np.linalg.norm(step)))))
    if tilt > LARGEST_TILT_DEGREES:
        raise InputError(
            "dicom-crooked-positions", f"{where}: slices are shifted by {tilt:.0f} degrees to their normal"
        )
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lps = np.eye(4)
    lps[:3, 0] = row / np.linalg.norm(row) * first.column_spacing_mm
    lps[:3, 1] = column / np.linalg.norm(column) * first.row_spacing_mm
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    affine = check_affine(lps_to_ras(lps), where)
    return Stack(tuple(ordered), affine, float(np.linalg.norm(step)), tilt)


def _tolerance_mm(gap_mm: float) -> float:
    return max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * gap_mm)


def _check_gaps(ordered: Sequence[Frame], heights: NDArray[np.float64], where: str) -> None:
    gaps = np.diff(heights)
    at = int(gaps.argmin())
    if gaps[at] < SAME_POSITION_MM:
        n = int((gaps < SAME_POSITION_MM).sum())
        uids = [f.sop_uid for f in ordered]
        copies = len(uids) - len(set(uids))
        what = (
            f"{copies} images are there twice (same SOPInstanceUID)" if copies and "" not in uids else "mixed series?"
        )
        raise InputError(
            "dicom-duplicate-positions",
            f"{where}: {n} of {len(ordered)} images lie at the position of another, first at {heights[at]:.2f} mm; "
            f"{what}; keep one image per position",
        )
    typical = float(np.median(gaps))
    wrong = np.abs(gaps - typical) > 2 * _tolerance_mm(typical)
    if not wrong.any():
        return
    listed = ", ".join(f"{g:g}" for g in sorted({round(float(g), 2) for g in gaps})[:6])
    ratios = gaps / gaps.min()
    if np.abs(ratios - np.rint(ratios)).max() < 0.15:
        missing = int((np.rint(ratios) - 1).sum())
        after = int(gaps.argmax())
        raise InputError(
            "dicom-missing-slice",
            f"{where}: {missing} of {len(ordered) + missing} slices missing (gaps [{listed}] mm, the widest after "
            f"image {after + 1} at {heights[after]:.2f} mm); send the complete series",
        )
    raise InputError(
        "dicom-uneven-gaps",
        f"{where}: gaps between slices [{listed}] mm are uneven; slices are missing or two series are mixed",
    )
