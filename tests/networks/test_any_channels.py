"""Missing input channels: seen, said to the network, and practised in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.networks import AnyChannels, SegMamba
from volseg.networks.any_channels import ChannelDropout, presence, presence_planes


@pytest.fixture(autouse=True)
def fixed_chance():
    torch.manual_seed(0)


def test_a_channel_is_missing_only_if_it_is_zero_everywhere():
    x = torch.zeros(2, 3, 4, 4, 4)
    x[0, 1, 2, 3, 1] = -1e-3
    x[1] = 1
    assert presence(x).tolist() == [[False, True, False], [True, True, True]]
    planes = presence_planes(x)
    assert planes.shape == x.shape
    assert planes.mean((2, 3, 4)).tolist() == [[0, 1, 0], [1, 1, 1]]


def test_dropout_takes_whole_channels_and_leaves_the_others_as_they_are():
    x = torch.randn(500, 4, 3, 3)
    y = ChannelDropout(0.3).train()(x)
    kept = presence(y)
    assert torch.equal(y, x * kept[..., None, None])
    # four channels dropped at once, .3^4 = .8 %, lose one drop: .3 - .3^4 / 4 = .298 of 2,000 draws, sd .01
    assert 0.26 < 1 - kept.float().mean() < 0.34


def test_dropout_always_leaves_a_channel_that_was_there():
    x = torch.zeros(300, 4, 2, 2)
    x[:, 2] = 1
    assert presence(ChannelDropout(0.95).train()(x))[:, 2].all()
    assert presence(ChannelDropout(0.95).train()(torch.ones(300, 4, 2, 2))).any(1).all()


def test_dropout_rests_in_evaluation():
    x = torch.randn(8, 4, 2, 2)
    assert torch.equal(ChannelDropout(0.9).eval()(x), x)


def test_a_certain_dropout_is_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 1"):
        ChannelDropout(1)


def test_the_network_sees_the_channels_and_then_their_presence():
    x = torch.randn(1, 2, 2, 2, 2)
    x[:, 1] = 0
    y = AnyChannels(nn.Identity(), ("T1", "STIR")).eval()(x)
    assert torch.equal(y[:, :2], x)
    assert y[0, 2:].mean((1, 2, 3)).tolist() == [1, 0]


def test_segmamba_takes_a_study_without_its_second_channel():
    network = AnyChannels(SegMamba(4, 2, (1, 1, 1, 1), (4, 4, 4, 4), 4), ("T1", "T2"), channel_dropout=0.5)
    x = torch.randn(1, 2, 32, 16, 16)
    x[:, 1] = 0
    y = network(x)
    assert y.shape == (1, 2, 32, 16, 16)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("channels", [(), ("T1", "T1"), ("T1", "FLAIR")])
def test_channels_that_are_not_some_of_the_known_ones_are_refused(channels):
    with pytest.raises(ValueError, match="channels must be some of T1, T1c, T2, STIR, each once; got"):
        AnyChannels(nn.Identity(), channels)


def test_a_study_with_too_few_channels_is_refused_with_their_names():
    with pytest.raises(ValueError, match=r"one channel for each of T1, STIR \(2, zeros where one is missing\), got"):
        AnyChannels(nn.Identity(), ("T1", "STIR"))(torch.zeros(1, 1, 4, 4, 4))
