"""The sliding window against MONAI's, and what it does differently."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from volseg.inference.slabs import UNSEEN_LOGIT
from volseg.inference.sliding_window import (
    OccupiedSlidingWindowInferer,
    with_occupancy,
)
from volseg.inference.windows import even_starts, plan_windows


class CountingNet(torch.nn.Module):
    """A 3x3x3 convolution to two classes that counts the windows it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution = torch.nn.Conv3d(1, 2, 3, padding=1)
        self.windows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not isinstance(x, MetaTensor), "a MetaTensor in the network is slow"
        self.windows += x.shape[0]
        return self.convolution(x)


@pytest.fixture
def net() -> CountingNet:
    return CountingNet().eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 40, 32, 24)).astype(np.float32))


def test_even_starts_cover_the_axis_and_share_the_rest_evenly():
    assert even_starts(100, 64, 0.5) == [0, 18, 36]
    assert even_starts(64, 64, 0.5) == [0]
    assert even_starts(10, 64, 0.5) == [0]
    assert even_starts(65, 64, 0.0, first=5) == [5, 6]


def test_without_occupancy_it_equals_monais_inferer(net, image):
    # 40 = 16 + 3 * 8, 32 = 16 + 2 * 8, 24 = 16 + 8: MONAI's steps are even here too.
    ours = OccupiedSlidingWindowInferer(16, 3, 0.5)(image, net)
    theirs = SlidingWindowInferer(16, 3, 0.5, mode="gaussian", sigma_scale=0.125)(image, net)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_only_windows_that_hold_occupancy_are_visited_and_their_voxels_are_right(net, image):
    occupancy = torch.zeros_like(image)
    occupancy[0, 0, 30:34, 4:8, 10:14] = 1
    ours = OccupiedSlidingWindowInferer(16, 1, 0.5)(image, net, occupancy=occupancy)
    visited = net.windows
    net.windows = 0
    OccupiedSlidingWindowInferer(16, 1, 0.5, all_windows=True)(image, net, occupancy=occupancy)
    assert visited == 1
    assert net.windows == 4 * 3 * 2
    seen = ours[0, 0] != UNSEEN_LOGIT
    assert int(seen.sum()) == 16**3
    assert seen[30:34, 4:8, 10:14].all()
    assert (ours[0, 1][~seen] == -UNSEEN_LOGIT).all()
    direct = net(image)
    inner = (0, slice(None), slice(30, 34), slice(4, 8), slice(10, 14))
    assert torch.allclose(ours[inner], direct[inner], atol=1e-5)


def test_a_volume_smaller_than_the_window_is_padded_and_cut_back(net):
    small = torch.randn(1, 1, 10, 20, 7)
    assert OccupiedSlidingWindowInferer(16, 1, 0.5)(small, net).shape == (1, 2, 10, 20, 7)


def test_nothing_occupied_is_all_background_not_an_error(net, image):
    out = OccupiedSlidingWindowInferer(16)(image, net, occupancy=torch.zeros_like(image))
    assert torch.softmax(out, 1)[0, 1].max() < 1e-6


def test_batches_of_volumes_are_treated_one_by_one(net, image):
    two = torch.cat([image, image.flip(2)])
    out = OccupiedSlidingWindowInferer(16, 2, 0.5)(two, net)
    alone = OccupiedSlidingWindowInferer(16, 2, 0.5)(two[1:], net)
    assert torch.allclose(out[1:], alone, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_result_does_not_depend_on_the_batch_size(net, image, batch):
    one = OccupiedSlidingWindowInferer(16, 1, 0.6)(image, net)
    assert torch.allclose(OccupiedSlidingWindowInferer(16, batch, 0.6)(image, net), one, atol=1e-5)


def test_every_occupied_voxel_is_seen_wherever_it_lies():
    rng = np.random.default_rng(3)
    for _ in range(30):
        shape = tuple(int(n) for n in rng.integers(16, 50, 3))
        occupancy = np.zeros(shape, bool)
        for _ in range(int(rng.integers(1, 4))):
            occupancy[tuple(int(rng.integers(0, n)) for n in shape)] = True
        plan = plan_windows(shape, (16, 16, 16), 0.5, occupancy)
        seen = np.zeros(shape, bool)
        for x, y, z in plan.corners:
            assert min(x, y, z) >= 0 and x + 16 <= shape[0] and y + 16 <= shape[1] and z + 16 <= shape[2]
            seen[x : x + 16, y : y + 16, z : z + 16] = True
        assert seen[occupancy].all()


def test_meta_and_affine_travel_through(net, image):
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    out = OccupiedSlidingWindowInferer(16)(MetaTensor(image, affine=affine), net)
    assert isinstance(out, MetaTensor)
    assert torch.equal(out.affine, affine)


def test_bfloat16_stays_close_to_float32(net, image):
    full = OccupiedSlidingWindowInferer(16)(image, net)
    half = OccupiedSlidingWindowInferer(16, precision="bfloat16")(image, net)
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05


def test_prepare_batch_hands_the_bone_to_the_inferer(image):
    batch = {"image": image, "label": image, "bone": image > 0}
    x, y, args, kwargs = with_occupancy(batch, "cpu")
    assert x.shape == y.shape and args == () and torch.equal(kwargs["occupancy"], image > 0)
    assert with_occupancy({"image": image}, "cpu")[1:] == (None, (), {})


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1, 2)])
def test_mirrored_windows_make_the_result_mirror_with_the_image(net, image, axes):
    image = image[..., :32, :16]  # whole windows: mirrored starts are the same starts
    inferer = OccupiedSlidingWindowInferer(16, 2, 0.5, mirror_axes=axes)
    dims = [2 + a for a in axes]
    out = inferer(image, net)
    assert net.windows == 2 ** len(axes) * 4 * 3
    assert torch.allclose(inferer(image.flip(dims), net).flip(dims), out, atol=1e-5)
    assert not torch.allclose(OccupiedSlidingWindowInferer(16, 2, 0.5)(image, net), out, atol=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"overlap": 1.0}, {"precision": "int8"}, {"roi_size": (16, 16)}, {"mirror_axes": [3]}]
)
def test_wrong_settings_are_refused_in_words(wrong):
    with pytest.raises(ValueError, match=r"overlap|precision|roi_size|mirror_axes"):
        OccupiedSlidingWindowInferer(**({"roi_size": 16} | wrong))
