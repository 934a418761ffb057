"""What the bundles asked for read, CT or MRI, and a study read accordingly; of the wrong kind, it is named as such."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from volseg.errors import InputError, UsageError
from volseg.types import Study


def checked_modality(bundles: Sequence[str], args: argparse.Namespace) -> str:
    """ "CT" or "MR", one for all bundles.

    Raises:
        UsageError: bundles of both kinds; options of one kind with a bundle of the other.
    """
    from volseg.inference.bundle import find_bundle
    from volseg.inference.reads import CT, MR, modality_of

    kinds = {b: modality_of(find_bundle(b, trust=args.trust_bundle).metadata) for b in bundles}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{Path(b).name} reads {kind}" for b, kind in kinds.items())
        raise UsageError("bundles-mixed", f"{told}; run them apart")
    reads = next(iter(kinds.values()))
    if reads != MR and (args.channel or args.reference or args.register):
        raise UsageError("mri-option", f"--channel, --reference and --register are for MRI; {bundles[0]} reads {reads}")
    if reads != CT and args.series:
        raise UsageError("mri-option", f"--series is for CT; {bundles[0]} reads {reads}: use --channel T1=UID")
    if args.channel and len(args.inputs) > 1:
        raise UsageError(
            "channel-for-many", "--channel speaks of one study; leave it out when there are several inputs"
        )
    return reads


def asked_series(args: argparse.Namespace) -> dict[str, str]:
    """What --series or --channel tell the reader to use, files by their whole path; {}: it chooses itself."""
    from volseg.io.mri_study import parse_channels

    told = parse_channels(args.channel) | ({"series": args.series} if args.series else {})
    # Not Path.exists: it raises where a name is longer than the disk allows.
    return {w: os.path.realpath(which) if os.path.exists(which) else which for w, which in told.items()}  # noqa: PTH110


def read_for(reads: str, item: str, name: str, args: argparse.Namespace) -> Study:
    """One input as a study of the kind the bundles read.

    Raises:
        InputError: wrong-modality where the input is of the other kind, and those of the readers.
    """
    from volseg.inference.reads import MR
    from volseg.io import read_study
    from volseg.io.mri_study import parse_channels, read_mri_study
    from volseg.io.study import NOT_ONE_IMAGE

    if reads == MR:
        given = parse_channels(args.channel)
        try:
            return read_mri_study(
                item, channels=given, reference=args.reference, name=name, allow_other_frame=args.register
            )
        except InputError as error:
            if error.code == "mri-no-channel" and "CT" in _kinds_in(item):
                raise InputError("wrong-modality", f"{item}: a CT; this bundle reads MRI") from error
            raise
    try:
        return read_study(Path(item), series_uid=args.series, name=name)
    except InputError as error:
        kinds = _kinds_in(item) if error.code in NOT_ONE_IMAGE else set()
        if kinds and "CT" not in kinds:
            raise InputError(
                "wrong-modality",
                f"{item}: MRI ({', '.join(sorted(kinds))}); this bundle reads CT{_mri_bundle()}",
            ) from error
        raise


def _kinds_in(item: str) -> set[str]:
    """ "CT" and the MRI channels of the series at a path, by their headers or names."""
    from volseg.io import inspect

    rows = inspect(item).series
    return {row.channel for row in rows if row.channel} | {"CT" for row in rows if row.modality == "CT"}


def _mri_bundle() -> str:
    """Which shipped bundle reads MRI, as the end of a line."""
    from volseg.inference.bundle import find_bundle, shipped_bundles
    from volseg.inference.reads import MR, modality_of

    names = [name for name in shipped_bundles() if modality_of(find_bundle(name).metadata) == MR]
    return f"; --bundle {names[0]} reads MRI" if names else ""
