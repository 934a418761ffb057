"""A folder, a zip or one DICOM file -> frames of everything in it. Opens every file once, headers only."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from volseg.errors import InputError
from volseg.io.files import shown
from volseg.io.frames import Frame, looks_like_dicom, read_frames

MOST_FILES = 100_000
ZIP_LARGEST_BYTES = 16 << 30
# DICOM packs 2:1 to 4:1; air-only slices more. Far beyond that a zip is a bomb.
ZIP_LARGEST_RATIO = 200
ZIP_HARMLESS_BYTES = 64 << 20


@dataclass(frozen=True)
class Gathered:
    """Every image plane found, and what was passed over, in words."""

    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


def gather(path: Path) -> Gathered:
    """All DICOM frames under a folder (recursively), or of one file.

    Raises:
        InputError: dicom-none-found, dicom-file-damaged, folder-too-large.
    """
    if path.is_file():
        return Gathered(tuple(read_frames(path)), ())
    frames: list[Frame] = []
    other = outside = objects = 0
    root = path.resolve()
    for n, file in enumerate(_walk(path)):
        if n >= MOST_FILES:
            raise InputError("folder-too-large", f"{shown(path)}: over {MOST_FILES:,} files; give one study's folder")
        try:
            if file.is_symlink() and root not in file.resolve().parents:
                outside += 1
                continue
            if not stat.S_ISREG(file.stat().st_mode):
                other += 1
                continue
            is_dicom = looks_like_dicom(file)
        except PermissionError as e:
            raise InputError("path-unreadable", f"{shown(file)}: no permission to read this file") from e
        except (OSError, RuntimeError):
            other += 1
            continue
        if not is_dicom:
            if file.suffix.lower() == ".dcm":
                raise InputError(
                    "dicom-file-damaged",
                    f"{shown(file)}: named .dcm but not DICOM ({file.stat().st_size} bytes); copy the folder again",
                )
            other += 1
        elif file.name.upper() != "DICOMDIR":
            found = read_frames(file)
            objects += not found
            frames += found
    notes = []
    if other:
        notes.append(f"{other} files are not DICOM and were passed over")
    if outside:
        notes.append(f"{outside} links lead out of the folder and were passed over")
    if objects:
        notes.append(f"{objects} DICOM objects hold no image (structure sets, reports) and were passed over")
    if not frames:
        links = f", {outside} links that lead out of it and are not followed" if outside else ""
        raise InputError(
            "dicom-none-found", f"{shown(path)}: no DICOM image in this folder ({other + objects} other files{links})"
        )
    return Gathered(tuple(frames), tuple(notes))


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            if not name.startswith("._"):  # what macOS leaves beside files on foreign disks
                yield Path(where) / name


@contextlib.contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """Unpack a zip into a temporary folder under numbered names, so that no name in it can lead anywhere.

    Raises:
        InputError: zip-damaged, zip-encrypted, zip-unsafe-path, zip-too-large.
    """
    where = shown(path.name)
    folder = Path(tempfile.mkdtemp(prefix="volseg-"))
    try:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
                _check_members(members, path.stat().st_size, where)
                for n, member in enumerate(members):
                    if PurePosixPath(member.filename).name.startswith("._"):
                        continue
                    target = folder / f"{n:06d}{PurePosixPath(member.filename).suffix[:8].lower()}"
                    with archive.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
            raise InputError("zip-damaged", f"{where}: the zip cannot be read ({shown(e)}); copy it again") from e
        except OSError as e:
            raise InputError("zip-damaged", f"{where}: cannot be unpacked ({e.strerror or shown(e)})") from e
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_members(members: list[zipfile.ZipInfo], packed: int, where: str) -> None:
    total = sum(m.file_size for m in members)
    if len(members) > MOST_FILES or total > ZIP_LARGEST_BYTES:
        raise InputError("zip-too-large", f"{where}: claims {len(members):,} files and {total:,} bytes")
    if total > ZIP_HARMLESS_BYTES and total > packed * ZIP_LARGEST_RATIO:
        raise InputError("zip-too-large", f"{where}: {packed:,} bytes claim {total:,} unpacked; a hostile archive")
    for m in members:
        if m.flag_bits & 1:
            raise InputError("zip-encrypted", f"{where}: the archive has a password; unpack it first")
        parts = PurePosixPath(m.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or (m.external_attr >> 16) & 0o170000 == stat.S_IFLNK:
            raise InputError("zip-unsafe-path", f"{where}: member {shown(m.filename)!r} leads out of the archive")
