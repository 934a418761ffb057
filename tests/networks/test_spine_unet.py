"""The spinal-MRI U-Net: three input dimensions, any subset of channels, any of them missing."""

from __future__ import annotations

import itertools

import pytest
import torch

from volseg.labels import MRI_CHANNELS
from volseg.networks import SpineUNet

WIDTHS = (4, 6, 8, 10)
DIMENSIONS = (2, 2.5, 3)


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


def tiny(channels=("T1", "STIR"), **options) -> SpineUNet:
    return SpineUNet(channels, 2, widths=WIDTHS, **options)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_defaults_have_the_number_of_parameters_the_docstring_states():
    assert count(SpineUNet()) == 5_608_610
    assert count(SpineUNet(spatial_dims=2)) == 1_929_890
    assert count(SpineUNet(spatial_dims=2.5)) == 1_934_498


SWITCHES = {
    "as it is": {},
    "no presence planes": {"presence": False},
    "no channel dropout": {"channel_dropout": 0.0},
    "no dropout": {"dropout": 0.0},
    "instance norm": {"norm": "instance"},
    "axial slices": {"slice_axis": 2},
    "one neighbour": {"context": 1},
    "thick slices": {"slice_pools": 1},
}


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("switched", SWITCHES)
def test_the_network_works_and_learns_with_every_switch(dimension, switched):
    network = tiny(spatial_dims=dimension, **SWITCHES[switched])
    y = network(torch.randn(2, 2, 16, 24, 8))
    assert y.shape == (2, 2, 16, 24, 8)
    y.square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize(
    "channels", [c for n in range(1, 5) for c in itertools.combinations(MRI_CHANNELS, n)], ids="+".join
)
def test_every_subset_of_channels_makes_a_network(channels):
    y = tiny(channels, spatial_dims=2)(torch.randn(1, len(channels), 2, 16, 8))
    assert y.shape == (1, 2, 2, 16, 8)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1)])
def test_any_channel_may_be_missing(dimension, missing):
    network = tiny(spatial_dims=dimension).eval()
    x = torch.randn(1, 2, 16, 16, 8)
    whole = network(x)
    x[:, missing] = 0
    assert torch.isfinite(network(x)).all()
    assert not torch.allclose(network(x), whole)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_missing_channel_is_not_the_same_as_one_of_mean_intensity(dimension):
    network = tiny(spatial_dims=dimension).eval()
    missing, flat = torch.randn(2, 1, 2, 8, 16, 16).unbind()
    missing[:, 1], flat = 0, missing.clone()
    flat[:, 1] = 0
    flat[:, 1, 0, 0, 0] = 1e-30  # there, and zero to every convolution
    assert (network(missing) - network(flat)).abs().max() > 1e-4
    without = tiny(spatial_dims=dimension, presence=False).eval()
    torch.testing.assert_close(without(missing), without(flat))


def test_training_practises_missing_channels_and_evaluation_does_not():
    network = tiny(channel_dropout=0.5, dropout=0.0, spatial_dims=2)
    x = torch.randn(1, 2, 4, 8, 8)
    assert len({network(x).sum().item() for _ in range(20)}) > 1
    network.eval()
    assert len({network(x).sum().item() for _ in range(5)}) == 1


@pytest.mark.parametrize(("dimension", "context", "reach"), [(2, 2, 0), ("2.5", 1, 1), (2.5, 3, 3)])
def test_a_slice_is_read_with_as_many_neighbours_as_asked_for(dimension, context, reach):
    network = tiny(spatial_dims=dimension, context=context).eval()
    x = torch.randn(1, 2, 11, 8, 8)
    other = x.clone()
    other[:, :, 5] += 1
    changed = (network(x) - network(other)).abs().amax((0, 1, 3, 4)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(5 - reach, 6 + reach))


def test_slices_are_taken_across_the_axis_asked_for():
    network, turned = tiny(spatial_dims=2.5).eval(), tiny(spatial_dims=2.5, slice_axis=2).eval()
    turned.load_state_dict(network.state_dict())
    x = torch.randn(1, 2, 5, 8, 16)
    y = turned(x.movedim(2, 4))
    torch.testing.assert_close(y, network(x).movedim(2, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("slice_pools", "least"), [(0, 1), (1, 2), (2, 4), (3, 8)])
def test_thick_slices_are_halved_as_often_as_asked_for(slice_pools, least):
    network = tiny(slice_pools=slice_pools).eval()
    assert network(torch.randn(1, 2, 3 * least, 8, 16)).shape == (1, 2, 3 * least, 8, 16)
    if least > 1:
        with pytest.raises(
            ValueError, match=rf"multiples of .*got \({least + 1}, 8, 16\); pad to \({2 * least}, 8, 16"
        ):
            network(torch.randn(1, 2, least + 1, 8, 16))


def test_a_single_slice_too_small_for_batch_norm_is_refused_in_training_only():
    network = tiny(spatial_dims=2)
    with pytest.raises(ValueError, match=r"two voxels at its lowest level, \(1, 8, 8\) leaves one"):
        network(torch.randn(1, 2, 1, 8, 8))
    assert network.eval()(torch.randn(1, 2, 1, 8, 8)).shape == (1, 2, 1, 8, 8)


def test_training_in_bfloat16_gives_finite_gradients_everywhere():
    network = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(2, 2, 16, 16, 8))
    y.float().square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2, 2.5 or 3, got 4"),
        ({"slice_pools": 4}, "slice_pools of 0 to 3"),
        ({"slice_axis": -1}, "a slice_axis of 0, 1 or 2"),
        ({"context": 0}, "a context of 1 or more"),
        ({"channels": ("T1", "PD")}, "channels must be some of T1, T1c, T2, STIR"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        tiny(**options)
