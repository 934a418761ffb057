"""The way back: a prediction on the working grid -> the grid the study was read on, shape and affine equal to it.

Unlike MONAI's Invertd it does not replay the preprocessing: two affines say everything, so one interpolation suffices
whatever the steps were, and the prediction needs only the image's metadata.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor

from volseg.errors import InputError
from volseg.geometry import Affine
from volseg.transforms.resample import Shape, resample_to_grid

__all__ = ["SCAN", "ToSourceGridd", "clear_padding", "resample_to_grid", "source_grid", "to_source_grid"]

# Metadata key of images whose padding was cut off (`CropPaddingd`): the source voxels that were kept, from and up to
# (without the second) along each axis, (3, 2).
SCAN = "scan"


def source_grid(tensor: MetaTensor) -> tuple[Affine, Shape]:
    """Affine and shape of the grid the image was loaded on, from its metadata.

    Raises InputError if the metadata do not say (`original_affine` and `spatial_shape`, as LoadImaged writes them).
    """
    missing = [k for k in ("original_affine", "spatial_shape") if tensor.meta.get(k) is None]
    if missing:
        raise InputError(
            "no-source-grid",
            f"the tensor's metadata lack {' and '.join(missing)}; load it with volseg or MONAI's LoadImaged, "
            "or name the image as reference_key",
        )
    affine = np.asarray(tensor.meta["original_affine"], dtype=np.float64)
    shape = [int(n) for n in np.asarray(tensor.meta["spatial_shape"]).ravel()]
    if affine.shape != (4, 4) or len(shape) != 3:
        raise InputError("no-source-grid", f"not one 3-D grid: affine {affine.shape}, shape {shape}; decollate first")
    return affine, (shape[0], shape[1], shape[2])


def to_source_grid(tensor: MetaTensor, *, reference: MetaTensor | None = None, mode: str = "linear") -> MetaTensor:
    """A prediction (C, X, Y, Z) on the working grid -> (C, *source shape) with the source's affine.

    Args:
        tensor: the prediction; its affine is the working grid's.
        reference: the preprocessed image, if the prediction did not inherit its metadata; then affine and metadata are
            taken from here, and its shape must be the prediction's.
        mode: "linear" for probabilities (float32 out), "nearest" for masks (dtype kept).

    Raises InputError if the prediction does not fit the reference or the result does not fit the source.
    """
    if reference is not None:
        if tuple(tensor.shape[1:]) != tuple(reference.shape[1:]):
            raise InputError(
                "prediction-shape",
                f"the prediction has {tuple(tensor.shape[1:])} voxels, its image {tuple(reference.shape[1:])}",
            )
        values = tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
        tensor = MetaTensor(values, meta=dict(reference.meta))
    affine, shape = source_grid(tensor)
    out = resample_to_grid(tensor, affine=affine, shape=shape, mode=mode)
    clear_padding(out, tensor)
    # Nothing is left to invert: the trace was the image's.
    out.applied_operations = []
    if tuple(out.shape[1:]) != shape or not np.array_equal(out.affine.cpu().numpy(), affine):
        raise InputError("source-grid-mismatch", f"result {tuple(out.shape[1:])} does not lie on the source {shape}")
    return out


def clear_padding(values: Tensor, image: MetaTensor) -> None:
    """Zero, in place, what of `values` (..., *source shape) lies in the padding that was cut off this image.

    Interpolation carries the border of the working grid on beyond it: a lesion there would run through the padding.
    """
    if image.meta.get(SCAN) is None:
        return
    for axis, (start, stop) in enumerate(np.asarray(image.meta[SCAN]).reshape(3, 2).tolist()):
        along = values.ndim - 3 + axis
        values.narrow(along, 0, start).zero_()
        values.narrow(along, stop, values.shape[along] - stop).zero_()


class ToSourceGridd(MapTransform):
    """Dictionary version of `to_source_grid`; `mode` ("linear", "nearest") may be one per key."""

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str | None = None,
        mode: str | Sequence[str] = "linear",
        *,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.mode = ensure_tuple_rep(mode, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        reference = d[self.reference_key] if self.reference_key is not None else None
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = to_source_grid(d[key], reference=reference, mode=mode)
        return d
