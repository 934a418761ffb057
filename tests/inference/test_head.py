"""Features blended and the head put to them afterwards, against logits blended."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.networks.blocks import UnetOutBlock
from torch import nn

from volseg.inference import slabs, source_grid
from volseg.inference.head import without_head
from volseg.inference.sliding_window import OccupiedSlidingWindowInferer
from volseg.inference.source_grid import SourceGridInferer


class Features(nn.Module):
    """Four features, a rectifier, and a 1x1x1 convolution to `classes` logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
        self.out = UnetOutBlock(3, 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x))


class Softmaxed(Features):
    """Something follows the head: it cannot be moved behind the blending."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(super().forward(x), dim=1)


def a_ct() -> MetaTensor:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 40, 27, 14)).astype(np.float32))
    image = MetaTensor(noise, affine=torch.eye(4, dtype=torch.float64))
    image.meta["original_affine"], image.meta["spatial_shape"] = np.diag([0.7, 0.8, 0.9, 1]), np.array([56, 33, 15])
    return image


@pytest.mark.parametrize("mirrors", [(), (1,)])
@pytest.mark.parametrize("occupied", [True, False])
def test_logits_are_the_same_whether_the_head_comes_before_or_after_blending(mirrors, occupied):
    image, net = a_ct()[None].as_tensor(), Features(5).eval()
    where = torch.zeros(1, 1, *image.shape[2:])
    if occupied:
        where[..., 20:, :, :] = 1
    with torch.no_grad():
        plain = OccupiedSlidingWindowInferer(16, 2, 0.5, mirror_axes=mirrors)(image, net, occupancy=where)
        ours = OccupiedSlidingWindowInferer(16, 2, 0.5, mirror_axes=mirrors, head="out")(image, net, occupancy=where)
    assert torch.allclose(ours, plain, atol=1e-5)
    assert isinstance(net.out, UnetOutBlock)


@pytest.mark.parametrize("classes", [2, 40, 300])
def test_labels_are_the_same_and_no_logits_of_all_classes_exist(monkeypatch, classes):
    monkeypatch.setattr(source_grid, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(slabs, "SLAB_BYTES", 1 << 14)
    image, net = a_ct()[None], Features(classes).eval()
    with torch.no_grad():
        plain = SourceGridInferer(16, 2, 0.5)(image, net)
        ours = SourceGridInferer(16, 2, 0.5, head="out")(image, net)
    assert ours.dtype == (torch.uint8 if classes < 256 else torch.int16)
    assert (ours == plain).float().mean() > 0.9995
    assert len(torch.unique(ours)) > 1


def test_the_sums_do_not_grow_with_the_number_of_classes(monkeypatch):
    channels = []

    class Spy(slabs.SlabSums):
        def __init__(self, count: int, *args, **kwargs) -> None:
            channels.append(count)
            super().__init__(count, *args, **kwargs)

    monkeypatch.setattr("volseg.inference.sliding_window.SlabSums", Spy)
    with torch.no_grad():
        for classes in (2, 120):
            SourceGridInferer(16, 2, 0.5, head="out")(a_ct()[None], Features(classes).eval())
    assert channels == [4, 4]


@pytest.mark.parametrize(
    ("name", "words"),
    [("exit", r"no submodule 'exit'.*out\.conv\.conv"), ("body", "one 1x1x1 convolution"), ("", "no submodule")],
)
def test_a_head_that_is_none_is_refused_in_words(name, words):
    with pytest.raises(ValueError, match=words), without_head(Features(2), name):
        pass


def test_a_network_that_goes_on_after_the_head_is_refused_and_left_whole():
    net = Softmaxed(2).eval()
    with pytest.raises(ValueError, match="not the last step"), torch.no_grad():
        OccupiedSlidingWindowInferer(16, 2, head="out")(a_ct()[None].as_tensor(), net)
    assert isinstance(net.out, UnetOutBlock)


def test_only_a_module_has_a_head():
    with pytest.raises(ValueError, match=r"nn\.Module"):
        OccupiedSlidingWindowInferer(16, head="out")(a_ct()[None].as_tensor(), lambda x: x)
