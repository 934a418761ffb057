"""The mint: Volume -> MetaTensor, and the melt: MetaTensor -> Volume. No other file converts between the two."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from volseg.errors import UsageError
from volseg.types import Volume


def to_metatensor(volume: Volume, *, name: str = "") -> MetaTensor:
    """A (1, X, Y, Z) float32 MetaTensor with the Volume's own axes and affine (voxel -> RAS mm); always a copy.

    The metadata are those of MONAI's LoadImaged: `affine`, `original_affine`, `spatial_shape`, `filename_or_obj`
    (`name`, or the channel), and `channel` and `series_uid` for the way back.
    """
    # order="K": a series is stored slice by slice; a transposed copy of 300 MB here would buy nothing.
    voxels = torch.from_numpy(np.array(volume.voxels, dtype=np.float32, order="K", copy=True))
    affine = np.array(volume.affine, dtype=np.float64)
    meta = {
        "original_affine": affine,
        "spatial_shape": np.array(volume.voxels.shape),
        "filename_or_obj": name or volume.channel,
        "space": "RAS",
        "original_channel_dim": "no_channel",
        "channel": volume.channel,
        # An empty string, not None: MONAI's collation refuses None.
        "series_uid": volume.series_uid or "",
    }
    return MetaTensor(voxels[None], affine=torch.from_numpy(affine.copy()), meta=meta)


def to_volume(tensor: MetaTensor) -> Volume:
    """The Volume that a (1, X, Y, Z) MetaTensor holds, on the tensor's present grid; voxels share its memory on CPU."""
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise UsageError("not-one-volume", f"a Volume is made from (1, X, Y, Z), not {tuple(tensor.shape)}")
    return Volume(
        voxels=tensor.as_tensor().detach().cpu().numpy()[0],
        affine=np.array(tensor.affine.cpu().numpy(), dtype=np.float64),
        channel=str(tensor.meta.get("channel", "CT")),
        series_uid=str(tensor.meta.get("series_uid") or "") or None,
    )
