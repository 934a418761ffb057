"""Frames of a folder -> what could be volumes. Groups by series and geometry; says of each what stands against it.

Enters: frames. Leaves: `SeriesVolume`s with a stack or a refusal. Choosing between them is `choose.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from volseg.errors import InputError
from volseg.io.files import shown
from volseg.io.frames import NOT_IMAGES, Frame
from volseg.io.stack import Stack, has_duplicates, heights_mm, stack_frames

NO_UID = "no-uid"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PROJECTIONS = {"PROJECTION IMAGE", "MIP", "MINIP", "MAX_IP", "MIN_IP", "MPR_MIP"}
_MAPS = {"PERFUSION", "RCBF", "RCBV", "MTT", "TTP"}
# RescaleType (PS3.3 C.11.1.1.2); US is "unspecified". A spectral CT's maps say MGML, Z_EFF, ED ... under the CT class.
_HOUNSFIELD = {"", "HU", "US", "HOUNSFIELD", "HOUNSFIELD UNITS", "UNSPECIFIED"}


@dataclass(frozen=True, eq=False)
class SeriesVolume:
    """Frames that belong together. `id` is the SeriesInstanceUID, with '#2' where one series holds several volumes.

    `left_because` is set where the images are no scan (localizer, segmentation ...); `problem` where they do not form
    a regular grid. `gap_mm` is NaN where positions do not tell.
    """

    id: str
    frames: tuple[Frame, ...]
    stack: Stack | None
    problem: InputError | None
    left_because: str
    gap_mm: float
    distinct: str = ""

    @property
    def modality(self) -> str:
        return self.frames[0].modality

    @property
    def series(self) -> tuple[str, ...]:
        return _series_key(self.frames[0])

    @property
    def label(self) -> str:
        """Short words for a person: last digits of the UID, modality, count, spacing."""
        tail = shown(f"series ...{self.id[-14:]}" if len(self.id) > 14 else f"series {self.id}")
        gap = f", {self.gap_mm:.3g} mm apart" if np.isfinite(self.gap_mm) else ""
        return f"{tail} ({shown(self.modality, 16)}, {len(self.frames)} images{gap}{self.distinct})"


def _series_key(f: Frame) -> tuple[str, ...]:
    tail = (f.series_number, str(f.path.parent)) if not f.series_uid else ()
    return (f.patient, f.study_uid, f.series_uid, *tail)


def _same_geometry(a: Frame, b: Frame) -> bool:
    if (a.rows, a.columns) != (b.rows, b.columns) or (a.orientation is None) != (b.orientation is None):
        return False
    if (
        a.orientation is not None
        and b.orientation is not None
        and not np.allclose(a.orientation, b.orientation, 0, 2e-3)
    ):
        return False
    spacings = [(a.row_spacing_mm, b.row_spacing_mm), (a.column_spacing_mm, b.column_spacing_mm)]
    return all((p is None) == (q is None) and np.isclose(p or 0, q or 0, rtol=1e-3, atol=0) for p, q in spacings)


def _by_geometry(frames: Sequence[Frame]) -> list[list[Frame]]:
    groups: list[list[Frame]] = []
    for frame in frames:
        home = next((g for g in groups if _same_geometry(g[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
    return groups


def _by_splits(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Where positions repeat and one attribute tells the copies apart, one group per value; otherwise all as one."""
    if not has_duplicates(frames):
        return [("", frames)]
    for i, (name, _) in enumerate(frames[0].splits):
        groups: dict[str, list[Frame]] = {}
        for frame in frames:
            groups.setdefault(frame.splits[i][1], []).append(frame)
        if len(groups) > 1 and not any(has_duplicates(g) for g in groups.values()):
            return [(f", {name} {shown(value, 30)}", group) for value, group in groups.items()]
    return [("", frames)]


def _left_because(frames: Sequence[Frame]) -> str:
    """Why these images are not a scan to be read, in words; '' where they are."""
    f = frames[0]
    kinds = set(f.image_type)
    if f.modality in NOT_IMAGES:
        return f"a {shown(f.modality, 16)} object, not a scan"
    if kinds & {"LOCALIZER", "SCOUT"}:
        return "a localizer"
    if f.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return f"a colour picture ({shown(f.photometric, 20)})"
    if f.sop_class.startswith(_SECONDARY_CAPTURE):
        return "a secondary capture"
    if kinds & _PROJECTIONS:
        return "a projection (MIP), not slices"
    if kinds & _MAPS and "DERIVED" in kinds:
        return "a derived map, not the scan"
    if not_hounsfield(f):
        return f"a map in {shown(f.rescale_type, 16)}, not in Hounsfield units"
    if "MOSAIC" in kinds:
        return "a mosaic of slices in one picture; convert it with its vendor's tool"
    return ""


def not_hounsfield(f: Frame) -> bool:
    """Whether a CT image says itself that its values are something else: mg/ml of iodine, electron density ..."""
    return f.modality == "CT" and f.rescale_type not in _HOUNSFIELD


def _with_issuers(frames: Iterable[Frame]) -> list[Frame]:
    """The same frames; an issuer of a PatientID that only some of them name is everyone's.

    Systems on the way add IssuerOfPatientID to what passes through them. Two issuers of one number stay two patients.
    """
    frames = list(frames)
    issuers: dict[str, set[str]] = {}
    for f in frames:
        number, known, issuer = f.patient.partition("\n")
        if known and issuer:
            issuers.setdefault(number, set()).add(issuer)
    whole = {f"{number}\n": f"{number}\n{min(names)}" for number, names in issuers.items() if len(names) == 1}
    return [replace(f, patient=whole[f.patient]) if f.patient in whole else f for f in frames]


def group_frames(frames: Iterable[Frame]) -> list[SeriesVolume]:
    """All frames of a folder -> the volumes they form, in a fixed order."""
    series: dict[tuple[str, ...], list[Frame]] = {}
    for frame in _with_issuers(frames):
        series.setdefault(_series_key(frame), []).append(frame)
    out: list[SeriesVolume] = []
    taken: dict[str, int] = {}
    for members in series.values():
        members = sorted(members, key=lambda f: (f.sop_uid, str(f.path), f.index))
        kinds: dict[str, list[Frame]] = {}
        for frame in members:
            kinds.setdefault(_left_because([frame]), []).append(frame)
        parts = [
            (why, words, part)
            for why, alike in kinds.items()
            for group in _by_geometry(alike)
            for words, part in _by_splits(group)
        ]
        parts.sort(key=lambda p: (p[0] != "", -len(p[2]), p[1]))
        name = members[0].series_uid or NO_UID
        for why, words, part in parts:
            taken[name] = number = taken.get(name, 0) + 1
            out.append(_volume(name if number == 1 else f"{name}#{number}", part, why, words))
    return sorted(out, key=lambda v: v.id)


def _volume(name: str, frames: list[Frame], why: str, words: str) -> SeriesVolume:
    heights = heights_mm(frames)
    gap = float(np.median(np.diff(np.sort(heights)))) if heights is not None and len(frames) > 1 else float("nan")
    bare = SeriesVolume(name, tuple(frames), None, None, why, gap, words)
    try:
        stack = stack_frames(frames, bare.label)
    except InputError as e:
        return SeriesVolume(name, tuple(frames), None, e, why, gap, words)
    return SeriesVolume(name, stack.frames, stack, None, why, stack.gap_mm, words)
