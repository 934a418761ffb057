"""Whether a synthetic case that lies there already is the one that would be made now: same images, same options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import InputError
from volseg.types import Volume


def fingerprint(*volumes: Volume | None, more: bytes = b"") -> str:
    """sha256 of volumes (channel, voxels and grid), in their order, and `more`; None, a phantom of a seed, gives ""."""
    given = [volume for volume in volumes if volume is not None]
    if not given:
        return ""
    digest = hashlib.sha256()
    for volume in given:
        digest.update(volume.channel.encode() + np.asarray(volume.voxels).tobytes() + volume.affine.tobytes())
    digest.update(more)
    return digest.hexdigest()


def refuse_another(
    parameters: Path, source_sha256: str, options: Mapping[str, Any], *, made: str, elsewhere: str
) -> None:
    """A case may only be kept if the same images and options made it. What its JSON does not say is believed.

    `options` as JSON holds them; `n` and `section` may differ. `made` and `elsewhere` are the refusal's words: "grown",
    "in another CT of that name".

    Raises InputError: cases-of-another.
    """
    if not parameters.is_file():
        return
    try:
        before = json.loads(parameters.read_text(encoding="utf-8"))
        source, how = before.get("source_sha256", source_sha256), dict(before.get("options", {}))
    except (ValueError, TypeError, AttributeError):
        return  # cut off while it was written: the case is made again
    advice = "choose another --seed or folder"
    if source != source_sha256:
        raise InputError("cases-of-another", f"{parameters.stem} was {made} {elsewhere}; {advice}")
    if other := [k for k in options if k not in ("n", "section") and how.get(k, options[k]) != options[k]]:
        told = ", ".join(f"{key} {how[key]}, not {options[key]}" for key in other)
        raise InputError("cases-of-another", f"{parameters.stem} was {made} otherwise ({told}); {advice}")
