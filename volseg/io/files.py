"""Paths at the door: what may be opened, how a name is shown, and which folder name a study gets.

Enters: a path somebody typed. Leaves: a regular, readable, non-empty file or folder, or a refusal in words; and names
that are safe on every disk. Opens no image.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import unicodedata
from pathlib import Path

from volseg.errors import InputError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".zip", ".dcm", ".ima")
LONGEST_NAME = 64
# What a system leaves in a folder that somebody looked at.
LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_UID_LIKE = re.compile(r"^[0-9]+(\.[0-9]+){4,}")
_RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])$", re.IGNORECASE)


def shown(text: object, limit: int = 80) -> str:
    """A name as one printable line: control characters and undecodable bytes escaped, long ones cut in the middle."""
    raw = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in raw)
    return line if len(line) <= limit else f"{line[: limit - 25]}...{line[-20:]}"


def recorded(path: str | os.PathLike[str]) -> str:
    """A whole path, links resolved, as text for a result: another run may start in another folder.

    Bytes that are no UTF-8 stand as \\xfc: Python's own stand-ins for them cannot be written to a file.
    """
    return os.path.realpath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def check_path(path: str | os.PathLike[str]) -> Path:
    """Return an existing, readable file or folder.

    Raises:
        InputError: path-missing, path-unreadable, path-not-a-file (FIFO, device, socket), file-empty.
    """
    p = Path(path)
    try:
        status = p.stat()
    except (OSError, ValueError) as e:
        if isinstance(e, OSError) and e.errno == errno.EACCES:
            raise InputError("path-unreadable", f"{shown(p)}: no permission to look there") from e
        if isinstance(e, OSError) and e.errno == errno.ELOOP:
            raise InputError("path-missing", f"{shown(p)}: the link leads back to itself") from e
        raise InputError("path-missing", f"{shown(p)}: no such file or folder") from e
    if stat.S_ISDIR(status.st_mode):
        if not os.access(p, os.R_OK | os.X_OK):
            raise InputError("path-unreadable", f"{shown(p)}: no permission to read this folder")
        return p
    if not stat.S_ISREG(status.st_mode):
        raise InputError("path-not-a-file", f"{shown(p)}: a pipe, socket or device, not a file; save the image first")
    if not os.access(p, os.R_OK):
        raise InputError("path-unreadable", f"{shown(p)}: no permission to read this file")
    if status.st_size == 0:
        raise InputError("file-empty", f"{shown(p)}: the file holds 0 bytes; copy or export it again")
    return p


def suffix_of(path: Path) -> str:
    """The image suffix in lower case, '.nii.gz' taken as one; '' where it is none we know."""
    name = path.name.lower()
    return next((s for s in IMAGE_SUFFIXES if name.endswith(s)), "")


def stem_of(path: Path) -> str:
    """The file or folder name without its image suffix; '.' and '..' are resolved first.

    What cannot be looked at (a name longer than 255 bytes, say) is taken for a file: opening it says what is wrong.
    """
    name = path.name or path.resolve().name
    if name in (".", ".."):
        name = path.resolve().name
    try:
        is_folder = path.is_dir()
    except OSError:
        is_folder = False
    suffix = "" if is_folder else suffix_of(Path(name))
    return name[: len(name) - len(suffix)] if suffix else name


def safe_name(text: str) -> str:
    """A folder name from any text: ASCII letters, digits, '.', '_', '-'; at most 64 characters; never empty or hidden.

    A text that had to change keeps eight digits of its hash, so that two different texts never share a name.
    A text that looks like a DICOM UID is replaced by its hash alone.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if _UID_LIKE.match(text):
        return f"study-{digest}"
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    plain = re.sub(r"\.{2,}", "_", plain)
    if plain and plain == text and len(plain) <= LONGEST_NAME and not _RESERVED.match(plain.split(".")[0]):
        return plain
    return f"{plain[: LONGEST_NAME - 9] or 'study'}-{digest}"
