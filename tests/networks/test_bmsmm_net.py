"""The network after BMSMM-Net: each module by itself, every combination of them, two and three dimensions."""

from __future__ import annotations

import itertools

import pytest
import torch

from volseg.networks.bmsmm_net import BMSMMNet, BottleneckGatingMamba, MultiPerspectiveExtraction, SkipMamba

WIDTHS = (4, 6, 8, 10, 12)
SIZES = {2: (48, 32), 3: (32, 16, 16)}


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


def tiny(**options) -> BMSMMNet:
    return BMSMMNet(1, widths=WIDTHS, **options)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_default_has_the_number_of_parameters_its_docstring_states():
    with torch.device("meta"):
        assert count(BMSMMNet()) == 10_520_546
        assert count(BMSMMNet(mpe=False, bgm=False, skm=False)) == 7_781_058


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("mpe", "bgm", "skm"), itertools.product([False, True], repeat=3))
def test_every_combination_of_modules_is_a_network_that_learns(dims, mpe, bgm, skm):
    network = tiny(spatial_dims=dims, mpe=mpe, bgm=bgm, skm=skm)
    y = network(torch.randn(1, 1, *SIZES[dims]))
    assert y.shape == (1, 2, *SIZES[dims])
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("dims", [2, 3])
def test_a_module_that_is_off_leaves_no_parameters_behind(dims):
    plain = {"mpe": False, "bgm": False, "skm": False}
    base = count(tiny(spatial_dims=dims, **plain))
    added = [count(tiny(spatial_dims=dims, **{**plain, module: True})) - base for module in plain]
    assert min(added) > 0
    assert count(tiny(spatial_dims=dims)) == base + sum(added)


@pytest.mark.parametrize("dims", [2, 3])
def test_extraction_sees_three_places_to_every_side(dims):
    block = MultiPerspectiveExtraction(dims, 3)
    x = torch.zeros(1, 3, *(11,) * dims, requires_grad=True)
    centre = (0, 0, *(5,) * dims)
    sum(view(x)[centre] for view in block.views).backward()
    seen = x.grad[0, 0] != 0
    assert seen.sum() == 7**dims
    assert seen[(slice(2, 9),) * dims].all()


def test_the_perspectives_do_not_mix_channels_before_they_are_fused():
    block = MultiPerspectiveExtraction(2, 3)
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    sum(view(x)[0, 1].sum() for view in block.views).backward()
    assert x.grad[0, 1].abs().sum() > 0
    assert x.grad[0, [0, 2]].abs().sum() == 0


def test_in_the_bottleneck_every_place_learns_of_every_other():
    block = BottleneckGatingMamba(2, 8).double()
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    for place in ((0, 0), (1, 3), (3, 4)):
        (gradient,) = torch.autograd.grad(block(x)[0, :, place[0], place[1]].sum(), x)
        assert (gradient.abs().sum(1) > 0).all(), place


def test_the_bottlenecks_scale_is_what_it_adds():
    block = BottleneckGatingMamba(3, 8)
    x = torch.randn(2, 8, 2, 3, 2)
    added = block(x) - x
    with torch.no_grad():
        block.scale.mul_(2)
    torch.testing.assert_close(block(x) - x, 2 * added, rtol=1e-3, atol=1e-5)
    torch.nn.init.zeros_(block.scale)
    assert torch.equal(block(x), x)


def test_a_new_skip_lets_nearly_everything_through_and_asks_both_sides():
    skip = SkipMamba(2, 16)
    encoder, decoder = (torch.randn(2, 16, 8, 6, requires_grad=True) for _ in range(2))
    y = skip(encoder, decoder)
    assert (y - encoder).abs().max() < 0.1 * encoder.abs().max()
    y.square().sum().backward()
    assert decoder.grad.abs().sum() > 0


def test_a_trained_skip_can_close_or_double_but_no_more():
    skip = SkipMamba(2, 16)
    torch.nn.init.normal_(skip.mamba.out_proj.weight, std=1e3)
    encoder = torch.rand(1, 16, 8, 6) + 1
    gate = skip(encoder, torch.randn(1, 16, 8, 6)) / encoder
    assert gate.min() < 1e-3 and gate.max() > 2 - 1e-3
    assert gate.min() >= 0 and gate.max() <= 2 + 1e-5


def test_a_head_answers_for_its_channel_alone():
    network = tiny(heads=("bone", "lesion"))
    x = torch.randn(1, 1, 32, 32)
    before = network(x)
    torch.nn.init.zeros_(network.heads["lesion"][1].weight)
    after = network(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_the_backends_of_the_scan_give_one_network():
    nets = {backend: tiny(backend=backend).double() for backend in ("numba", "torch", "reference")}
    x = torch.randn(1, 1, 32, 16, dtype=torch.float64)
    gradients = {}
    for backend, net in nets.items():
        net.load_state_dict(nets["reference"].state_dict())
        net(x).square().mean().backward()
        gradients[backend] = torch.cat([p.grad.flatten() for p in net.parameters()])
    for backend in ("numba", "torch"):
        torch.testing.assert_close(gradients[backend], gradients["reference"], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dims", [2, 3])
def test_training_in_bfloat16_gives_finite_gradients_everywhere(dims):
    network = tiny(spatial_dims=dims)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(2, 1, *SIZES[dims]))
    y.float().square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({}, (32, 40), r"multiples of 16, got \(32, 40\); pad to \(32, 48\)"),
        ({}, (16, 16), r"two voxels at its lowest level.*pad an axis to 32"),
        ({}, (32, 32, 32), r"\(batch, channels, X, Y\), got shape"),
        ({"spatial_dims": 3}, (32, 32), r"\(batch, channels, X, Y, Z\), got shape"),
    ],
)
def test_a_size_it_cannot_take_is_refused_with_one_it_can(options, size, words):
    with pytest.raises(ValueError, match=words):
        tiny(**options)(torch.zeros(1, 1, *size))


def test_fewer_stages_ask_for_less():
    assert BMSMMNet(1, widths=(4, 6, 8))(torch.zeros(1, 1, 12, 20)).shape == (1, 2, 12, 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"widths": (8,)}, r"two stages and a head, got widths \(8,\)"),
        ({"heads": ()}, r"heads \(\)"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        BMSMMNet(1, **options)
