"""Preparing MRI: sequences on their own grids -> one (C, X, Y, Z) image on the reference's grid, and who is there.

In this order: bias field (N4), rigid registration if asked for, z-score, then the grid, so that statistics are those of
measured voxels and every series is interpolated once. Where a sequence does not reach, and where it is missing, its
channel is 0: the mean of its z-score. What bundles name in their JSON stands at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray

from volseg.errors import InputError, UsageError
from volseg.geometry import Affine, ras_mm_to_voxel, voxel_to_ras_mm
from volseg.labels import MRI_CHANNELS
from volseg.transforms.ct import ras_grid
from volseg.transforms.metatensor import to_metatensor
from volseg.transforms.mri_bias import correct_bias
from volseg.transforms.mri_registration import RegistrationLimits, register_rigid
from volseg.transforms.resample import AxisAlignedSpacing, Shape, resample_to_grid, spacing_grid
from volseg.types import Study

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

LEAST_OVERLAP = 0.1
# A lesion may lie six deviations over the marrow in STIR; beyond that is pulsation and metal.
LARGEST_Z = 8.0
_SAMPLES = 24


@dataclass(frozen=True)
class Overlap:
    """`fraction` of the reference grid's volume that the other grid reaches; `gap_mm` between them, 0 if they touch."""

    fraction: float
    gap_mm: float


def grid_overlap(affine: ArrayLike, shape: Sequence[int], to_affine: ArrayLike, to_shape: Sequence[int]) -> Overlap:
    """How much of the grid (to_affine, to_shape) another one covers, voxel faces included.

    The fraction is counted on 24 x 24 x 24 points; the gap is found by projecting from one box to the other and back,
    which converges to the distance between two convex bodies.
    """
    steps = [(np.arange(_SAMPLES) + 0.5) / _SAMPLES * n - 0.5 for n in to_shape]
    points = voxel_to_ras_mm(to_affine, np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3))
    inside = ras_mm_to_voxel(affine, points)
    fraction = float(np.all((inside >= -0.5) & (inside <= np.asarray(shape) - 0.5), axis=1).mean())
    if fraction > 0:
        return Overlap(fraction, 0.0)
    p = points.mean(axis=0)
    q = p
    for _ in range(500):
        q = _nearest_in_box(affine, shape, p)
        p = _nearest_in_box(to_affine, to_shape, q)
    return Overlap(0.0, float(np.linalg.norm(p - q)))


def _nearest_in_box(affine: ArrayLike, shape: Sequence[int], xyz: NDArray) -> NDArray:
    voxel = np.clip(ras_mm_to_voxel(affine, xyz), -0.5, np.asarray(shape) - 0.5)
    return voxel_to_ras_mm(affine, voxel)


def to_reference_grid(
    tensor: MetaTensor, reference: MetaTensor, *, least_overlap: float = LEAST_OVERLAP, outside: float = 0.0
) -> MetaTensor:
    """A series (1, X, Y, Z) on the reference's grid by both affines, linear; `outside` where it does not reach.

    Raises:
        InputError: grids-apart (says how many mm), grids-overlap-little (says how much).
    """
    affine, shape = reference.affine.cpu().numpy(), tuple(int(n) for n in reference.shape[1:])
    overlap = grid_overlap(tensor.affine.cpu().numpy(), tensor.shape[1:], affine, shape)
    both = f"{_name(tensor)} and {_name(reference)}"
    if overlap.fraction == 0:
        raise InputError(
            "grids-apart",
            f"{both} do not overlap: {overlap.gap_mm:.0f} mm lie between them; give sequences of one region",
        )
    if overlap.fraction < least_overlap:
        raise InputError(
            "grids-overlap-little",
            f"{both}: only {100 * overlap.fraction:.0f} % of the reference grid is covered, "
            f"{100 * least_overlap:.0f} % are due; give sequences of one region or another reference",
        )
    return resample_to_grid(tensor, affine=affine, shape=shape, outside=outside)


