"""Official state dicts -> ours: keys are renamed, values untouched, nothing is dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

_DIRECTION = {"": "ahead", "_b": "back", "_s": "across"}
_GSC = {"proj": "local.0.0", "proj2": "local.1.0", "proj3": "gate.0", "proj4": "fuse.0"}

# (pattern of the whole upstream key, our key as a function of the match)
_SEGMAMBA: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"vit\.downsample_layers\.0\.0\.(.+)", lambda m: f"stages.0.downsample.{m[1]}"),
    (r"vit\.downsample_layers\.([123])\.1\.(.+)", lambda m: f"stages.{m[1]}.downsample.1.{m[2]}"),
    (r"vit\.stages\.(\d)\.(\d+)\.norm\.(.+)", lambda m: f"stages.{m[1]}.layers.{m[2]}.norm.{m[3]}"),
    (
        r"vit\.stages\.(\d)\.(\d+)\.mamba\.((?:in|out)_proj\.weight)",
        lambda m: f"stages.{m[1]}.layers.{m[2]}.mamba.{m[3]}",
    ),
    (
        r"vit\.stages\.(\d)\.(\d+)\.mamba\.A(_b|_s|)_log",
        lambda m: f"stages.{m[1]}.layers.{m[2]}.mamba.{_DIRECTION[m[3]]}.A_log",
    ),
    (
        r"vit\.stages\.(\d)\.(\d+)\.mamba\.D(_b|_s|)",
        lambda m: f"stages.{m[1]}.layers.{m[2]}.mamba.{_DIRECTION[m[3]]}.D",
    ),
    (
        r"vit\.stages\.(\d)\.(\d+)\.mamba\.(conv1d|x_proj|dt_proj)(_b|_s|)\.(weight|bias)",
        lambda m: f"stages.{m[1]}.layers.{m[2]}.mamba.{_DIRECTION[m[4]]}.{m[3].removesuffix('1d')}.{m[5]}",
    ),
    (r"vit\.gscs\.(\d)\.(proj[234]?)\.(weight|bias)", lambda m: f"stages.{m[1]}.gsc.{_GSC[m[2]]}.{m[3]}"),
    (r"vit\.mlps\.(\d)\.fc([12])\.(weight|bias)", lambda m: f"stages.{m[1]}.mlp.{2 * int(m[2]) - 2}.{m[3]}"),
    (r"encoder([1234])\.(.+)", lambda m: f"skips.{int(m[1]) - 1}.{m[2]}"),
    (r"encoder5\.(.+)", lambda m: f"bottom.{m[1]}"),
    (r"decoder([2345])\.(.+)", lambda m: f"ups.{5 - int(m[1])}.{m[2]}"),
    (r"decoder1\.(.+)", lambda m: f"last.{m[1]}"),
    (r"out\.(.+)", lambda m: f"out.{m[1]}"),
]


def segmamba_state_dict(upstream_state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the state dict of the published SegMamba to the keys of `volseg.networks.SegMamba`.

    A checkpoint that wraps it under "state_dict" or "model" is opened, a leading "module." (DataParallel) is taken off.
    To get the published network's output at sizes other than 128, build ours with num_slices=(64, 32, 16, 8).

    Raises ValueError naming the keys that no SegMamba has.
    """
    while (wrapper := next((k for k in ("state_dict", "model") if k in upstream_state_dict), None)) is not None:
        upstream_state_dict = upstream_state_dict[wrapper]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in upstream_state_dict.items():
        plain = key.removeprefix("module.")
        for pattern, ours in _SEGMAMBA:
            if match := re.fullmatch(pattern, plain):
                renamed[ours(match)] = value
                break
        else:
            unknown.append(key)
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"{len(unknown)} of {len(upstream_state_dict)} keys are not SegMamba's: {shown}; is this another network?"
        )
    return renamed
