"""Ways to enlarge a feature map: DySample and CARAFE against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from volseg.networks.upsampling import UPSAMPLINGS, Carafe, DySample, upsampling


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0))


def zeroed(module: DySample) -> DySample:
    torch.nn.init.zeros_(module.offset.weight)
    return module


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dynamic_scope", [False, True])
def test_dysample_without_offsets_is_bilinear_interpolation(features, scale, dynamic_scope):
    module = zeroed(DySample(8, scale, dynamic_scope=dynamic_scope))
    bilinear = F.interpolate(features, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(features), bilinear, rtol=1e-5, atol=1e-5)


def test_an_offset_of_four_moves_the_sample_by_one_pixel_of_the_input_because_a_quarter_is_taken(features):
    module = zeroed(DySample(8, 2, groups=1))
    with torch.no_grad():
        module.offset.bias[:4] = 4.0  # the first scale * scale entries are x, the last axis
    bilinear = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(features)[..., 1:-3], bilinear[..., 3:-1], rtol=1e-5, atol=1e-5)


def test_each_group_of_channels_moves_by_itself(features):
    module = zeroed(DySample(8, 2, groups=4))
    with torch.no_grad():
        module.offset.bias[8:16] = 1.0
    moved = (module(features) - F.interpolate(features, scale_factor=2, mode="bilinear")).abs().amax((0, 2, 3)) > 1e-3
    assert moved.tolist() == [False, False, True, True, False, False, False, False]


def test_dysamples_gradients_are_right():
    torch.manual_seed(0)
    module = DySample(4, 2, groups=2, dynamic_scope=True).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_dysample_keeps_the_type_of_its_features_in_bfloat16(features):
    module, x = DySample(8, 4), features.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - module(x.float())).abs().max() < 0.02


def test_channels_that_groups_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="cut 6 channels into 4 groups"):
        DySample(6, 2)


def test_carafe_is_the_mean_of_25_neighbours_with_the_weights_it_reads(features):
    torch.manual_seed(0)
    module, scale = Carafe(8, 2), 2
    y = module(features)
    logits = module.encode(module.compress(features)).view(2, 25, scale, scale, 5, 7)
    padded = F.pad(features, (2, 2, 2, 2))
    for row, column in ((0, 0), (3, 8), (9, 13)):
        i, j = row // scale, column // scale
        weights = logits[1, :, row % scale, column % scale, i, j].softmax(0).view(5, 5)
        expected = (weights * padded[1, :, i : i + 5, j : j + 5]).sum((1, 2))
        torch.testing.assert_close(y[1, :, row, column], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", UPSAMPLINGS)
@pytest.mark.parametrize("scale", [2, 4])
def test_every_kind_enlarges_by_its_scale_and_passes_the_gradient_on(features, kind, scale):
    module, x = upsampling(kind, 8, scale), features.clone().requires_grad_()
    y = module(x)
    assert y.shape == (2, 8, scale * 5, scale * 7)
    y.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None for p in module.parameters())


def test_only_nearest_and_bilinear_have_no_weights():
    assert [k for k in UPSAMPLINGS if not list(upsampling(k, 8, 2).parameters())] == ["bilinear", "nearest"]


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown upsampling 'cubic'; choose one of bilinear, nearest, deconv"):
        upsampling("cubic", 8, 2)
