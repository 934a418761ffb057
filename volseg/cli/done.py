"""What already lies in OUT: the answer to this very question, which is kept, or something else, which is refused.

A result is called after its file or folder, and PACS exports are often all called DICOM: the name alone says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from volseg.cli.reading import asked_series
from volseg.cli.shared import asked_overrides
from volseg.errors import UsageError

RESULT = "result.json"
CHOSEN = "the series volseg chooses"


@dataclass(frozen=True, eq=False)
class Asked:
    """What a result has to come from to be the one that is asked for, beside the study."""

    bundle: str
    weights_sha256: str
    settings: Mapping[str, Any]
    version: str
    series: Mapping[str, str]
    probability: bool

    def fingerprint_of(self, item: str) -> str:
        """Of the study at a path, and of what --channel names beside it; "" where it cannot be looked at."""
        from volseg.io.fingerprint import fingerprint

        return fingerprint(item, *(path for path in self.series.values() if os.path.exists(path)))  # noqa: PTH110


def asked_of(bundle: str, args: argparse.Namespace) -> Asked:
    """What `volseg predict` is asked for on the command line."""
    from volseg.inference.bundle import changed_settings, find_bundle
    from volseg.report.tables import as_json

    files = find_bundle(bundle, trust=args.trust_bundle)
    settings = as_json(changed_settings(files, asked_overrides(files, args)))
    return Asked(files.name, _sha256(files.weights), settings, files.version, asked_series(args), args.probability)


def already_done(folder: Path, item: str, asked: Asked, *, overwrite: bool) -> bool:
    """Whether the answer for the study `item` lies in `folder`.

    The study is known by its path and by the fingerprint of its files: exports are taken into one folder, patient after
    patient. A result of an older volseg has no fingerprint; its path alone has to do. Where the files cannot be looked
    at the answer is no: their reader says why, and nothing is replaced.

    Raises UsageError where something else lies there: "output-of-another" for a result of another study, bundle or
    setting, "output-exists" for what is no result; with `overwrite` only the latter, and "output-is-input".
    """
    from volseg.pipeline import replaceable

    if Path(os.path.realpath(folder)) in (source := Path(os.path.realpath(item)), *source.parents):
        raise UsageError("output-is-input", f"{folder}, where the result would go, is or holds the input {item}")
    if not folder.exists() or (overwrite and replaceable(folder)):
        return False
    if overwrite:
        raise UsageError("output-exists", f"{folder} {_held(folder)}: not replaced; choose another --name or -o")
    try:
        document = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        differs = _difference(document, item, asked)
        known = document["provenance"].get("study_fingerprint", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError("output-exists", f"{folder} {_held(folder)}; choose another --name or -o") from None
    if not differs and asked.probability and not (folder / "probability.nii.gz").is_file():
        differs = "made without --probability"
    if not differs and known and (now := asked.fingerprint_of(item)) != known:
        if not now:
            return False
        differs = f"of what lay at {item} before: the files there have changed since"
    if differs:
        advice = "choose another --name or -o, or pass --overwrite to replace it"
        raise UsageError("output-of-another", f"{folder} holds another result, {differs}; {advice}")
    print(f"{folder.name}: already done, skipped (--overwrite to run it again)")
    return True


def refuse_result_above(folder: Path) -> None:
    """Several bundles write below `folder`: it must not be one bundle's result itself."""
    if (folder / RESULT).exists():
        raise UsageError("output-exists", f"{folder} is one bundle's result; choose another --name or -o for several")


def _difference(document: Mapping[str, Any], item: str, asked: Asked) -> str:
    """What sets a finished result apart from the one asked for; "" for nothing."""
    from volseg.io.files import recorded

    study, made_by = document["study"], document["provenance"]
    if made_by["bundle"] != asked.bundle:
        return f"of {made_by['bundle']}"
    if (made_by["bundle_version"], made_by["weights_sha256"]) != (asked.version, asked.weights_sha256):
        return f"of other weights or another version ({made_by['bundle']} {made_by['bundle_version']})"
    if study["source"] != recorded(item):
        return f"of {study['source']}"
    heeded = made_by.get("other_weights", {})
    if changed := [name for name, weights in heeded.items() if _weights_of(name) != weights]:
        return f"for which other weights of {', '.join(changed)} were heeded"
    settings = made_by.get("settings", {})
    if settings != asked.settings:
        return f"made with {_in_words(settings)}, now {_in_words(asked.settings)}"
    if (series := study.get("asked", {})) != asked.series:
        return f"of {_in_words(series, CHOSEN)}, now {_in_words(asked.series, CHOSEN)}"
    return ""


def _held(folder: Path) -> str:
    from volseg.io.files import shown
    from volseg.pipeline import foreign

    several = sorted(path.parent.name for path in folder.glob(f"*/{RESULT}")) if folder.is_dir() else []
    if several:
        return f"holds the results of {', '.join(several)}"
    others = foreign(folder) if (folder / RESULT).is_file() else []
    besides = ", ".join(map(shown, others[:4])) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return f"holds a result and besides {besides}" if others else "exists and is not a finished result"


def _in_words(asked: Mapping[str, Any], nothing: str = "the bundle's own settings") -> str:
    return ", ".join(f"{key} {value}" for key, value in asked.items()) or nothing


def _weights_of(bundle: str) -> str:
    from volseg.inference.bundle import shipped_bundles

    return _sha256(shipped_bundles()[bundle] / "models/model.pt") if bundle in shipped_bundles() else ""


def _sha256(weights: Path) -> str:
    """Of a file; "" where it is missing, which is told when the bundle is loaded."""
    return _sha256_as_of(weights, weights.stat().st_mtime_ns) if weights.is_file() else ""


@cache
def _sha256_as_of(weights: Path, _changed_ns: int) -> str:
    """Once for all studies of a run."""
    from volseg.inference.bundle import sha256_of

    return sha256_of(weights)