def z_score(tensor: MetaTensor) -> MetaTensor:
    """Mean 0 and deviation 1 over the patient, clipped at 8 deviations; the same for every scale a scanner may choose.

    The patient is what lies above a tenth of the 99th percentile (air in an MR image is near 0); in an image with
    negative values, which was normalised before, it is everything. Mean and deviation are those of the values between
    the 0.5th and 99.5th percentile, so that a vessel or an artefact does not set the scale.

    Raises:
        InputError: mri-constant.
    """
    values = tensor.as_tensor().to(torch.float32)
    plain = values.cpu().numpy()
    body = plain if plain.min() < 0 else plain[plain > 0.1 * np.percentile(plain, 99)]
    low, high = np.percentile(body, (0.5, 99.5)) if body.size else (0.0, 0.0)
    kept = np.clip(body, low, high)
    deviation = float(kept.std()) if kept.size else 0.0
    if deviation <= 0:
        raise InputError("mri-constant", f"{_name(tensor)}: one single value; there is no image to normalise")
    scaled = ((values - float(kept.mean())) / deviation).clamp_(-LARGEST_Z, LARGEST_Z)
    return MetaTensor(scaled, meta=dict(tensor.meta), applied_operations=list(tensor.applied_operations))


class SagittalSpacing(AxisAlignedSpacing):
    """Axes to R, A, S and voxels of `pixdim` mm along them in one interpolation; 0 keeps the present spacing.

    (0, 1, 1) leaves sagittal slices as thick as they are and brings them to 1 mm in their plane.
    """

    def target_grid(self, tensor: MetaTensor) -> tuple[Affine, Shape]:
        affine, shape = ras_grid(tensor.affine.cpu().numpy(), tensor.shape[1:])
        return spacing_grid(affine, shape, self.pixdim)


def stack_sequences(
    series: Mapping[str, MetaTensor],
    channels: Sequence[str] = MRI_CHANNELS,
    *,
    reference: str | None = None,
    pixdim: Sequence[float] | None = None,
    least_overlap: float = LEAST_OVERLAP,
) -> tuple[MetaTensor, torch.Tensor]:
    """Sequences on any grids -> ((C, X, Y, Z) on the reference's grid, present (C,) float32 of 0 and 1).

    Args:
        series: channel -> (1, X, Y, Z), normalised; what is missing is not there.
        channels: the order of the channels that leave.
        reference: whose grid it is; by default the first of `channels` that is there.
        pixdim: see SagittalSpacing; None keeps the reference's own grid.

    The result carries the reference's metadata and trace, so that `ToSourceGridd` and `Invertd` lead back to the grid
    the reference was read on.

    Raises:
        UsageError: mri-channel-unknown.
        InputError: mri-no-channel, not-one-volume, grids-apart, grids-overlap-little.
    """
    strange = [c for c in series if c not in channels]
    if strange:
        raise UsageError("mri-channel-unknown", f"{', '.join(strange)}: none of {', '.join(channels)}")
    there = [c for c in channels if c in series]
    if not there:
        raise InputError("mri-no-channel", f"none of {', '.join(channels)} is there; at least one is needed")
    for channel in there:
        if series[channel].ndim != 4 or series[channel].shape[0] != 1:
            raise InputError(
                "not-one-volume", f"{channel} has shape {tuple(series[channel].shape)}, one grey (1, X, Y, Z) is due"
            )
    first = reference or there[0]
    if first not in series:
        raise UsageError("mri-channel-unknown", f"reference {first} is not there; there are {', '.join(there)}")
    fixed = series[first] if pixdim is None else SagittalSpacing(pixdim)(series[first])
    out = torch.zeros((len(channels), *fixed.shape[1:]), dtype=torch.float32, device=fixed.device)
    for i, channel in enumerate(channels):
        if channel == first:
            out[i] = fixed.as_tensor()[0]
        elif channel in series:
            out[i] = to_reference_grid(series[channel], fixed, least_overlap=least_overlap).as_tensor()[0]
    present = torch.tensor([float(c in series) for c in channels])
    meta = {**fixed.meta, "channel": "+".join(channels), "original_channel_dim": 0}
    return MetaTensor(out, meta=meta, applied_operations=list(fixed.applied_operations)), present


