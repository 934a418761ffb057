"""Resident memory of this process alone."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_mb(field: str = "VmHWM") -> float:
    """The largest (VmHWM) or present (VmRSS) resident set of this program, in MB of 1024 KB.

    Linux's ru_maxrss starts at what the parent held when it forked, so a small program begun by a large one reports
    the large one's; VmHWM belongs to this program's own memory. Where there is no /proc, ru_maxrss it is.
    """
    if not STATUS.is_file():
        kb = 1 / 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kb / 1024
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def peak_gb() -> float:
    """Largest resident set since this program began, in GB of 1000 MB."""
    return resident_mb() * 1.024**2 / 1000
