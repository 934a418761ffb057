"""Volumes cut into slices and stacked again, for networks that know slices only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.networks import SliceWise
from volseg.networks.slicewise import from_slices, to_slices, with_context


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_stacked_again_are_the_volume(volume, axis):
    slices = to_slices(volume, axis)
    assert slices.shape[0] == 2 * volume.shape[2 + axis]
    assert torch.equal(from_slices(slices, axis, 2), volume)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_the_slice_of_that_place(volume, axis):
    assert torch.equal(to_slices(volume, axis)[volume.shape[2 + axis] + 2], volume[1].select(1 + axis, 2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_come_channel_by_channel_and_repeat_at_the_ends(axis):
    n = 4
    places = torch.arange(n).float().view(1, 1, *(n if a == axis else 1 for a in range(3)))
    volume = torch.cat([places, 10 * places], dim=1).expand(1, 2, *(n if a == axis else 2 for a in range(3)))
    slices = to_slices(volume, axis, context=1)
    assert slices.shape == (n, 6, 2, 2)
    assert slices[:, :, 0, 0].tolist() == [
        [0, 0, 1, 0, 0, 10],
        [0, 1, 2, 0, 10, 20],
        [1, 2, 3, 10, 20, 30],
        [2, 3, 3, 20, 30, 30],
    ]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_2d_network_answers_each_slice_by_itself(volume, axis):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1)
    y = SliceWise(network, slice_axis=axis)(volume)
    assert y.shape == (2, 2, 4, 5, 6)
    expected = network(volume.select(2 + axis, 1))
    torch.testing.assert_close(y.select(2 + axis, 1), expected, rtol=1e-5, atol=1e-6)


def test_several_axes_are_read_in_turn_and_averaged(volume):
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1)
    one_by_one = [SliceWise(network, slice_axis=axis)(volume) for axis in (0, 1, 2)]
    torch.testing.assert_close(SliceWise(network, slice_axis=[0, 1, 2])(volume), torch.stack(one_by_one).mean(0))
    assert not torch.allclose(one_by_one[0], one_by_one[2])


def test_single_slices_go_straight_through(volume):
    network = nn.Conv2d(3, 2, 1)
    assert torch.equal(SliceWise(network)(volume[..., 0]), network(volume[..., 0]))


def test_the_networks_refusal_names_the_volume_too():
    def refuse(x):
        raise ValueError("pad to (16, 16)")

    network = nn.Module()
    network.forward = refuse
    with pytest.raises(ValueError, match=r"pad to \(16, 16\) \(in slices of \(4, 5, 6\) across axis 2\)"):
        SliceWise(network)(torch.zeros(1, 1, 4, 5, 6))


def test_a_tensor_that_is_neither_volumes_nor_slices_is_refused():
    with pytest.raises(ValueError, match=r"\(batch, channels, X, Y, Z\) or single slices, got shape \(5, 6, 7\)"):
        SliceWise(nn.Identity())(torch.zeros(5, 6, 7))


@pytest.mark.parametrize("options", [{"slice_axis": 3}, {"slice_axis": []}, {"slice_axis": [2, 3]}, {"context": -1}])
def test_an_axis_or_context_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="slice_axis must be 0, 1 or 2 and context 0 or more"):
        SliceWise(nn.Identity(), **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_inflated_first_convolution_answers_as_the_one_over_single_slices(volume, axis):
    single, several = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(15, 4, 3, padding=1)
    several.load_state_dict({"weight": with_context(single.weight.detach(), 2), "bias": single.bias.detach()})
    before, now = SliceWise(single, slice_axis=axis), SliceWise(several, slice_axis=axis, context=2)
    assert torch.allclose(before(volume), now(volume), atol=1e-6)