def study_tensors(study: Study) -> dict[str, MetaTensor]:
    """A multi-sequence Study as the dictionary the transforms below work on: channel -> (1, X, Y, Z) MetaTensor."""
    return {channel: to_metatensor(volume, name=study.name) for channel, volume in study.volumes.items()}


def reference_of(there: Iterable[Key], named: Key | None) -> Key | None:
    """Whose grid it is: the series that was named if it is there, else the first one; None where there is none."""
    names = list(there)
    return named if named in names else next(iter(names), None)


def _name(tensor: MetaTensor) -> str:
    return str(tensor.meta.get("channel") or "a series")


def _named(d: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
    """The tensor under a key, which is its channel's name whatever the reader called it."""
    tensor = d[key] if isinstance(d[key], MetaTensor) else MetaTensor(d[key])
    tensor.meta["channel"] = str(key)
    return tensor


class CorrectBiasd(MapTransform):
    """`correct_bias` (N4) for every sequence that is there."""

    def __init__(self, keys: KeysCollection = MRI_CHANNELS, *, work_mm: float = 4.0) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.work_mm = work_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], _ = correct_bias(_named(d, key), work_mm=self.work_mm)
        return d


class RegisterRigidd(MapTransform):
    """`register_rigid` of every sequence to the reference; reports under `report_key` (channel -> Registration).

    Nothing is interpolated: the affine moves. `reference` is the first of `keys` that is there unless named.
    """

    def __init__(
        self,
        keys: KeysCollection = MRI_CHANNELS,
        *,
        reference: str | None = None,
        limits: RegistrationLimits | None = None,
        report_key: str = "registration",
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.reference, self.limits, self.report_key = reference, limits or RegistrationLimits(), report_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        there = [key for key in self.keys if key in d]
        first = reference_of(there, self.reference)
        reports = {}
        for key in there:
            if key != first:
                d[key], reports[str(key)] = register_rigid(_named(d, key), _named(d, first), limits=self.limits)
                log.info("%s", reports[str(key)].line)
        d[self.report_key] = reports
        return d


class ZScored(MapTransform):
    """`z_score` for every sequence that is there."""

    def __init__(self, keys: KeysCollection = MRI_CHANNELS) -> None:
        super().__init__(keys, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = z_score(_named(d, key))
        return d


class StackSequencesd(MapTransform):
    """`stack_sequences`: the sequences become `image_key` (C, X, Y, Z) and `present_key` (C,), and leave.

    `label_keys` (if there) lie on the reference's own grid and follow it to the new one, nearest neighbour.
    """

    def __init__(
        self,
        keys: KeysCollection = MRI_CHANNELS,
        *,
        image_key: str = "image",
        present_key: str = "present",
        label_keys: Sequence[str] | str = ("label",),
        reference: str | None = None,
        pixdim: Sequence[float] | None = None,
        least_overlap: float = LEAST_OVERLAP,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.image_key, self.present_key, self.reference = image_key, present_key, reference
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)
        self.pixdim, self.least_overlap = pixdim, least_overlap

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        channels = [str(key) for key in self.keys]
        series = {channel: _named(d, channel) for channel in channels if channel in d}
        reference = reference_of(series, self.reference)
        d[self.image_key], d[self.present_key] = stack_sequences(
            series, channels, reference=reference, pixdim=self.pixdim, least_overlap=self.least_overlap
        )
        first = series[str(reference)]  # without any series the line above has refused
        for key in self.label_keys:
            if key in d:
                _check_same_grid(d[key], first, str(key))
                if self.pixdim is not None:
                    d[key] = SagittalSpacing(self.pixdim)(d[key], mode="nearest")
        for channel in series:
            del d[channel]
        return d


def _check_same_grid(label: MetaTensor, image: MetaTensor, key: str) -> None:
    same = tuple(label.shape[1:]) == tuple(image.shape[1:])
    if not same or not np.allclose(label.affine.cpu().numpy(), image.affine.cpu().numpy(), atol=1e-2):
        raise InputError(
            "label-grid",
            f"{key} {tuple(label.shape[1:])} does not lie on the grid of {_name(image)} {tuple(image.shape[1:])}; "
            "labels belong to the reference series",
        )
