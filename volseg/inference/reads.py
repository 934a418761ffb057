"""What a bundle reads, by its own metadata: CT, or which MRI sequences. The pipeline decides by this, not by a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CT, MR = "CT", "MR"


def modality_of(metadata: Mapping[str, Any]) -> str:
    """ "CT" or "MR": `network_data_format` -> inputs -> image -> modality; a bundle that says nothing reads CT."""
    return str(_image(metadata).get("modality", CT)).upper()


def channels_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the channels the network takes, in their order: `channel_def`."""
    named = _image(metadata).get("channel_def", {})
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _image(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    image = metadata.get("network_data_format", {}).get("inputs", {}).get("image", {})
    return image if isinstance(image, Mapping) else {}
