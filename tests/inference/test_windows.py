"""Where windows lie, and which can be left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval

from volseg.inference.sliding_window import OccupiedSlidingWindowInferer
from volseg.inference.windows import gaussian_importance, monai_starts, plan_windows

ROI = (16, 16, 16)


class ByWindow(torch.nn.Module):
    """A network that normalises over its window, as instance norm does: what it says depends on where windows lie."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x - x.mean((2, 3, 4), keepdim=True)) / x.std((2, 3, 4), keepdim=True)
        return torch.cat([y, -y], dim=1)


def a_corner_of_bone(shape: tuple[int, ...]) -> np.ndarray:
    occupancy = np.zeros(shape, bool)
    occupancy[8:20, 3:9, 10:30] = True
    return occupancy


def weight_left(shape, corners, visited) -> np.ndarray:
    """Share of the blended weight that the visited windows have at each voxel."""
    weight = gaussian_importance(ROI).numpy()
    sums = []
    for some in (visited, corners):
        total = np.zeros(shape, np.float32)
        for x, y, z in some:
            total[x : x + 16, y : y + 16, z : z + 16] += weight
        sums.append(total)
    return sums[0] / np.maximum(sums[1], 1e-12)


@pytest.mark.parametrize("length", [16, 17, 31, 32, 39, 40, 41, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_monai_starts_are_monais(length, overlap):
    shape = (length, 16, 16)
    interval = _get_scan_interval(shape, ROI, 3, (overlap,) * 3)
    theirs = [s[0].start for s in dense_patch_slices(shape, ROI, interval)]
    assert monai_starts(length, 16, overlap) == theirs


@pytest.mark.parametrize("size", [(45, 37, 29), (45, 12, 29)])
def test_at_monais_places_every_occupied_voxel_gets_what_monai_gives_it(size):
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    occupancy = a_corner_of_bone(size)
    # Beyond its border MONAI pads with what we pad with, so that small volumes agree too.
    theirs = SlidingWindowInferer(16, 2, 0.5, mode="gaussian", cval=-1.0)(image, ByWindow())
    ours = OccupiedSlidingWindowInferer(16, 2, 0.5, layout="monai")(
        image, ByWindow(), occupancy=torch.from_numpy(occupancy)[None, None]
    )
    even = OccupiedSlidingWindowInferer(16, 2, 0.5)(
        image, ByWindow(), occupancy=torch.from_numpy(occupancy)[None, None]
    )
    assert torch.allclose(ours[0, :, occupancy], theirs[0, :, occupancy], atol=1e-5)
    assert not torch.allclose(even[0, :, occupancy], theirs[0, :, occupancy], atol=1e-2)
    everywhere = OccupiedSlidingWindowInferer(16, 2, 0.5, layout="monai")(image, ByWindow())
    assert torch.allclose(everywhere, theirs, atol=1e-5)


@pytest.mark.parametrize("layout", ["even", "monai"])
@pytest.mark.parametrize("spare", [0.02, 0.1, 0.4])
def test_windows_left_out_take_no_more_weight_than_bone_can_spare(layout, spare):
    rng = np.random.default_rng(5)
    fewer = 0
    for _ in range(10):
        shape = tuple(int(n) for n in rng.integers(20, 60, 3))
        occupancy = np.zeros(shape, bool)
        for _ in range(3):
            x, y, z = (int(rng.integers(0, n)) for n in shape)
            occupancy[x : x + 6, y : y + 3, z : z + 9] = True
        weight = gaussian_importance(ROI).numpy()
        full = plan_windows(shape, ROI, 0.5, occupancy, layout=layout)
        plan = plan_windows(shape, ROI, 0.5, occupancy, layout=layout, spare=spare, weight=weight)
        assert set(plan.corners) <= set(full.corners)
        assert list(plan.corners) == sorted(plan.corners)
        left = weight_left(shape, full.corners, plan.corners)
        assert left[occupancy].min() >= 1 - spare - 1e-5
        fewer += len(full.corners) - len(plan.corners)
    assert fewer > 0 or spare < 0.1


def test_nothing_to_spare_leaves_nothing_out():
    occupancy = a_corner_of_bone((40, 40, 40))
    weight = gaussian_importance(ROI).numpy()
    assert plan_windows((40,) * 3, ROI, 0.5, occupancy, weight=weight) == plan_windows((40,) * 3, ROI, 0.5, occupancy)


@pytest.mark.parametrize("wrong", [{"layout": "odd"}, {"spare": 1.0}, {"spare": -0.1}])
def test_wrong_settings_are_refused_in_words(wrong):
    with pytest.raises(ValueError, match=r"layout|spare"):
        OccupiedSlidingWindowInferer(16, **wrong)
