"""MONAI's door to our readers: a bundle loads NIfTI, NRRD, DICOM or a folder of sequences as `volseg predict` does.

The only module of this room that imports torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config.type_definitions import DtypeLike, KeysCollection
from monai.data.image_reader import ImageReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.dictionary import LoadImaged
from monai.utils.enums import MetaKeys, SpaceKeys
from monai.utils.misc import ImageMetaKey, ensure_tuple

from volseg.errors import InputError
from volseg.io.cohort_check import same_grid
from volseg.io.files import shown
from volseg.io.mri_study import read_mri_study
from volseg.io.study import read_volume
from volseg.labels import MRI_CHANNELS
from volseg.transforms.metatensor import to_metatensor
from volseg.types import Volume

PathLike = str | os.PathLike


class StrictReader(ImageReader):
    """Paths -> arrays (X, Y, Z) with RAS+ affine, through `volseg.io.study.read_volume`. Label maps stay integers.

    `channel` is what every image has to hold: "CT", say; None for anything.
    """

    def __init__(self, *, series_uid: str | None = None, channel: str | None = None) -> None:
        super().__init__()
        self.series_uid, self.channel = series_uid, channel

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True: whatever cannot be read is refused in words by `read`."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Volume]:
        """Read one path, or several of one grid that become channels.

        Raises InputError: wrong-modality where DICOM says another than `channel`, and those of `read_volume`. NIfTI,
        NRRD and MetaImage have no modality and are taken for CT.
        """
        return [self._read(Path(p)) for p in ensure_tuple(data)]

    def _read(self, path: Path) -> Volume:
        volume = read_volume(path, series_uid=self.series_uid)[0]
        if self.channel is not None and volume.channel != self.channel:
            raise InputError(
                "wrong-modality", f"{shown(path)}: {self.channel} is read here; the study holds {shown(volume.channel)}"
            )
        return volume

    def get_data(self, img: Sequence[Volume]) -> tuple[np.ndarray, dict]:
        """Volumes -> (array, meta); several are stacked on a new first axis."""
        first = img[0]
        for other in img[1:]:
            if other.voxels.shape != first.voxels.shape or not np.allclose(other.affine, first.affine, atol=1e-3):
                raise ValueError("images given together must share one grid (shape and affine)")
        meta = {
            MetaKeys.AFFINE: first.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: first.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(first.voxels.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if len(img) == 1 else 0,
            "channel": first.channel,
            "series_uid": first.series_uid or "",
        }
        return first.voxels if len(img) == 1 else np.stack([v.voxels for v in img]), meta


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class LoadStudyd(LoadImaged):
    """`LoadImaged` that reads through `StrictReader` and never falls back to a reader that repairs in silence.

    Args as in LoadImaged; `ensure_channel_first` is True by default. `channel` is what every image has to hold ("CT",
    say; label maps in NIfTI pass, see `StrictReader`), None for anything. What is loaded together lies on one grid, and
    on that of the case's `label_key` where this was loaded before: each would else be turned by its own affine, and a
    mask saved without one come to lie mirrored. Raises InputError with a reason code; label-grid for other grids.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        dtype: DtypeLike = np.float32,
        ensure_channel_first: bool = True,
        image_only: bool = True,
        series_uid: str | None = None,
        channel: str | None = None,
        label_key: str = "label",
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        self.label_key = label_key
        self.strict = StrictReader(series_uid=series_uid, channel=channel)
        with warnings.catch_warnings(), _quiet("monai.data.nvimgcodec_pydicom_plugin"):  # readers dropped below
            warnings.simplefilter("ignore")
            super().__init__(
                keys,
                reader=None,
                dtype=dtype,
                image_only=image_only,
                ensure_channel_first=ensure_channel_first,
                allow_missing_keys=allow_missing_keys,
                **kwargs,
            )
        self._loader.readers = [self.strict]

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict:
        """Load every key. A reader given here wins, as in LoadImaged."""
        d = super().__call__(data, reader or self.strict)
        keys = dict.fromkeys((*self.key_iterator(d), self.label_key))
        loaded = [(key, d[key]) for key in keys if isinstance(d.get(key), MetaTensor)]
        for key, other in loaded[1:]:
            first, image = loaded[0]
            differs = same_grid(image.shape[1:], image.affine, other.shape[1:], other.affine)
            if differs:
                name = shown(Path(str(other.meta.get(ImageMetaKey.FILENAME_OR_OBJ, ""))).name)
                raise InputError("label-grid", f"{key} {name} does not lie on the grid of its {first}: {differs}")
        return d


class LoadMriStudyd(LoadImaged):
    """A folder of MRI sequences under each of `keys` -> one (1, X, Y, Z) MetaTensor per sequence, under its channel.

    Read by `volseg.io.mri_study.read_mri_study`, each on its own grid; the path leaves. Subclasses LoadImaged because
    MONAI Label and Deploy know loaders by that.

    Args:
        keys: where paths of studies stand.
        channels: what to keep of T1, T1c, T2, STIR.
        reference: see `read_mri_study`.
        allow_other_frame: likewise; for what will be registered.

    Raises InputError: mri-no-channel and those of the reader.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        channels: Sequence[str] = MRI_CHANNELS,
        reference: str | None = None,
        allow_other_frame: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        with warnings.catch_warnings(), _quiet("monai.data.nvimgcodec_pydicom_plugin"):
            warnings.simplefilter("ignore")
            super().__init__(keys, reader=None, image_only=True, allow_missing_keys=allow_missing_keys)
        self.channels, self.reference, self.allow_other_frame = tuple(channels), reference, allow_other_frame

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict:
        """Read every study."""
        d = dict(data)
        for key in self.key_iterator(d):
            path = d.pop(key)
            study = read_mri_study(path, reference=self.reference, allow_other_frame=self.allow_other_frame)
            kept = {c: v for c, v in study.volumes.items() if c in self.channels}
            if not kept:
                found = ", ".join(study.volumes)
                raise InputError(
                    "mri-no-channel", f"{study.name}: holds {found}; {', '.join(self.channels)} are read here"
                )
            d |= {channel: to_metatensor(volume, name=study.name) for channel, volume in kept.items()}
        return d
