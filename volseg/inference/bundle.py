"""Bundles: found by name, loaded from their own configs. What `python -m monai.bundle run` reads is what runs here."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose
from torch import nn

from volseg.errors import InputError, UsageError

# A checkout keeps bundles at its top; the wheel carries them inside the package (pyproject.toml).
_PACKAGE = Path(__file__).resolve().parents[1]
BUNDLE_FOLDERS = (_PACKAGE.parent / "bundles", _PACKAGE / "_bundles")
DEFAULT_BUNDLE = "bone_ct_segmamba_segmentation"
# Says how a run is watched, not what it finds.
PROGRESS = "inferer#progress"


@dataclass(frozen=True)
class BundleFiles:
    """Where a bundle lies and what it says of itself; nothing of it has run yet."""

    root: Path
    name: str
    version: str
    metadata: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        return self.root / "models" / "model.pt"


@dataclass(frozen=True, eq=False)
class LoadedBundle:
    """A bundle ready to work: its own preprocessing (without the loader), inferer, network and postprocessing.

    `search` is what to call: the config's entry of that name, which may train the network on the scan before it hands
    over to `inferer`, or `inferer` itself. `settings` are the entries of the config that were set to something else.
    """

    files: BundleFiles
    weights_sha256: str
    device: torch.device
    preprocessing: Compose
    inferer: Inferer
    search: Inferer
    network: nn.Module
    postprocessing: Compose
    settings: Mapping[str, Any]


def shipped_bundles() -> dict[str, Path]:
    """Name -> folder of every bundle that came with volseg."""
    found: dict[str, Path] = {}
    for folder in BUNDLE_FOLDERS:
        for config in sorted(folder.glob("*/configs/metadata.json")):
            found.setdefault(config.parents[1].name, config.parents[1])
    return found


def find_bundle(name_or_path: str | Path, *, trust: bool = False) -> BundleFiles:
    """Look a bundle up by name among the shipped ones, or take it from a folder the user trusts.

    A bundle's configs can call any Python function: a folder from elsewhere is code, and runs only with `trust`.

    Raises:
        UsageError: no such bundle, or a foreign folder without `trust`.
        InputError: the folder is not a bundle.
    """
    shipped = shipped_bundles()
    if str(name_or_path) in shipped:
        root = shipped[str(name_or_path)]
    else:
        root = Path(name_or_path).expanduser().resolve()
        if not root.is_dir():
            known = ", ".join(shipped) or "none"
            raise UsageError("bundle-unknown", f"no bundle called {str(name_or_path)!r} (shipped: {known})")
        if root not in shipped.values() and not trust:
            raise UsageError(
                "bundle-untrusted",
                f"{root}: a bundle can run any code; pass --trust-bundle if you know where it comes from",
            )
    try:
        metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("bundle-broken", f"{root}: configs/metadata.json cannot be read ({error})") from error
    return BundleFiles(root=root, name=root.name, version=str(metadata.get("version", "")), metadata=metadata)


def has_switch(files: BundleFiles, name: str) -> bool:
    """Whether the bundle's inference.json has an entry of this name to set: `adapt`, `ensemble`."""
    return name in ConfigParser.load_config_file(str(files.root / "configs" / "inference.json"))


def changed_settings(files: BundleFiles, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `overrides` (config entries by id) that differ from what inference.json says, the bar left out."""
    return _settings(_changed(_inference_config(files), overrides))


def load_bundle(
    files: BundleFiles, *, device: str | None = None, overrides: Mapping[str, Any] | None = None
) -> LoadedBundle:
    """Build what the bundle's inference.json describes and load its weights.

    `overrides` are config entries by id ("inferer#overlap": 0.25), as on the command line of monai.bundle.

    Raises:
        InputError: no weights, or weights that do not fit the network.
    """
    if not files.weights.is_file():
        raise InputError("weights-missing", f"{files.weights} does not exist; train the bundle or fetch its weights")
    parser = _inference_config(files)
    parser["bundle_root"] = str(files.root)
    if device is not None:
        parser["device"] = f"$torch.device('{device}')"
    asked = _changed(parser, overrides or {})
    for key, value in asked.items():
        parser[key] = value
    parser["preprocessing#transforms"] = _without(parser["preprocessing#transforms"], ("Load",))
    parser["postprocessing#transforms"] = _without(parser["postprocessing#transforms"], ("Save",))
    target: torch.device = parser.get_parsed_content("device")
    network: nn.Module = parser.get_parsed_content("network_def")
    try:
        state = torch.load(files.weights, map_location=target, weights_only=True)
        network.load_state_dict(state)
    except (RuntimeError, OSError, ValueError, EOFError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("weights-unfit", f"{files.weights}: does not fit the bundle's network ({reason})") from error
    return LoadedBundle(
        files=files,
        weights_sha256=sha256_of(files.weights),
        device=target,
        preprocessing=parser.get_parsed_content("preprocessing"),
        inferer=parser.get_parsed_content("inferer"),
        search=parser.get_parsed_content("search" if "search" in parser else "inferer"),
        network=network.to(target).eval(),
        postprocessing=parser.get_parsed_content("postprocessing"),
        settings=_settings(asked),
    )


def _inference_config(files: BundleFiles) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(files.root / "configs" / "inference.json"))
    return parser


def _changed(parser: ConfigParser, overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if parser.get(key) != value}


def _settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is made with; a bar is seen, not made with."""
    return {key: value for key, value in asked.items() if key != PROGRESS}


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _without(transforms: list[dict[str, Any]], beginnings: tuple[str, ...]) -> list[dict[str, Any]]:
    """Drop loaders and savers, by class name as MONAI Deploy does: the pipeline brings and takes tensors itself."""
    return [t for t in transforms if not str(t["_target_"]).rsplit(".", 1)[-1].startswith(beginnings)]
