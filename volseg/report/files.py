"""Whole files or none: a report that was interrupted leaves nothing half-written behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path | str, content: bytes | str) -> Path:
    """Write `content` (text as UTF-8) to `path` by renaming a finished temporary neighbour; makes the folder.

    What is no text in a name that came from a disk (Python's stand-ins for bytes that are no UTF-8) is written \\udcfc.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".volseg-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        as_any_new(temporary, 0o666)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def as_any_new(path: Path, mode: int) -> None:
    """What `tempfile` makes is private to the user; a result gets the rights that any other new file or folder gets."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)
