"""Fixtures for every test: where the real volumes lie, and small anisotropic things to work on."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from volseg.io import write_nifti

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


@pytest.fixture
def bright_bundle(tmp_path: Path) -> Path:
    """A whole bundle whose network is one multiplication: voxels above 700 HU are lesions.

    It has the shipped bundle's own configs, so the walk under test is the real one; only the network is replaced, by
    a 1x1x1 convolution with known weights. Its answer on any volume can be said without running it.
    """
    import json
    import shutil

    import torch

    root = tmp_path / "bright_segmentation"
    shutil.copytree(REPOSITORY / "bundles" / "bone_ct_segmamba_segmentation" / "configs", root / "configs")
    (root / "models").mkdir()
    path = root / "configs" / "inference.json"
    config = json.loads(path.read_text())
    low, high = config["window_hu"]
    config["network_def"] = {"_target_": "torch.nn.Conv3d", "in_channels": 3, "out_channels": 2, "kernel_size": 1}
    config["inferer"]["roi_size"] = [32, 32, 32]
    config |= {"threshold": 0.6, "seed_threshold": 0.99}  # what is shipped changes with the weights
    path.write_text(json.dumps(config))
    edge = 2 * (700 - low) / (high - low) - 1
    net = torch.nn.Conv3d(3, 2, 1)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[1, 0] = 200.0  # the first channel, which is the wide HU window
        net.bias[:] = torch.tensor([0.0, -200.0 * edge])
    torch.save(net.state_dict(), root / "models" / "model.pt")
    return root


@pytest.fixture
def bone_block() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A shelled bone in soft tissue with one dense lesion on the patient's RIGHT; LPS, 1 x 1.25 x 2 mm.

    Returns (hu int16, affine, lesion bool). The lesion is 10 x 8 x 5 voxels of 900 HU: 1,000 mm3.
    """
    hu = np.full((80, 64, 32), -1000, np.int16)
    hu[6:74, 6:58, :] = 40
    hu[16:64, 14:50, 3:29] = 600
    hu[19:61, 17:47, 5:27] = 150
    lesion = np.zeros(hu.shape, bool)
    lesion[24:34, 24:32, 12:17] = True
    hu[lesion] = 900
    affine = np.diag([-1.0, -1.25, 2.0, 1.0])
    affine[:3, 3] = [40.0, 30.0, -20.0]
    return hu, affine, lesion


@pytest.fixture
def ct(tmp_path: Path, bone_block) -> Path:
    """The bone block as a NIfTI file."""
    hu, affine, _ = bone_block
    path = tmp_path / "in" / "block.nii.gz"
    path.parent.mkdir()
    write_nifti(path, hu, affine, dtype=np.int16)
    return path
