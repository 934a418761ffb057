"""Reception for MRI: a folder of sequences, or one path per sequence -> one `Study` with a `Volume` per channel.

Nothing is guessed in silence: two series that could be one channel, another patient's series, positions measured in
another frame of reference are refused, with both named and the way out. Grids may differ; `volseg.transforms.mri`
brings them together.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import get_args

from volseg.errors import InputError, UsageError
from volseg.io.files import check_path, safe_name, shown, stem_of
from volseg.io.mri_candidates import Candidate, candidates_at
from volseg.io.voxels import check_not_constant
from volseg.labels import MRI_CHANNELS, MriChannel
from volseg.types import Study, Volume

PathLike = str | os.PathLike[str]
# Spine protocols repeat a contrast in two planes; networks here are trained on sagittal slices.
PLANES = {"sagittal": 0, "volume": 0, "coronal": 1, "axial": 2, "": 3}


@dataclass(frozen=True, eq=False)
class Plan:
    """Which series becomes which channel, in the order of `MRI_CHANNELS`, and why the others are left."""

    used: Mapping[MriChannel, Candidate]
    left: tuple[tuple[Candidate, str], ...]
    notes: tuple[str, ...] = ()


def read_mri_study(
    source: PathLike | Mapping[str, PathLike],
    *,
    channels: Mapping[str, PathLike] | None = None,
    reference: str | None = None,
    name: str | None = None,
    allow_other_frame: bool = False,
) -> Study:
    """Read the sequences of one examination.

    Args:
        source: a DICOM folder or zip, a folder of NIfTI, NRRD or MetaImage files named by sequence, one file; or
            {channel: path}.
        channels: paths (or, for DICOM, a SeriesInstanceUID or its ending in `source`) that override what the rules say.
        reference: the channel whose grid the others will be brought to; it comes first in `volumes`. By default the
            first of T1, T1c, T2, STIR that is there.
        name: the study's name; by default the folder's or file's.
        allow_other_frame: take series of different frames of reference (the patient was moved in between), with a
            note; they want registration.

    Returns:
        A Study whose `volumes` hold one Volume per channel found, each on its own grid. `notes` say which series serves
        which channel by which rule, and what was left.

    Raises:
        UsageError: mri-channel-unknown, mri-series-twice, series-unknown, series-ambiguous.
        InputError: mri-no-channel, mri-several-series, mri-several-patients, mri-several-studies,
            mri-frame-of-reference, mri-not-mr, mri-not-a-scan, voxels-constant, and those of the readers.
    """
    with contextlib.ExitStack() as open_zips:
        given = dict(source) if isinstance(source, Mapping) else dict(channels or {})
        first = next(iter(given.values()), "") if isinstance(source, Mapping) else source
        found = [] if isinstance(source, Mapping) else candidates_at(source, open_zips)
        where = shown(Path(first).name or first)
        plan = plan_mri(found, _overrides(given, found, open_zips), where=where, allow_other_frame=allow_other_frame)
        order = _order(plan.used, reference)
        volumes: dict[str, Volume] = {}
        notes = [*plan.notes]
        for channel in order:
            candidate = plan.used[channel]
            volume = replace(candidate.read(), channel=channel)
            check_not_constant(volume.voxels, candidate.label)
            volumes[channel] = volume
            notes += [f"{channel}: {note}" for note in candidate.notes]
    notes += [f"left {c.label}: {why}" for c, why in plan.left]
    return Study(
        name=safe_name(name if name is not None else stem_of(Path(first))),
        volumes=volumes,
        source=str(Path(first).resolve()),  # another run may start in another folder
        notes=tuple(notes),
    )


def parse_channels(options: Iterable[str]) -> dict[str, str]:
    """`["T1=PATH", "STIR=PATH"]`, as `--channel` gives them -> {channel: path}. Case does not matter in the channel.

    Raises:
        UsageError: mri-channel-unknown, mri-channel-twice.
    """
    out: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals or not path:
            raise UsageError("mri-channel-unknown", f"--channel {shown(option)}: write it as T1=PATH")
        channel = _channel(name)
        if channel in out:
            raise UsageError("mri-channel-twice", f"--channel {channel} is given twice")
        out[channel] = path
    return out


def plan_mri(
    found: Sequence[Candidate],
    overrides: Mapping[MriChannel, Candidate] | None = None,
    *,
    where: str = "",
    allow_other_frame: bool = False,
) -> Plan:
    """Assign series to channels and check that they belong together. Headers only; see `read_mri_study`."""
    given = dict(overrides or {})
    taken = {c.id for c in given.values()}
    if len(taken) < len(given):
        twice = next(f"{a} and {b}" for a in given for b in given if a < b and given[a].id == given[b].id)
        raise UsageError("mri-series-twice", f"{where}: {twice} are given one and the same series")
    left: list[tuple[Candidate, str]] = []
    used: dict[MriChannel, Candidate] = {}
    for channel in MRI_CHANNELS:
        if channel in given:
            used[channel] = _usable(given[channel])
            continue
        could = [c for c in found if c.verdict.channel == channel and c.id not in taken]
        best, others = _best(channel, could, where)
        left += others
        if best is not None:
            used[channel] = best
    settled = {c.id for c in used.values()} | {c.id for c, _ in left}
    left += [(c, _why_left(c)) for c in found if c.id not in settled]
    if not used:
        listed = "; ".join(f"{c.label}: {why}" for c, why in left[:6])
        raise InputError(
            "mri-no-channel",
            f"{where}: none of {len(found)} series is T1, T1c, T2 or STIR ({listed}); name one with --channel T1=PATH",
        )
    notes = [f"{channel}: {c.label}, {_how(channel, c, channel in given)}" for channel, c in used.items()]
    notes += [f"{channel} is missing" for channel in MRI_CHANNELS if channel not in used]
    return Plan(used, tuple(left), (*notes, *_belong_together(used, allow_other_frame)))


def _how(channel: MriChannel, candidate: Candidate, given: bool) -> str:
    if not given:
        return f"by rule '{candidate.verdict.rule}'"
    told = candidate.verdict.channel or (candidate.verdict.rule and candidate.verdict.why)
    return "as asked for" + (f", though its header or name says {told}" if told and told != channel else "")


def _best(
    channel: MriChannel, could: Sequence[Candidate], where: str
) -> tuple[Candidate | None, list[tuple[Candidate, str]]]:
    """The series that serves a channel; sagittal before coronal before axial, and what is no scan never."""
    scans = [c for c in could if c.problem is None or c.problem.code not in ("mri-not-a-scan", "mri-not-mr")]
    if not scans:
        return None, []
    rank = min(PLANES[c.plane] for c in scans)
    alike = [c for c in scans if PLANES[c.plane] == rank]
    if len(alike) > 1:
        other = next((c for c in alike if c.patient != alike[0].patient), None)
        if other is not None:
            raise InputError(
                "mri-several-patients",
                f"{where}: {alike[0].label} and {other.label} are of two patients; give one patient's sequences",
            )
        listed = "; ".join(f"{c.label} ({c.plane})" for c in alike[:8])
        raise InputError(
            "mri-several-series",
            f"{where}: {len(alike)} series could be {channel}: {listed}; choose one with --channel {channel}=PATH "
            "(or a series UID's last digits)",
        )
    return _usable(alike[0]), [(c, f"{c.plane}; {alike[0].plane} is preferred") for c in scans if c is not alike[0]]


def _why_left(c: Candidate) -> str:
    if c.problem is not None and c.problem.code in ("mri-not-a-scan", "mri-not-mr"):
        return c.problem.message.removeprefix(f"{c.label}: ").split(";")[0]
    return "another was asked for" if c.verdict.channel else c.verdict.why


def _usable(candidate: Candidate) -> Candidate:
    if candidate.problem is not None:
        raise candidate.problem
    return candidate


def _belong_together(used: Mapping[MriChannel, Candidate], allow_other_frame: bool) -> list[str]:
    """Every series against every other: same patient, same study, same frame of reference. Returns notes.

    Not against the first alone, which may say nothing of its patient. Names of patients are not told: the line may end
    in a log.
    """
    notes = []
    for (first, a), (channel, b) in combinations(used.items(), 2):
        both = f"{first} ({a.label}) and {channel} ({b.label})"
        if a.patient and b.patient and a.patient != b.patient:
            raise InputError("mri-several-patients", f"{both} are of two patients; give one patient's sequences")
        same_frame = a.frame_of_reference and a.frame_of_reference == b.frame_of_reference
        if a.study_uid and b.study_uid and a.study_uid != b.study_uid and not same_frame and not allow_other_frame:
            raise InputError(
                "mri-several-studies",
                f"{both} come from two examinations; give one, or register them (--register)",
            )
        if a.frame_of_reference and b.frame_of_reference and not same_frame:
            if not allow_other_frame:
                raise InputError(
                    "mri-frame-of-reference",
                    f"{both} have different frames of reference: their positions cannot be compared; register them "
                    "(--register) or leave one out",
                )
            notes.append(f"{both} have different frames of reference; they want registration")
    unknown = [channel for channel, c in used.items() if not c.frame_of_reference]
    if unknown and len(used) > 1:
        notes.append(f"no frame of reference in {', '.join(unknown)}: that their positions agree is taken on trust")
    return notes


def _overrides(
    given: Mapping[str, PathLike], found: Sequence[Candidate], open_zips: contextlib.ExitStack
) -> dict[MriChannel, Candidate]:
    out = {}
    for name, value in given.items():
        channel = _channel(name)
        text = os.fspath(value)
        # A longer one is no UID, and Path.exists raises above 255 bytes.
        if found and re.fullmatch(r"[0-9.#]{1,80}", text) and not Path(text).exists():
            out[channel] = _by_uid(channel, text, found)
        else:
            out[channel] = _alone(channel, candidates_at(check_path(value), open_zips), shown(Path(text).name or text))
    return {channel: out[channel] for channel in MRI_CHANNELS if channel in out}


def _by_uid(channel: MriChannel, ending: str, found: Sequence[Candidate]) -> Candidate:
    fits = [c for c in found if c.id == ending] or [c for c in found if c.id.endswith(ending)]
    if len(fits) != 1:
        there = ", ".join(shown(c.id) for c in (fits or found)[:8])
        code, what = ("series-ambiguous", f"fits {len(fits)} series") if fits else ("series-unknown", "not there")
        raise UsageError(code, f"--channel {channel}={shown(ending)}: {what}; there are {there}")
    return fits[0]


def _alone(channel: MriChannel, found: Sequence[Candidate], where: str) -> Candidate:
    """The one series at a path given for a channel; among several, the one the rules call by that channel."""
    if len(found) == 1:
        return found[0]
    fits = [c for c in found if c.verdict.channel == channel]
    if len(fits) != 1:
        what = f"{len(fits)} could be {channel}" if fits else f"none is {channel}"
        listed = "; ".join(c.label for c in (fits or found)[:8])
        raise InputError("mri-several-series", f"{where}: {len(found)} series, {what}: {listed}; give one of them")
    return fits[0]


def _channel(name: str) -> MriChannel:
    for channel in get_args(MriChannel):
        if name.strip().lower() == channel.lower():
            return channel
    raise UsageError("mri-channel-unknown", f"channel {shown(name)!r} is none of {', '.join(MRI_CHANNELS)}")


def _order(used: Mapping[MriChannel, Candidate], reference: str | None) -> list[MriChannel]:
    if reference is None:
        return list(used)
    first = _channel(reference)
    if first not in used:
        raise UsageError("mri-channel-unknown", f"reference {first} is not there; there are {', '.join(used)}")
    return [first, *(c for c in used if c != first)]
