"""Several volumes in one folder -> the one that is used, and why the others are left. Pure rules, no files.

Order: CT before MR before PT before others; three slices or more; at least half the coverage of the longest; thinnest
spacing; most slices. What is equally good is never picked in silence: it is refused, with the way out. Neither does a
smaller series replace one of the same modality that has more images but is broken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from volseg.errors import InputError, UsageError
from volseg.io.files import shown
from volseg.io.series import SeriesVolume

_MODALITIES = {"CT": 0, "MR": 1, "PT": 2}
_ALIKE = 0.05


@dataclass(frozen=True, eq=False)
class Choice:
    """`used`, and every other volume with the reason it was left."""

    used: SeriesVolume
    left: tuple[tuple[SeriesVolume, str], ...]


def _coverage_mm(v: SeriesVolume) -> float:
    return len(v.frames) * v.gap_mm if math.isfinite(v.gap_mm) else 0.0


def choose(volumes: Sequence[SeriesVolume], *, series: str | None = None, where: str = "") -> Choice:
    """Pick one volume.

    Args:
        volumes: what `group_frames` found.
        series: a volume's id (SeriesInstanceUID, or UID#2) or a unique ending of it.

    Raises:
        UsageError: series-unknown, series-ambiguous.
        InputError: dicom-no-image, dicom-several-patients, dicom-several-studies, dicom-several-series,
            dicom-mixed-geometry, dicom-several-volumes, and the chosen volume's own problem.
    """
    if series is not None:
        used = _named(volumes, series)
        return _checked(used, [(v, "another was asked for") for v in volumes if v is not used])
    candidates = [v for v in volumes if not v.left_because]
    if not candidates:
        why = "; ".join(sorted({v.left_because for v in volumes})[:4])
        hint = "; use --series UID to force one" if volumes else ""
        raise InputError("dicom-no-image", f"{where}: no scan among {len(volumes)} series ({why or 'none'}){hint}")
    patients = {v.frames[0].patient for v in candidates}
    if len(patients) > 1:
        raise InputError(
            "dicom-several-patients",
            f"{where}: images of {len(patients)} patients; give one patient's folder at a time",
        )
    modality = min(candidates, key=lambda v: _MODALITIES.get(v.modality, 9)).modality
    alike = [v for v in candidates if v.modality == modality]
    longest = max(_coverage_mm(v) for v in alike)

    def rank(v: SeriesVolume) -> tuple[bool, bool, float, int, str]:
        gap = round(v.gap_mm, 2) if math.isfinite(v.gap_mm) else math.inf
        return len(v.frames) < 3, _coverage_mm(v) < 0.5 * longest, gap, -len(v.frames), v.id

    ranked = sorted(alike, key=rank)
    best = ranked[0]
    siblings = [v for v in candidates if v.series == best.series]
    if len(siblings) > 1:
        _refuse_siblings(siblings, where)
    equals = [v for v in ranked if _equally_good(best, v)]
    larger = [v for v in alike if v.problem is not None and len(v.frames) > len(best.frames)]
    if larger:  # a snippet that can be read must not stand in for the scan that cannot
        best, equals = larger[0], []
    if len({v.frames[0].study_uid for v in equals}) > 1:
        _refuse(
            "dicom-several-studies", f"{len(equals)} equally good {modality} series of several studies", equals, where
        )
    if len(equals) > 1:
        _refuse("dicom-several-series", f"{len(equals)} equally good {modality} series", equals, where)
    return _checked(best, [(v, v.left_because or _lesser(best, v)) for v in volumes if v is not best])


def _equally_good(best: SeriesVolume, v: SeriesVolume) -> bool:
    if v is best:
        return True
    if (len(v.frames) < 3) != (len(best.frames) < 3):
        return False
    if not (math.isfinite(best.gap_mm) and math.isfinite(v.gap_mm)):
        return math.isfinite(best.gap_mm) == math.isfinite(v.gap_mm)
    close = abs(v.gap_mm - best.gap_mm) <= _ALIKE * best.gap_mm
    return close and abs(_coverage_mm(v) - _coverage_mm(best)) <= _ALIKE * _coverage_mm(best)


def _lesser(best: SeriesVolume, v: SeriesVolume) -> str:
    if v.modality != best.modality:
        return f"{shown(v.modality, 16)}; {best.modality} is preferred"
    if v.problem is not None:
        return v.problem.code
    if len(v.frames) < 3 <= len(best.frames):
        return "fewer than 3 slices"
    if math.isfinite(v.gap_mm) and v.gap_mm > best.gap_mm * (1 + _ALIKE):
        return "thicker slices"
    return "covers less"


def _refuse(code: str, what: str, volumes: Sequence[SeriesVolume], where: str) -> None:
    listed = "; ".join(f"{shown(v.id)} ({len(v.frames)} images, {v.gap_mm:.3g} mm{v.distinct})" for v in volumes[:8])
    raise InputError(code, f"{where}: {what}: {listed}; choose one with --series UID (or its last digits)")


def _refuse_siblings(siblings: Sequence[SeriesVolume], where: str) -> None:
    grids = {
        (v.frames[0].rows, v.frames[0].columns, v.frames[0].row_spacing_mm, v.frames[0].orientation) for v in siblings
    }
    if len(grids) > 1:
        _refuse(
            "dicom-mixed-geometry", f"one series mixes {len(grids)} sizes, spacings or orientations", siblings, where
        )
    _refuse("dicom-several-volumes", f"one series holds {len(siblings)} volumes", siblings, where)


def _named(volumes: Sequence[SeriesVolume], series: str) -> SeriesVolume:
    exact = [v for v in volumes if v.id == series]
    found = exact or [v for v in volumes if series and v.id.endswith(series)]
    if not found:
        there = ", ".join(shown(v.id) for v in volumes[:8])
        raise UsageError("series-unknown", f"--series {shown(series)}: not there; there are {there}")
    if len(found) > 1:
        there = ", ".join(shown(v.id) for v in found[:8])
        raise UsageError("series-ambiguous", f"--series {shown(series)}: fits {len(found)} series: {there}")
    return found[0]


def _checked(used: SeriesVolume, left: list[tuple[SeriesVolume, str]]) -> Choice:
    if used.problem is not None:
        others = sum(v.problem is None and not v.left_because for v, _ in left)
        hint = f" (or use one of {others} other series with --series UID)" if others else ""
        raise InputError(used.problem.code, used.problem.message + hint)
    return Choice(used, tuple(left))
