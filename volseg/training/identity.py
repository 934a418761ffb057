"""What a training is, so that its folder is not gone on with as another one.

Enters: the bundle, its cases and what was asked of its train.json. Leaves: what `volseg train` writes to
OUT/training.json when it begins, or a refusal when it would go on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volseg.errors import InputError, UsageError

IDENTITY = "training.json"
# What may change while a training goes on: how long and how fast, and the machine. By the last part of a config's id.
FREE = {"epochs", "learning_rate", "device", "precision", "num_workers", "cache_rate", "sw_batch_size"}
# These have entries of their own; a list of cases counts by its names.
TOLD_APART = {"seed", "finetune_from", "case_list"}
LONGEST = 40  # characters of a value that a refusal quotes


def identity_of(
    bundle: str, cases: Mapping[str, Sequence[Mapping[str, str]]], changes: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Cases by section, and `changes` to the train.json `known` -> what makes this training no other one.

    Cases count by name and not by folder: a data set may be moved. Weights to begin with count by their content. An
    override with the value that stands there anyway is none.
    """
    asked = json.loads(json.dumps(dict(changes), default=str))  # as it will be read again
    source = Path(started) if (started := asked.get("finetune_from", known.get("finetune_from"))) else None
    return {
        "bundle": bundle,
        **{f"{section}_cases": _sha256_of_names(listed) for section, listed in cases.items()},
        "seed": asked.get("seed", known.get("seed")),
        "finetune_from": _sha256(source.read_bytes()) if source and source.is_file() else started or None,
        "overrides": {
            key.replace("::", "#"): value
            for key, value in sorted(asked.items())
            if key not in TOLD_APART and key.replace("::", "#").split("#")[-1] not in FREE and value != known.get(key)
        },
    }


def refuse_another(out: Path, identity: Mapping[str, Any]) -> None:
    """Return if `out` was begun as `identity`, or by a volseg that did not say.

    Raises:
        UsageError: training-of-another; everything that differs is named.
        InputError: state-broken; training.json is not what was written.
    """
    path = out / IDENTITY
    if not path.is_file():
        return
    now = _flat(identity)
    try:
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError("state-broken", f"{path} cannot be read ({error!r}); choose another folder") from error
    differs = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differs:
        told = "; ".join(_said(name, before.get(name), now.get(name)) for name in differs)
        raise UsageError("training-of-another", f"{out} holds another training: {told}; choose another folder")


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key != "overrides"} | dict(identity["overrides"])


def _said(name: str, before: Any, now: Any) -> str:
    """`seed was 7, is 9`; only that they are others where values are long or digests."""
    said = ["the default" if value is None else str(value) for value in (before, now)]
    return f"other {name}" if max(map(len, said)) > LONGEST else f"{name} was {said[0]}, is {said[1]}"


def _sha256_of_names(cases: Sequence[Mapping[str, str]]) -> str | None:
    """Of the files as seen from the folder that holds them all, in any order of the cases."""
    paths = [path for case in cases for path in case.values()]
    if not paths:
        return None
    above = os.path.commonpath([str(Path(path).parent) for path in paths])
    names = sorted("\0".join(os.path.relpath(path, above) for _, path in sorted(case.items())) for case in cases)
    return _sha256("\n".join(names).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
