"""What several commands need: checks of paths, names of studies, numbers on the command line, a loaded bundle."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.errors import UsageError, VolsegError
from volseg.labels import MRI_CHANNELS

if TYPE_CHECKING:
    from volseg.inference.bundle import BundleFiles, LoadedBundle

log = logging.getLogger(__name__)
FORMATTER = argparse.RawDescriptionHelpFormatter
# Entries of a bundle's config that can be switched on.
SWITCHES = {
    "adapt": "train copies of the network on the scan and look again at what it suspected (no labels needed):\n"
    "some minutes more; bmseg_bmsmm_net_segmentation finds somewhat more lesions with it, for\n"
    "bone_ct_segmamba_segmentation it is a tie",
    "ensemble": "heed the lesion maps of other networks, which the bundle's config names, beside its own or instead:\n"
    "three times as long, more lesions and fewer false marks; bone_ct_segmamba_segmentation and\n"
    "bone_ct_mask_rcnn_detection can",
}
Commands = Any  # what ArgumentParser.add_subparsers returns: argparse does not name its type


def load(bundle: str, args: argparse.Namespace) -> LoadedBundle:
    from volseg.inference.bundle import find_bundle, load_bundle
    from volseg.inference.ensemble import other_weights

    files = find_bundle(bundle, trust=args.trust_bundle)
    loaded = load_bundle(files, device=args.device, overrides=asked_overrides(files, args))
    other_weights(loaded)  # bundles that are heeded are loaded now: one that is missing is told before the search
    return loaded


def asked_overrides(files: BundleFiles, args: argparse.Namespace) -> dict[str, Any]:
    """Entries of a bundle's config that the command line sets."""
    from volseg.inference.bundle import PROGRESS, has_switch
    from volseg.inference.reads import MR, modality_of

    overrides: dict[str, Any] = {PROGRESS: False if args.quiet else None}
    if args.overlap is not None:
        overrides["inferer#overlap"] = args.overlap
    if args.all_windows:
        overrides["all_windows" if has_switch(files, "all_windows") else "inferer#all_windows"] = True
    if (precision := asked_precision(args)) is not None:
        overrides["inferer#precision"] = precision
        if getattr(args, "adapt", False) and has_switch(files, "adapt_precision"):
            overrides["adapt_precision"] = precision
    overrides |= {name: True for name in SWITCHES if getattr(args, name, False) and has_switch(files, name)}
    if modality_of(files.metadata) == MR:
        asked = (getattr(args, "reference", None) or "").lower()
        overrides["reference"] = next((channel for channel in MRI_CHANNELS if channel.lower() == asked), None)
        overrides["register"] = getattr(args, "register", False)
    return overrides


def add_switches(parser: argparse.ArgumentParser) -> None:
    for name, does in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=does)


def check_switches(args: argparse.Namespace, bundles: Sequence[BundleFiles]) -> None:
    """Whatever switch is on asks for at least one bundle that has it."""
    from volseg.inference.bundle import has_switch

    for name in SWITCHES:
        if getattr(args, name) and not any(has_switch(one, name) for one in bundles):
            names = ", ".join(one.name for one in bundles)
            raise UsageError(f"{name}-unknown", f"{names} cannot {name}; leave --{name} out")


def asked_precision(args: argparse.Namespace) -> str | None:
    """--precision with "auto" settled for this machine; None: as the bundle says. Warns of bf16 that is emulated."""
    from volseg.inference.precision import best_precision

    if args.precision is None:
        return None
    best = best_precision(args.device)
    if args.precision == "bfloat16" and best == "float32":
        log.warning("bfloat16 is emulated on this machine and slower than float32; --precision auto picks the faster")
    return best if args.precision == "auto" else str(args.precision)


def check_device(device: str | None) -> None:
    """Raises UsageError("device-unknown") where torch knows no such device, or this machine has none."""
    if device is None:
        return
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError:
        raise UsageError("device-unknown", f"{device!r} is no device; cpu, cuda, cuda:1 ...") from None
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (kind.index or 0) >= found.get(kind.type, 0):
        raise UsageError(
            "device-unknown", f"{device} is not there; found: " + ", ".join(k for k, n in found.items() if n)
        )


def check_output(out: Path, inputs: Sequence[str]) -> None:
    for item in inputs:
        source = Path(item)
        if _is_folder(source) and (out.resolve() == source.resolve() or source.resolve() in out.resolve().parents):
            raise UsageError("output-inside-input", f"{out} lies inside the input {source}; choose another folder")
    if out.exists() and not out.is_dir():
        raise UsageError("output-not-a-folder", f"{out} is a file; -o wants a folder")
    parent = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError("output-read-only", f"{parent} cannot be written to; choose another folder with -o")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # may not be looked at: its reader says so, for that study alone
        return False


def study_name(item: str) -> str:
    from volseg.io.files import safe_name, stem_of

    return safe_name(stem_of(Path(item)))


def whole_name(text: str) -> str:
    """A folder name as it is typed, blanks and letters of any language too, as long as it is one name and no path."""
    if not text.isprintable() or set(text) & set("/\\") or text.startswith(".") or len(os.fsencode(text)) > 200:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of a folder: no / and no \\, no . in front, at most 200 bytes; -o says where it goes"
        )
    return text


def unique_names(names: Sequence[str]) -> list[str]:
    """Two inputs of the same name get a number each, in the order given: one that no other input has for its name."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}_{n}" for n in itertools.count(2))
        free = (one for one in numbered if one not in names and one not in unique)
        unique.append(name if name not in unique else next(free))
    return unique


def refuse(error: VolsegError) -> int:
    line = " ".join(str(error).split())
    print(f"volseg: {line}", file=sys.stderr)
    return error.exit_code


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 to below 1 is wanted")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 is wanted")
    return value


def from_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: seeds count from 0")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is negative or not finite")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def whole_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    value = (int(low), int(high or low))
    if not 0 <= value[0] <= value[1]:
        raise argparse.ArgumentTypeError(f"{text} is not a range such as 1-6")
    return value


def whole_numbers(text: str) -> frozenset[int]:
    """`1-3,7` -> {1, 2, 3, 7}."""
    ranges = [whole_range(part) for part in text.split(",")]
    return frozenset(n for low, high in ranges for n in range(low, high + 1))
