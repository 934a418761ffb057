"""The NIfTI header: bytes -> a checked grid, or a refusal. Enters: 348 or 540 bytes. Leaves: `NiftiHeader`.

nibabel parses; what nibabel repairs in silence is checked here (bad_inputs.md, 18-36). Standard: nifti1.h, NIH 2007.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from volseg.errors import InputError
from volseg.geometry import Affine, check_affine, shear, spacing_mm, voxel_to_ras_mm
from volseg.io.voxels import LARGEST_VOXELS

# float128 and the complex and RGB types carry no grey values we could read exactly.
_GREY = {2: "uint8", 4: "int16", 8: "int32", 16: "float32", 64: "float64", 256: "int8", 512: "uint16", 768: "uint32"}
_GREY |= {1024: "int64", 1280: "uint64"}
_OTHER = {32: "complex64", 1792: "complex128", 2048: "complex256", 128: "RGB", 2304: "RGBA", 1536: "float128", 1: "bit"}
HEADER_BYTES = 544


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A grid that can be read: `shape` (X, Y, Z), `dtype` with byte order, `offset` of the first voxel in bytes."""

    shape: tuple[int, int, int]
    affine: Affine
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(head: bytes, where: str) -> NiftiHeader:
    """First bytes of an unpacked .nii -> header.

    Raises:
        InputError: nifti-not-nifti, nifti-header-damaged, nifti-bad-dimensions, nifti-not-3d, nifti-datatype,
            nifti-too-large, nifti-no-orientation, nifti-sform-pixdim, nifti-sform-qform, nifti-scaling,
            single-slice, and those of `check_affine`.
    """
    header = _unpack(head, where)
    shape = _shape([int(d) for d in header["dim"]], where)
    code = int(header["datatype"])
    if code not in _GREY:
        raise InputError(
            "nifti-datatype", f"{where}: voxels are {_OTHER.get(code, f'of unknown type {code}')}, not grey values"
        )
    voxels = math.prod(shape)
    if voxels > LARGEST_VOXELS:
        raise InputError(
            "nifti-too-large", f"{where}: the header claims {shape} = {voxels:,} voxels, over {LARGEST_VOXELS:,}"
        )
    affine, notes = _affine(header, shape, where)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # nifti1.h: no scaling
        slope, intercept = 1.0, 0.0
    elif not math.isfinite(intercept):
        raise InputError("nifti-scaling", f"{where}: scl_slope is {slope:g} but scl_inter is {intercept}")
    offset = float(header["vox_offset"])
    minimum = 352 if int(header["sizeof_hdr"]) == 348 else 544
    if not minimum <= offset <= 1 << 26:
        raise InputError("nifti-header-damaged", f"{where}: voxels are said to start at byte {offset:g}")
    dtype = np.dtype(_GREY[code]).newbyteorder(header.endianness)
    return NiftiHeader(shape, affine, dtype, int(offset), slope, intercept, notes)


def _unpack(head: bytes, where: str) -> Any:
    if len(head) < 348:
        raise InputError("nifti-truncated", f"{where}: {len(head)} bytes, less than a NIfTI header; copy it again")
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    if 348 in sizes and head[344:348] == b"n+1\0":
        kind: Any = nib.Nifti1Header
    elif 540 in sizes and head[4:8] == b"n+2\0":
        kind = nib.Nifti2Header
    elif 348 in sizes and head[344:348] == b"ni1\0":
        raise InputError("nifti-not-nifti", f"{where}: a .hdr/.img pair; convert it to one .nii.gz")
    else:
        what = "a web page" if head.lstrip()[:1] == b"<" else "not a NIfTI image"
        raise InputError("nifti-not-nifti", f"{where}: the content is {what}; download or export it again")
    size = kind.template_dtype.itemsize
    try:
        return kind.from_fileobj(io.BytesIO(head[:size] + bytes(4)), check=False)
    except Exception as e:  # nibabel raises many kinds on a garbled header
        raise InputError("nifti-header-damaged", f"{where}: the header cannot be read ({e})") from e


def _shape(dim: list[int], where: str) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7 or any(d < 1 for d in dim[1 : dim[0] + 1]):
        raise InputError("nifti-bad-dimensions", f"{where}: dimensions {dim} in the header; none may be below 1")
    sizes = dim[1 : dim[0] + 1]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise InputError(
            "nifti-not-3d", f"{where}: {len(sizes)} axes {tuple(sizes)}, not 3; give one three-dimensional image"
        )
    if min(sizes) == 1:
        raise InputError("single-slice", f"{where}: shape {tuple(sizes)} is a single slice; a volume is needed")
    return sizes[0], sizes[1], sizes[2]


def _affine(header: Any, shape: tuple[int, int, int], where: str) -> tuple[Affine, tuple[str, ...]]:
    """The sform where it is set, checked against pixdim and qform; otherwise the qform."""
    s_code, q_code = int(header["sform_code"]), int(header["qform_code"])
    if s_code <= 0 and q_code <= 0:
        raise InputError(
            "nifti-no-orientation",
            f"{where}: sform and qform codes are both 0, so left and right are unknown; export with orientation",
        )
    qform = None
    if q_code > 0:
        try:
            qform = np.asarray(header.get_qform(), dtype=np.float64)
        except Exception as e:
            if s_code <= 0:
                raise InputError("affine-not-finite", f"{where}: the qform cannot be read ({e})") from e
    if s_code <= 0:
        return check_affine(qform if qform is not None else np.full((4, 4), np.nan), where), ()
    sform = check_affine(header.get_sform(), where)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    claimed = spacing_mm(sform)
    if not np.allclose(claimed, pixdim, rtol=0.01, atol=1e-3):
        raise InputError(
            "nifti-sform-pixdim",
            f"{where}: sform says voxels of {np.round(claimed, 4).tolist()} mm, pixdim {np.round(pixdim, 4).tolist()} "
            "mm; one is wrong, so sizes in mm are unknown; export the image again",
        )
    notes: list[str] = []
    if qform is not None and np.isfinite(qform).all() and shear(sform) < 1e-3:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, 8).T
        apart = float(np.linalg.norm(voxel_to_ras_mm(sform, corners) - voxel_to_ras_mm(qform, corners), axis=1).max())
        if apart > max(1.0, float(claimed.max())):
            if s_code == q_code:
                raise InputError(
                    "nifti-sform-qform",
                    f"{where}: sform and qform place a corner {apart:.1f} mm apart under the same code {s_code}",
                )
            notes.append(f"sform (code {s_code}) used; qform (code {q_code}) lies up to {apart:.1f} mm away")
    return sform, tuple(notes)
