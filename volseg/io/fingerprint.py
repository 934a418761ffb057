"""Does the same study still lie at a path? Enters: paths. Leaves: one fingerprint of what lies there. Decodes nothing.

By content, not by date. A study that is copied or restored has other dates and is the same; an archive of another
patient, unpacked in its place, may have the same names, sizes and dates (IM000 ..., 512 x 512, dates of the archive).
Pieces of 4 kB tell them apart: a DICOM file begins with its SOPInstanceUID, a .gz ends with the checksum of all its
voxels, a zip lists those of its members. Of an uncompressed volume a change between the pieces is not seen.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from volseg.errors import InputError
from volseg.io.files import shown, suffix_of
from volseg.io.gather import MOST_FILES, leads_out, walk
from volseg.io.itk_header import read_text_header

PIECE_BYTES = 4096
_BYTES_A_PIECE = 4 << 20
_MOST_PIECES = 64


def fingerprint(*paths: str | os.PathLike[str]) -> str:
    """SHA-256 of names, sizes and pieces of all files at some paths, as hex; in a folder its own name does not count.

    "" where a path cannot be looked at to the end: whoever reads it says why.
    """
    digest = hashlib.sha256()
    try:
        for path in map(Path, paths):
            digest.update(b"path\n")
            for line in sorted(_folder(path) if path.is_dir() else _file(path)):
                digest.update(line)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, InputError):
        return ""
    return digest.hexdigest()


def _folder(folder: Path) -> Iterator[bytes]:
    root = folder.resolve()
    for n, file in enumerate(walk(folder)):
        if n >= MOST_FILES:
            raise InputError("folder-too-large", f"{shown(folder)}: over {MOST_FILES:,} files; give one study's folder")
        if _is_read(file, root):
            yield _line(file.relative_to(folder).as_posix(), file)


def _file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as f:
        zipped = f.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                yield f"{member.filename!a} {member.file_size} {member.CRC}\n".encode()
        return
    yield _line("", path)
    if suffix_of(path) in (".mhd", ".nhdr"):  # the voxels lie in a file of their own
        fields = read_text_header(path, shown(path.name)).fields
        name = fields.get("ElementDataFile") or fields.get("datafile") or "LOCAL"
        if name.upper() != "LOCAL":
            yield _line(name, path.with_name(name))


def _is_read(file: Path, root: Path) -> bool:
    """Whether it is what a reader opens: no pipe, no link out of the folder, to nothing or to itself."""
    try:
        return not (file.is_symlink() and leads_out(file, root)) and stat.S_ISREG(file.stat().st_mode)
    except (FileNotFoundError, RuntimeError):
        return False


def _line(name: str, file: Path) -> bytes:
    with file.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        pieces = hashlib.sha256()
        count = min(_MOST_PIECES, 2 + size // _BYTES_A_PIECE)
        for k in range(count):
            f.seek(max(0, size - PIECE_BYTES) * k // (count - 1))
            pieces.update(f.read(PIECE_BYTES))
    return f"{name!a} {size} {pieces.hexdigest()}\n".encode()
