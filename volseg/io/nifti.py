"""NIfTI at both doors. In: a .nii or .nii.gz read to its last byte, checksum verified. Out: one atomic file.

nibabel's lazy reading never reaches the gzip checksum (measured: a flipped byte loads), so the stream is unpacked here.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from volseg.errors import InputError
from volseg.geometry import check_affine, shear
from volseg.io.files import check_path, shown, suffix_of
from volseg.io.nifti_header import HEADER_BYTES, NiftiHeader, parse_header
from volseg.io.voxels import check_finite, compact
from volseg.types import Volume

GZIP_MAGIC = b"\x1f\x8b"
# deflate cannot pack tighter than 1032:1; real masks reach 500:1 only while they are small.
_DEFLATE_LIMIT = 1032
_BOMB_RATIO, _BOMB_BYTES = 300, 1 << 29
_TRAILING_BYTES = 1 << 24
_WRITABLE = ("uint8", "uint16", "int16", "float32")


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a .nii or .nii.gz; every way a gzip stream can be broken becomes one refusal."""
    where = shown(path.name)
    packed = suffix_of(path) == ".nii.gz"
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if is_gzip and not packed:
                raise InputError("nifti-is-gzip", f"{where}: the content is gzip; name it {where}.gz")
            if packed and not is_gzip:
                head = raw.read(512).lstrip()
                what = "a web page" if head[:1] == b"<" else "not gzip"
                raise InputError("nifti-not-gzip", f"{where}: the content is {what}; download or export it again")
            if packed:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield raw
    except EOFError as e:
        raise InputError("gzip-truncated", f"{where}: the gzip stream ends too early; copy the file again") from e
    except (gzip.BadGzipFile, zlib.error) as e:
        raise InputError("gzip-damaged", f"{where}: the gzip checksum fails ({e}); copy the file again") from e
    except OSError as e:
        raise InputError("path-unreadable", f"{where}: {e.strerror or e}") from e


def read_nifti_header(path: str | os.PathLike[str]) -> NiftiHeader:
    """Header only: grid, type and notes, without reading voxels."""
    p = check_path(path)
    with _stream(p) as stream:
        return _checked_header(stream, p)[0]


def _checked_header(stream: IO[bytes], path: Path) -> tuple[NiftiHeader, bytes]:
    where = shown(path.name)
    head = stream.read(HEADER_BYTES)
    header = parse_header(head, where)
    on_disk, claimed = path.stat().st_size, header.offset + header.data_bytes
    if suffix_of(path) == ".nii.gz":
        if claimed > on_disk * _DEFLATE_LIMIT or (claimed > _BOMB_BYTES and claimed > on_disk * _BOMB_RATIO):
            raise InputError(
                "nifti-size-implausible",
                f"{where}: {header.shape} needs {claimed:,} bytes, the file has {on_disk:,}; a damaged or hostile file",
            )
    elif claimed > on_disk:
        raise InputError(
            "nifti-truncated", f"{where}: {header.shape} needs {claimed:,} bytes, the file has {on_disk:,}"
        )
    return header, head


def read_nifti(path: str | os.PathLike[str], *, channel: str = "CT") -> tuple[Volume, tuple[str, ...]]:
    """Read one image to its last byte. Returns (Volume, notes); integers stay integers.

    Raises:
        InputError: those of `check_path` and `parse_header`; nifti-is-gzip, nifti-not-gzip, gzip-truncated,
            gzip-damaged, nifti-truncated, nifti-trailing-bytes, nifti-size-implausible, voxels-not-finite.
    """
    p = check_path(path)
    where = shown(p.name)
    with _stream(p) as stream:
        header, head = _checked_header(stream, p)
        size = header.offset + header.data_bytes
        buffer = np.empty(size, dtype=np.uint8)
        view = memoryview(cast(Any, buffer))
        filled = min(len(head), size)
        view[:filled] = head[:filled]
        while filled < size:
            n = cast(int, stream.readinto(view[filled:]))  # type: ignore[attr-defined]
            if not n:
                raise InputError(
                    "nifti-truncated", f"{where}: voxels end after {filled:,} of {size:,} bytes; copy the file again"
                )
            filled += n
        trailing = len(head) - min(len(head), size)
        while block := stream.read(1 << 20):  # to the end: only there is the checksum compared
            trailing += len(block)
            if trailing > _TRAILING_BYTES:
                raise InputError(
                    "nifti-trailing-bytes", f"{where}: more than {_TRAILING_BYTES:,} bytes after the image"
                )
    stored = np.frombuffer(buffer, header.dtype, offset=header.offset).reshape(header.shape, order="F")
    if not header.dtype.isnative:
        stored = stored.astype(header.dtype.newbyteorder("="), order="K")
    check_finite(stored, where)
    voxels = compact(stored, header.slope, header.intercept)
    return Volume(voxels=voxels, affine=header.affine, channel=channel), header.notes


def write_nifti(path: str | os.PathLike[str], voxels: NDArray, affine: ArrayLike, *, dtype: DTypeLike) -> Path:
    """Write (X, Y, Z) voxels as .nii or .nii.gz: all of it or nothing. Same voxels and affine give the same bytes.

    `dtype` is uint8, uint16, int16 or float32. sform and qform carry code 1; a sheared grid has no qform, which cannot
    hold shear.

    Raises:
        ValueError: a value does not fit `dtype`, or voxels are not three-dimensional.
        InputError: write-failed (no folder, no permission, disk full); nothing partial stays.
    """
    target = Path(path)
    kind = np.dtype(dtype)
    if kind.name not in _WRITABLE:
        raise ValueError(f"dtype {kind.name} is none of {', '.join(_WRITABLE)}")
    if voxels.ndim != 3:
        raise ValueError(f"a volume has three axes, not {voxels.ndim}")
    if kind.kind in "iu" and voxels.size and voxels.dtype != kind:
        low, high = voxels.min(), voxels.max()
        limits = np.iinfo(kind)
        if not (limits.min <= low and high <= limits.max):
            raise ValueError(f"values {low}..{high} do not fit {kind.name}")
        if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels)):
            raise ValueError(f"fractional values do not fit {kind.name}")
    matrix = check_affine(affine, shown(target.name))
    image = nib.Nifti1Image(np.asarray(voxels).astype(kind, copy=False), matrix)
    image.set_sform(matrix, code=1)
    if shear(matrix) < 1e-4:
        image.set_qform(matrix, code=1)
    else:
        image.set_qform(matrix, code=0, strip_shears=True)
    image.header.set_xyzt_units("mm")
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=".volseg-", suffix=".part", dir=target.parent)
        with os.fdopen(handle, "wb") as raw:
            if target.name.lower().endswith(".gz"):
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                    image.to_stream(packed)
            else:
                image.to_stream(raw)
            raw.flush()
            os.fsync(raw.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except OSError as e:
        raise InputError(
            "write-failed", f"{shown(target)}: {e.strerror or e}; nothing was written; free space or choose a folder"
        ) from e
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return target
