"""A bundle and a CT, or the sequences of an MRI study, in; lesions and probability on the source grid out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from numpy.typing import NDArray

from volseg.errors import VolsegError
from volseg.inference.bundle import LoadedBundle
from volseg.inference.repetition import MARKS_THAT_REPEAT
from volseg.inference.sliding_window import KEPT_FOR_INFERERS
from volseg.inference.symmetry import MARKS_WITH_A_TWIN
from volseg.transforms.invert import to_source_grid
from volseg.transforms.metatensor import to_metatensor
from volseg.transforms.mri import study_tensors
from volseg.types import Study, Volume

# Data key: a line on the bundles whose lesion maps were averaged (`volseg.inference.ensemble`).
AVERAGED_WITH = "averaged_with"
WHY_LEFT_OUT = {
    MARKS_WITH_A_TWIN: "they have a twin on the other side of the body",
    MARKS_THAT_REPEAT: "bone looks the same elsewhere along the body",
}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a segmentation bundle says about one volume; every array (X, Y, Z) lies on the volume's own grid.

    `bone` is 0 outside bone, 1 in cortex, 2 in marrow. `seconds` names the stages. `scores`: of lesion 1, 2, ... where
    the bundle is a detector, None where it only outlines. `notes`: what the transforms have to say (registrations,
    marks left out).
    """

    instances: NDArray[np.uint16]
    probability: NDArray[np.float32]
    bone: NDArray[np.uint8]
    seconds: Mapping[str, float]
    scores: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def segment_volume(volume: Volume, bundle: LoadedBundle) -> Segmentation:
    """Run a segmentation bundle on one volume. The result's shape equals the volume's, by assertion."""
    return _segment({"image": to_metatensor(volume)}, volume, bundle)


def segment_sequences(study: Study, bundle: LoadedBundle) -> Segmentation:
    """Run a bundle that reads MRI on the sequences of one study; the masks lie on the grid of its first one.

    Raises InputError: those of `volseg.transforms.mri`.
    """
    return _segment(study_tensors(study), next(iter(study.volumes.values())), bundle)


def _segment(given: dict[str, Any], volume: Volume, bundle: LoadedBundle) -> Segmentation:
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)

    data = _through(bundle.preprocessing, given)
    bone = data.get("bone")
    clock.lap("preprocessing")

    data["pred"] = _searched(data, bundle)
    data["image"] = data["image"].cpu()
    clock.lap("network")

    data = _through(bundle.postprocessing, data)
    instances = _voxels(data["pred"]).astype(np.uint16)
    probability = _voxels(data["probability"]).astype(np.float32, copy=False)
    if bone is None:
        bone_labels = np.zeros(volume.voxels.shape, np.uint8)
    else:
        bone_labels = _voxels(to_source_grid(bone, mode="nearest")).astype(np.uint8)
    clock.lap("postprocessing")

    for name, array in (("instances", instances), ("probability", probability), ("bone", bone_labels)):
        assert array.shape == volume.voxels.shape, (
            f"{name} {array.shape} is not on the source grid {volume.voxels.shape}"
        )
    notes = tuple(line for line in str(data.get("registration", "")).split("\n") if line)
    if said := getattr(bundle.search, "note", ""):
        notes += (said,)
    if said := data.get(AVERAGED_WITH):
        notes += (said,)
    for key, why in WHY_LEFT_OUT.items():
        if count := data.get(key):
            notes += (f"taken for anatomy and left out, for {why}: {count} mark{'s' if count > 1 else ''}",)
    return Segmentation(instances, probability, bone_labels, seconds, data.get("scores"), notes)


def lesion_map(given: dict[str, Any], bundle: LoadedBundle) -> MetaTensor:
    """The probability of a lesion (1, X, Y, Z) on the bundle's own working grid, before any rule leaves marks out.

    `given`: what the bundle's preprocessing takes, without the loader: {"image": (1, X, Y, Z) MetaTensor in HU}.
    """
    data = _through(bundle.preprocessing, given)
    data["pred"] = _searched(data, bundle)
    for step in bundle.postprocessing.transforms:
        data = step(data)
        if "probability" in data:
            break
    probability: MetaTensor = data["probability"]
    return probability


def _searched(data: dict[Any, Any], bundle: LoadedBundle) -> MetaTensor:
    """Logits (K, X, Y, Z) of preprocessed data, with the image's metadata."""
    bone = data.get("bone")
    with torch.inference_mode():
        occupancy = None if bone is None else bone.to(bundle.device)[None]
        extra = {name: data.pop(name)[None] for name in KEPT_FOR_INFERERS if name in data}
        logits = bundle.search(data["image"].to(bundle.device)[None], bundle.network, occupancy=occupancy, **extra)
    return MetaTensor(logits[0], meta=data["image"].meta)


def _through(transforms: Compose, data: dict[Any, Any]) -> dict[Any, Any]:
    """Transformed data. MONAI's Compose hides what a transform refuses in a RuntimeError: it comes out again here."""
    try:
        return transforms(data)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, VolsegError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None


def _voxels(tensor: torch.Tensor) -> NDArray:
    plain = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
    return plain[0].cpu().numpy()


class _Clock:
    """Writes the seconds since the last lap under a name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self.last, 3)
        self.last = now
