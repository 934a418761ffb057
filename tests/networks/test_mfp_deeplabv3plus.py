"""MFP-DeepLabv3+: the published parameter counts, its blocks against hand-worked cases, every switch."""

from __future__ import annotations

import math

import pytest
import torch

from volseg.networks.mfp_deeplabv3plus import (
    PSCAN,
    STEPS,
    FeatureReconstruction,
    FeatureScreening,
    MFPDeepLabV3Plus,
    PoolingPyramid,
)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("step", "published"),
    [("DeepLabv3+", 5_813_266), ("FSM + FRM", 4_553_554), ("AFPP", 4_882_258), ("AFPP + PSCAN", 5_325_000)],
)
def test_a_step_of_the_ablation_has_the_published_number_of_parameters(step, published):
    with torch.device("meta"):
        assert count(MFPDeepLabV3Plus(3, 2, **STEPS[step])) == published


def test_the_full_network_has_the_number_of_parameters_its_docstring_states_as_ours():
    with torch.device("meta"):
        assert count(MFPDeepLabV3Plus(3, 2, **STEPS["full"])) == 5_370_440
        assert count(MFPDeepLabV3Plus(3, 2, upsample="dysample+")) == 5_415_496


def test_the_blocks_have_the_sizes_the_published_counts_are_made_of():
    assert count(FeatureScreening(320)) == 640
    assert count(FeatureReconstruction(320, 6)) == 301_120
    assert count(PoolingPyramid(320, 256)) == 411_392
    assert count(PSCAN(256)) == 98_630


def test_screening_by_hand_one_pixel_and_two_channels():
    # GroupNorm makes (3, 1) into (1, -1); gammas share alike, so the weights are sigmoid(+-1/2): only channel 0 counts.
    x = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    below = 1 / (1 + math.exp(0.5))
    soft = FeatureScreening(2, groups=1)(x).flatten().tolist()
    hard = FeatureScreening(2, groups=1, hard=True)(x).flatten().tolist()
    assert soft == pytest.approx([3 + below, below], abs=1e-4)
    assert hard == [4.0, 0.0]


def test_a_hard_screen_moves_features_and_loses_none():
    x = torch.randn(2, 32, 6, 5)
    y = FeatureScreening(32, hard=True)(x)
    torch.testing.assert_close(y[:, :16] + y[:, 16:], x[:, :16] + x[:, 16:])
    assert not torch.equal(y, x)


def test_only_the_soft_screen_teaches_its_norm():
    for hard in (False, True):
        screen = FeatureScreening(32, hard=hard)
        screen(torch.randn(1, 32, 4, 4, requires_grad=True)).square().sum().backward()
        assert (screen.norm.weight.grad is None) == hard


def test_reconstruction_lies_between_its_rich_and_its_cheap_path():
    block = FeatureReconstruction(8, 1)
    x = torch.randn(2, 8, 6, 5)
    up, low = block.squeeze_up(x[:, :4]), block.squeeze_low(x[:, 4:])
    rich, cheap = block.rich(up) + block.rich_point(up), torch.cat([block.cheap(low), low], 1)
    share = torch.sigmoid(rich.mean((2, 3)) - cheap.mean((2, 3)))[..., None, None]
    torch.testing.assert_close(block(x), share * rich + (1 - share) * cheap, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 6, 18])
def test_reconstruction_sees_as_far_as_its_dilation(dilation):
    block = FeatureReconstruction(8, dilation)
    x = torch.zeros(1, 8, 1, 41, requires_grad=True)
    up = block.squeeze_up(x[:, :4])
    block.rich(up)[0, 0, 0, 20].backward()
    assert x.grad.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == [20 - dilation, 20, 20 + dilation]


def test_the_pooling_pyramid_reaches_half_its_largest_pool():
    pyramid = PoolingPyramid(4, 8).eval()
    x = torch.zeros(1, 4, 1, 41)
    spiked = x.clone()
    spiked[..., 20] = 100 * torch.randn(4).view(1, 4, 1)
    changed = (pyramid(spiked) - pyramid(x)).abs().amax((0, 1, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(14, 27))


def test_attention_that_has_nothing_to_say_halves_the_features():
    block = PSCAN(8)
    for p in (block.value.weight, block.neighbours[0].weight, block.neighbours[0].bias):
        torch.nn.init.zeros_(p)
    x = torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(block(x), x / 2)


def test_attention_has_a_finite_gradient_where_nothing_varies():
    x = torch.ones(2, 8, 5, 4, requires_grad=True)
    PSCAN(8)(x).sum().backward()
    assert torch.isfinite(x.grad).all()


SWITCHES = {
    **STEPS,
    "no FSM": {"fsm": False},
    "no FRM": {"frm": False},
    "no SPPM": {"sppm": False},
    "no PSCAN": {"pscan": False},
    "no more skips": {"multi_skips": False},
    "other pools": {"pools": (3, 7)},
    **{kind: {"upsample": kind} for kind in ("nearest", "deconv", "carafe", "dysample+")},
}


@pytest.mark.parametrize("switched", SWITCHES)
def test_the_network_works_and_learns_with_every_switch(switched):
    network = MFPDeepLabV3Plus(1, 3, **SWITCHES[switched])
    y = network(torch.randn(2, 1, 32, 48))
    assert y.shape == (2, 3, 32, 48)
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


def test_a_hard_gate_leaves_only_the_norms_of_the_screens_without_gradient():
    network = MFPDeepLabV3Plus(1, 2, hard_gate=True)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {f"pyramid.branches.{i}.0.norm.{kind}" for i in range(3) for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((32, 40), r"multiples of 16, got \(32, 40\); pad to \(32, 48\)"),
        ((0, 16), r"pad to \(16, 16\)"),
    ],
)
def test_a_size_it_cannot_take_is_refused_with_one_it_can(size, words):
    with pytest.raises(ValueError, match=words):
        MFPDeepLabV3Plus(1)(torch.zeros(1, 1, *size))


def test_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"MFPDeepLabV3Plus takes \(batch, channels, X, Y\), got shape"):
        MFPDeepLabV3Plus(1)(torch.zeros(1, 1, 16, 16, 16))


@pytest.mark.parametrize(("options", "size"), [({"sppm": False}, (32, 32)), ({}, (16, 16))])
def test_a_single_image_that_batch_norm_cannot_train_on_is_refused_in_words(options, size):
    network = MFPDeepLabV3Plus(1, **options)
    with pytest.raises(ValueError, match=r"batches of 2 or more \(drop_last=True\)"):
        network(torch.randn(1, 1, *size))
    assert network.eval()(torch.randn(1, 1, *size)).shape == (1, 2, *size)
