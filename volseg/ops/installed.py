"""Which optional packages are really there."""

from __future__ import annotations

import functools
import importlib
import importlib.util


@functools.cache
def installed(package: str) -> bool:
    """Whether `package` really imports: mamba_ssm can be present and still lack its compiled extension."""
    if importlib.util.find_spec(package) is None:
        return False
    try:
        importlib.import_module("mamba_ssm.ops.selective_scan_interface" if package == "mamba_ssm" else package)
    except ImportError:
        return False
    return True
