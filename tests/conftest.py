"""Fixtures for every test: where the real volumes lie, and small anisotropic things to work on."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared` beside the checkout (or $VOLSEG_SHARED): real test volumes that are not ours to publish."""
    folder = Path(os.environ.get("VOLSEG_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real test volumes are not here ({folder}); a newcomer does not need them")
    return folder


@pytest.fixture(scope="session")
def unpacked(shared: Path, tmp_path_factory: pytest.TempPathFactory):
    """Callable: unpack one archive of ../shared/data (path relative to it) once per session, return its folder."""
    done: dict[str, Path] = {}

    def unpack(archive: str) -> Path:
        if archive not in done:
            folder = tmp_path_factory.mktemp("unpacked")
            with tarfile.open(shared / "data" / archive) as tar:
                tar.extractall(folder, filter="data")
            done[archive] = folder
        return done[archive]

    return unpack


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261121)
