"""Ordered DICOM frames -> voxels (X, Y, Z) in HU (or the modality's own unit). The only place where pixels are decoded.

Rescale is applied slice by slice. int16 where exact, otherwise float32. Native pixels are read straight from the file's
bytes; compressed ones go through pydicom's decoders (python-gdcm, BSD).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from volseg.errors import InputError
from volseg.io.files import shown
from volseg.io.frames import Frame, read_dataset
from volseg.io.stack import Stack
from volseg.io.voxels import LARGEST_VOXELS

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_SHORT = np.iinfo(np.int16)


class _TooWideError(Exception):
    """A value that int16 cannot hold."""


def read_voxels(stack: Stack, where: str) -> NDArray:
    """Decode every frame of a stack, in its order: (X, Y, Z), Fortran-ordered, so that a slice is one run of memory.

    Raises:
        InputError: dicom-pixels-damaged (truncated or undecodable, names the file), dicom-pixel-format,
            dicom-too-large.
    """
    if np.prod(stack.shape, dtype=np.float64) > LARGEST_VOXELS:
        raise InputError("dicom-too-large", f"{where}: {stack.shape} is over {LARGEST_VOXELS:,} voxels")
    exact = all(f.slope.is_integer() and f.intercept.is_integer() for f in stack.frames)
    if exact:
        try:
            return _fill(stack, np.dtype(np.int16))
        except _TooWideError:
            pass
    return _fill(stack, np.dtype(np.float32))


def _fill(stack: Stack, kind: np.dtype) -> NDArray:
    columns, rows, count = stack.shape
    out = np.empty((count, rows, columns), dtype=kind)
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(stack.frames):
        by_file.setdefault(frame.path, []).append((k, frame))

    def work(item: tuple[Path, list[tuple[int, Frame]]]) -> None:
        path, wanted = item
        scale, planes = _decode(path, rows, columns)
        if len(planes) <= max(frame.index for _, frame in wanted):
            raise InputError("dicom-pixels-damaged", f"{shown(path.name)}: {len(planes)} frames, fewer than it claims")
        for k, frame in wanted:
            out[k] = scale(planes[frame.index], frame, kind)

    with warnings.catch_warnings():  # one frame for all threads: the filter list is global
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(work, by_file.items()):
                pass
    return out.transpose(2, 1, 0)


def _decode(path: Path, rows: int, columns: int) -> tuple[Callable[[NDArray, Frame, np.dtype], NDArray], NDArray]:
    """Stored values (frames, rows, columns) of one file, and how to scale one of them."""
    ds = read_dataset(path, pixels=True)
    name = shown(path.name)
    try:
        native = str(ds.file_meta.TransferSyntaxUID) in _NATIVE and "PixelData" in ds
        planes = _native(ds, rows, columns) if native and ds.get("BitsAllocated") in (8, 16) else pixel_array(ds)
    except InputError:
        raise
    except Exception as e:  # every decoder has its own kinds
        raise InputError(
            "dicom-pixels-damaged", f"{name}: the pixels cannot be decoded ({shown(e, 160)}); export the series again"
        ) from e
    planes = planes.reshape(-1, *planes.shape[-2:]) if planes.ndim in (2, 3) else planes
    if planes.shape[1:] != (rows, columns):
        raise InputError(
            "dicom-pixel-format", f"{name}: decoded pixels have shape {planes.shape}, not grey {rows}x{columns}"
        )
    if ds.get("ModalityLUTSequence"):
        return lambda plane, frame, kind: _fit(apply_modality_lut(plane, ds), kind), planes
    return _rescale, planes


def _native(ds: Any, rows: int, columns: int) -> NDArray:
    """Uncompressed 8 or 16 bit pixels; bits above BitsStored may hold garbage and are cleared (PS3.5 8.1.1)."""
    allocated, stored = int(ds.BitsAllocated), int(ds.get("BitsStored") or ds.BitsAllocated)
    high = int(ds.get("HighBit", stored - 1))
    if int(ds.get("SamplesPerPixel") or 1) != 1 or not stored <= high + 1 <= allocated:
        raise InputError(
            "dicom-pixel-format", f"{stored} bits stored up to bit {high} of {allocated}, not one grey value per pixel"
        )
    order = ">" if str(ds.file_meta.TransferSyntaxUID).endswith("1.2.2") else "<"
    frames = int(ds.get("NumberOfFrames") or 1)
    count = frames * rows * columns
    need = count * allocated // 8
    if len(ds.PixelData) < need:
        raise ValueError(f"{len(ds.PixelData):,} of {need:,} bytes")
    signed = int(ds.get("PixelRepresentation") or 0) == 1
    raw = np.frombuffer(ds.PixelData, f"{order}{'i' if signed else 'u'}{allocated // 8}", count)
    if not raw.dtype.isnative:
        raw = raw.astype(raw.dtype.newbyteorder("="))
    if stored < allocated:
        raw = np.right_shift(np.left_shift(raw, allocated - 1 - high), allocated - stored)
    return raw.reshape(frames, rows, columns)


def _rescale(plane: NDArray, frame: Frame, kind: np.dtype) -> NDArray:
    if kind.kind == "f":  # float32 throughout, as dcm2niix computes, so that voxels agree to the last bit
        wide = np.dtype(np.float32 if plane.dtype.itemsize <= 2 else np.float64)
        scaled = plane.astype(wide) * wide.type(frame.slope) + wide.type(frame.intercept)
        return np.asarray(scaled).astype(kind, copy=False)
    if plane.dtype.kind == "f":
        raise _TooWideError
    values = plane.astype(np.int64 if plane.dtype.itemsize > 2 else np.int32)
    if frame.slope != 1:
        values = values * int(frame.slope)
    return _fit(values + int(frame.intercept), kind)


def _fit(values: NDArray, kind: np.dtype) -> NDArray:
    if kind.kind == "f":
        return values.astype(kind)
    if values.dtype.kind == "f" or values.min() < _SHORT.min or values.max() > _SHORT.max:
        raise _TooWideError
    return values.astype(kind)
