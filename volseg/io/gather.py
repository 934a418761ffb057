"""A folder, a zip or one DICOM file -> frames of everything in it. Opens every file once, headers only."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from volseg.errors import InputError
from volseg.io.files import LITTER, shown
from volseg.io.frames import Frame, is_dicomdir, looks_like_dicom, named_dicomdir, read_frames

MOST_FILES = 100_000
ZIP_LARGEST_BYTES = 16 << 30
# DICOM packs 2:1 to 4:1; air-only slices more. Far beyond that a zip is a bomb.
ZIP_LARGEST_RATIO = 200
ZIP_HARMLESS_BYTES = 64 << 20
_SUFFIX = re.compile(r"\.[a-z0-9]{1,7}")


@dataclass(frozen=True)
class Gathered:
    """Every image plane found, and what was passed over, in words."""

    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


def gather(path: Path) -> Gathered:
    """All DICOM frames under a folder (recursively), or of one file.

    Raises:
        InputError: dicom-none-found, dicom-file-damaged, path-unreadable, folder-too-large.
    """
    if path.is_file():
        found = read_frames(path)
        if not found and is_dicomdir(path):
            raise InputError(
                "dicom-none-found", f"{shown(path.name)}: an index of DICOM files, no image; give the folder it lies in"
            )
        return Gathered(tuple(found), ())
    frames: list[Frame] = []
    other = outside = inside = objects = 0
    root = path.resolve()
    for n, file in enumerate(walk(path)):
        if n >= MOST_FILES:
            raise InputError("folder-too-large", f"{shown(path)}: over {MOST_FILES:,} files; give one study's folder")
        try:
            linked = file.is_symlink()
            if linked and leads_out(file, root):
                outside += 1
                continue
            if linked and file.is_dir():
                inside += 1
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
        elif not named_dicomdir(file):
            found = read_frames(file)
            objects += not found
            frames += found
    notes = []
    if other:
        notes.append(f"{other} files are not DICOM and were passed over")
    if outside:
        notes.append(f"{outside} links lead out of the folder and were passed over")
    if inside:
        notes.append(f"{inside} links to folders inside were not followed: their files are read where they lie")
    if objects:
        notes.append(f"{objects} DICOM objects hold no image (structure sets, reports) and were passed over")
    if not frames:
        links = f", {outside} links that lead out of it and are not followed" if outside else ""
        raise InputError(
            "dicom-none-found", f"{shown(path)}: no DICOM image in this folder ({other + objects} other files{links})"
        )
    return Gathered(tuple(frames), tuple(notes))


def walk(folder: Path) -> Iterator[Path]:
    """Every file under a folder and every link, those to folders too; none of them is followed.

    Raises:
        InputError: path-unreadable where a folder inside cannot be listed: half a body would be searched.
    """
    for where, folders, files in os.walk(folder, followlinks=False, onerror=_refuse_unlisted):
        folders.sort()
        linked = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in sorted([*files, *linked]):
            if not name.startswith("._") and name not in LITTER:  # macOS leaves ._NAME beside files on foreign disks
                yield Path(where) / name


def _refuse_unlisted(error: OSError) -> None:
    where, why = shown(error.filename), error.strerror or shown(error)
    raise InputError("path-unreadable", f"{where}: this folder cannot be listed ({why}); change its rights") from error


def leads_out(link: Path, root: Path) -> bool:
    """Whether a link leads out of the resolved folder `root`."""
    target = link.resolve()
    return root not in (target, *target.parents)


@contextlib.contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """Unpack a zip into a temporary folder under numbered names, so that no name in it can lead anywhere.

    What is refused while the folder is in use names the zip and its member: the number says nothing to anyone.

    Raises:
        InputError: zip-damaged, zip-encrypted, zip-unsafe-path, zip-too-large.
    """
    where = shown(path.name)
    folder = Path(tempfile.mkdtemp(prefix="volseg-"))
    names: list[str] = []
    try:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
                _check_members(members, path.stat().st_size, where)
                names = [m.filename for m in members]
                for n, member in enumerate(members):
                    if PurePosixPath(member.filename).name.startswith("._"):
                        continue
                    suffix = PurePosixPath(member.filename).suffix.lower()
                    target = folder / f"member{n:06d}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
                    with archive.open(member) as source, target.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as e:
            raise InputError("zip-damaged", f"{where}: the zip cannot be read ({shown(e)}); copy it again") from e
        except OSError as e:
            raise InputError("zip-damaged", f"{where}: cannot be unpacked ({e.strerror or shown(e)})") from e
        try:
            yield folder
        except InputError as e:
            raise InputError(e.code, _in_zip_words(e.message, folder, where, names)) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_zip_words(message: str, folder: Path, where: str, names: list[str]) -> str:
    """A refusal that speaks of the temporary folder and its numbered files, with the zip's and its members' names."""

    def named(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"{where}: {shown(names[number])}" if number < len(names) else found[0]

    told = re.sub(r"(?:\S*/)?\bmember(\d{6})\b(?:\.[a-z0-9]{1,7}\b)?", named, message.replace(f"{folder}/", ""))
    return told.replace(shown(folder), where)


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
