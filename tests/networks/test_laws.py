"""Laws over all networks. A new network joins by one line in NETWORKS."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

import volseg.networks
from volseg.networks import AnyChannels, BMSMMNet, MFPDeepLabV3Plus, SegMamba, SliceWise, SpineUNet

IN_CHANNELS, OUT_CHANNELS = 2, 3
CHANNELS = ("T1", "STIR")
BACKBONES = {"ConvNeXtV2"}  # exported, but they give features, not logits

# name: (builder at a tiny size, an input size it takes: no two axes alike)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "segmamba": (lambda: SegMamba(IN_CHANNELS, OUT_CHANNELS, (1, 1, 1, 1), (4, 6, 8, 10), 8), (48, 32, 16)),
    "bmsmm_net": (
        lambda: BMSMMNet(IN_CHANNELS, widths=(4, 6, 8, 10, 12), heads=("bone", "lesion", "marrow")),
        (48, 32),
    ),
    "bmsmm_net_3d": (
        lambda: BMSMMNet(IN_CHANNELS, spatial_dims=3, widths=(4, 6, 8, 10, 12), heads=("bone", "lesion", "marrow")),
        (48, 32, 16),
    ),
    "mfp_deeplabv3plus": (lambda: MFPDeepLabV3Plus(IN_CHANNELS, OUT_CHANNELS), (48, 32)),
    "spine_unet_2d": (lambda: _spine_unet(2), (4, 24, 16)),
    "spine_unet_2.5d": (lambda: _spine_unet(2.5), (4, 24, 16)),
    "spine_unet_3d": (lambda: _spine_unet(3), (24, 16, 8)),
    "any_channels": (
        lambda: AnyChannels(SegMamba(2 * IN_CHANNELS, OUT_CHANNELS, (1, 1, 1, 1), (4, 6, 8, 10), 8), CHANNELS),
        (32, 48, 16),
    ),
    "slicewise": (
        lambda: SliceWise(BMSMMNet(IN_CHANNELS, widths=(4, 6, 8), heads=("bone", "lesion", "marrow"))),
        (16, 12, 3),
    ),
}


def _spine_unet(dimension: float) -> SpineUNet:
    return SpineUNet(CHANNELS, OUT_CHANNELS, spatial_dims=dimension, widths=(4, 6, 8, 10))


@pytest.fixture(params=NETWORKS)
def build(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    return NETWORKS[request.param][0]


@pytest.fixture
def network(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build()


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return NETWORKS[request.node.callspec.params["build"]][1]


def test_every_exported_network_is_a_member():
    members = {type(build()).__name__ for build, _ in NETWORKS.values()}
    assert set(volseg.networks.__all__) - BACKBONES <= members


def test_logits_have_the_inputs_size_and_one_channel_per_class(network, size):
    y = network(torch.randn(2, IN_CHANNELS, *size))
    assert y.shape == (2, OUT_CHANNELS, *size)


def test_the_loss_reaches_every_parameter_and_stays_finite(network, size):
    network(torch.randn(1, IN_CHANNELS, *size)).square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


def test_what_monais_loaders_hand_over_is_taken_in_training_too(network, size):
    x = torch.randn(1, IN_CHANNELS, *size)
    gradients = []
    for given in (x, MetaTensor(x)):
        network.zero_grad()
        torch.manual_seed(0)
        network(given).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for plain, meta in zip(*gradients, strict=True):
        torch.testing.assert_close(torch.as_tensor(meta), plain)


def test_memory_laid_out_channels_last_is_taken(network, size):
    x = torch.randn(2, IN_CHANNELS, *size)
    network.eval()
    format_ = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    with torch.inference_mode():
        y = network(x.contiguous(memory_format=format_))
        assert torch.allclose(y, network(x), atol=1e-4)


def test_an_odd_size_is_taken_or_refused_in_words(network, size):
    odd = tuple(n + 5 for n in size)
    try:
        y = network(torch.randn(1, IN_CHANNELS, *odd))
    except ValueError as refusal:
        assert str(odd) in str(refusal) and "pad" in str(refusal)
    else:
        assert y.shape == (1, OUT_CHANNELS, *odd)


def test_the_same_input_twice_gives_the_same_output(network, size):
    x = torch.randn(1, IN_CHANNELS, *size)
    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(x), network(x))


def test_a_patients_output_does_not_depend_on_the_others_in_the_batch(network, size):
    x = torch.randn(2, IN_CHANNELS, *size)
    network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


def test_weights_survive_saving_and_loading(network, build, size, tmp_path):
    x = torch.randn(1, IN_CHANNELS, *size)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = build()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.inference_mode():
        assert torch.equal(network.eval()(x), other.eval()(x))
