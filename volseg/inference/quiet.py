"""Silences what people cannot act on: third parties' notes on optional parts that volseg does not use."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Hide deprecation notes and missing-codec notes of MONAI and friends; their errors stay."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(monai|ignite|torch)\b.*")
    for name in ("monai", "ignite.engine", "numba", "matplotlib", "nibabel"):
        logging.getLogger(name).setLevel(logging.ERROR)
