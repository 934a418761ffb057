"""NRRD, MHA and MHD through SimpleITK: header checked first, then the voxels. LPS becomes RAS once, here."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from volseg.errors import InputError
from volseg.geometry import Affine, check_affine, lps_to_ras
from volseg.io.files import check_path, shown, suffix_of
from volseg.io.itk_header import NRRD_SUFFIXES, TextHeader, check_compressed, read_text_header
from volseg.io.voxels import LARGEST_VOXELS, check_finite, compact
from volseg.types import Volume

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
_DEFLATE_LIMIT = 1032


@dataclass(frozen=True, eq=False)
class ItkHeader:
    """`shape` (X, Y, Z), affine voxel -> RAS+ mm, pixel type in ITK's words."""

    shape: tuple[int, int, int]
    affine: Affine
    pixel_type: str


def _open(path: Path, where: str) -> tuple[SimpleITK.ImageFileReader, ItkHeader, TextHeader]:
    text = read_text_header(path, where)
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if suffix_of(path) in NRRD_SUFFIXES else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as e:
        raise InputError("itk-damaged", f"{where}: the header cannot be read; export it again") from e
    size = [int(n) for n in reader.GetSize()]
    if len(size) != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError(
            "itk-not-3d",
            f"{where}: {len(size)} axes with {reader.GetNumberOfComponents()} values per voxel; "
            "give one three-dimensional grey image",
        )
    if min(size) <= 1:
        raise InputError("single-slice", f"{where}: shape {tuple(size)} is a single slice; a volume is needed")
    files = sum(f.stat().st_size for f in path.parent.glob(f"{_glob_escape(path.stem)}.*") if f.is_file())
    if np.prod(size, dtype=np.float64) > min(LARGEST_VOXELS, max(files, path.stat().st_size) * _DEFLATE_LIMIT):
        raise InputError("itk-size-implausible", f"{where}: the header claims {tuple(size)} voxels; a damaged file")
    pixel_type = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel_type or "vector" in pixel_type or "label" in pixel_type:
        raise InputError("itk-not-3d", f"{where}: voxels are {pixel_type}, not grey values")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.asarray(reader.GetSpacing())
    lps[:3, 3] = reader.GetOrigin()
    affine = check_affine(lps_to_ras(lps), where)
    return reader, ItkHeader((size[0], size[1], size[2]), affine, pixel_type), text


def _glob_escape(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def read_itk_header(path: str | os.PathLike[str]) -> ItkHeader:
    """Header only."""
    p = check_path(path)
    return _open(p, shown(p.name))[1]


def read_itk(path: str | os.PathLike[str], *, channel: str = "CT") -> tuple[Volume, tuple[str, ...]]:
    """Read one NRRD, MHA or MHD image. Returns (Volume, notes).

    Raises:
        InputError: itk-damaged, itk-not-3d, itk-no-orientation, itk-no-spacing, itk-data-file-outside,
            itk-size-implausible, single-slice, voxels-not-finite, and those of `check_path` and `check_affine`.
    """
    p = check_path(path)
    where = shown(p.name)
    reader, header, text = _open(p, where)
    bits = int(header.pixel_type.split("-")[0])  # "16-bit signed integer"
    check_compressed(p, text, math.prod(header.shape) * bits // 8, where)
    try:
        stored = SimpleITK.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except RuntimeError as e:
        raise InputError("itk-damaged", f"{where}: the voxels cannot be read to the end; copy the file again") from e
    check_finite(stored, where)
    return Volume(voxels=compact(stored), affine=header.affine, channel=channel), ()
