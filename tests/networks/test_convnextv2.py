"""ConvNeXt V2 in 3D: parameters counted by formula, sizes by ceiling, blocks against the paper's steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volseg.networks import ConvNeXtV2
from volseg.networks import convnextv2 as module
from volseg.networks.convnextv2 import GRN, SIZES, Block, Patches
from volseg.ops.gelu_squares import gelu_squares_reference


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


def tiny(**options) -> ConvNeXtV2:
    return ConvNeXtV2(**{"in_channels": 2, "depths": (1, 1, 2, 1), "dims": (4, 6, 8, 16), "kernel_size": 3} | options)


def awake(net: nn.Module) -> nn.Module:
    """GRN does nothing at first; here it does."""
    for name, p in net.named_parameters():
        if ".grn." in name or name.startswith("grn.") or name.endswith("bias"):
            nn.init.normal_(p, std=0.5)
    return net


def paper(block: Block, x: torch.Tensor) -> torch.Tensor:
    """The block step by step, (B, C, X, Y, Z)."""
    y = block.norm(block.depthwise(x).movedim(1, -1))
    y = F.gelu(block.fc1(y))
    norm = y.square().sum((1, 2, 3), keepdim=True).sqrt()
    y = block.grn.gamma * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + block.grn.beta + y
    return x + block.fc2(y).movedim(-1, 1)


# ---- size


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_the_layers_have(name, kernel_size):
    depths, dims = SIZES[name]
    expected = 1 * 8 * dims[0] + dims[0] + 2 * dims[0]  # stem and its norm
    for c, next_ in pairwise(dims):
        expected += 2 * c + 8 * c * next_ + next_  # norm and 2x2x2 convolution
    for depth, c in zip(depths, dims, strict=True):
        depthwise, norm, grn = c * kernel_size**3 + c, 2 * c, 2 * 4 * c
        expected += depth * (depthwise + norm + (4 * c * c + 4 * c) + grn + (4 * c * c + c))
        expected += 2 * c  # the norm a map leaves through
    with torch.device("meta"):
        net = ConvNeXtV2.of_size(name, kernel_size=kernel_size)
    assert sum(p.numel() for p in net.parameters()) == expected


def test_femto_with_kernels_of_5_has_5_4_million():
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvNeXtV2().parameters()) == 5_401_872


@pytest.mark.parametrize(
    ("size", "stem_stride", "strides"),
    [
        ((32, 48, 16), 2, (2, 2, 2)),
        ((33, 47, 2), 2, (2, 2, 2)),
        ((1, 5, 18), 2, (2, 2, 2)),
        ((33, 47, 9), (2, 2, 1), (2, 2, 1)),
        ((40, 7, 64), [4, 1, 3], (4, 1, 3)),
    ],
)
def test_maps_have_the_inputs_size_over_the_stride_rounded_up(size, stem_stride, strides):
    net = tiny(stem_stride=stem_stride).eval()
    with torch.inference_mode():
        features = net(torch.randn(2, 2, *size))
    assert net.strides == tuple(tuple(s * 2**i for s in strides) for i in range(4))
    for feature, channels, stride in zip(features, net.dims, net.strides, strict=True):
        assert feature.shape == (2, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))


# ---- parts


def test_grn_multiplies_a_channel_by_its_share_of_the_response():
    grn = GRN(2)
    x = torch.zeros(1, 3, 1, 1, 2)
    x[0, :, 0, 0, 0] = torch.tensor([2.0, -2, 1])  # norm 3
    x[0, 1, 0, 0, 1] = 1  # norm 1: the mean is 2
    torch.testing.assert_close(grn(x), x)
    nn.init.constant_(grn.gamma, 2)
    nn.init.constant_(grn.beta, 0.25)
    torch.testing.assert_close(grn(x), x * torch.tensor([1 + 2 * 1.5, 1 + 2 * 0.5]) + 0.25)


def test_grn_sums_bfloat16_in_float32():
    grn = GRN(3)
    nn.init.ones_(grn.gamma)
    x = torch.randn(1, 40, 40, 20, 3) * torch.tensor([1.0, 3, 0.1]) + 1
    with torch.autocast("cpu", torch.bfloat16):
        short = grn(x.bfloat16())
    assert short.dtype == torch.bfloat16
    assert (short.float() - grn(x)).norm() < 5e-3 * grn(x).norm()


def test_a_map_of_zeros_passes_grn_with_a_gradient():
    grn = GRN(2)
    nn.init.ones_(grn.gamma)
    x = torch.zeros(1, 2, 2, 2, 2, requires_grad=True)
    grn(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_block_is_the_papers_in_values_and_gradients(kernel_size):
    block = awake(Block(6, kernel_size)).double()
    x = torch.randn(2, 6, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    seed = torch.randn_like(x)
    given = [x, *block.parameters()]
    ours, plain = block(x), paper(block, x)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, given, seed), torch.autograd.grad(plain, given, seed), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [(2, 2, 2), (2, 2, 1), (4, 3, 2)])
def test_patches_are_a_convolution_over_the_image_with_its_last_voxels_repeated(stride):
    patches = Patches(3, 5, stride)
    x = torch.randn(2, 3, 9, 8, 7)
    pad = [m for n, s in zip((7, 8, 9), stride[::-1], strict=True) for m in (0, -n % s)]
    expected = F.conv3d(F.pad(x, pad, mode="replicate"), patches.weight, patches.bias, stride=stride)
    torch.testing.assert_close(patches(x.movedim(1, -1)).movedim(-1, 1), expected)


def test_a_new_network_is_initialised_as_the_paper_says():
    net = ConvNeXtV2.of_size("atto")
    for name, p in net.named_parameters():
        if name.endswith("bias") or ".grn." in name:
            assert not p.any(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
        elif p.numel() > 1000:
            assert 0.018 < p.std() < 0.021 and p.abs().max() < 2, name


def test_drop_path_grows_linearly_and_rests_in_evaluation():
    net = tiny(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in net.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    x = torch.randn(8, 2, 8, 8, 8)
    assert not torch.equal(net(x)[3], net(x)[3])
    net.eval()
    assert torch.equal(net(x)[3], net(x)[3])


# ---- the whole


def test_the_network_is_the_one_of_torchs_own_operations(monkeypatch):
    net, x = awake(tiny(dims=(16, 20, 24, 32))), torch.randn(1, 2, 21, 16, 18)

    def run():
        net.zero_grad()
        features = net(x)
        sum(f.square().mean() for f in features).backward()
        return features, {name: p.grad.clone() for name, p in net.named_parameters()}

    fast, fast_gradients = run()
    monkeypatch.setattr(module, "gelu_squares", gelu_squares_reference)
    monkeypatch.setattr(
        module, "depthwise_conv3d", lambda x, w, b: F.conv3d(x, w, b, padding=w.shape[-1] // 2, groups=len(w))
    )
    slow, slow_gradients = run()
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    for name, g in slow_gradients.items():
        assert (fast_gradients[name] - g).norm() < 1e-3 * g.norm() + 1e-7, name


def test_bfloat16_stays_near_and_its_gradients_are_finite_everywhere():
    net, x = awake(tiny(dims=(16, 20, 24, 32))), torch.randn(2, 2, 21, 16, 18)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(x)
    for a, b in zip(features, exact, strict=True):
        assert (a.float() - b).norm() < 3e-2 * b.norm()
    sum(f.float().square().mean() for f in features).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all(), name


def test_an_image_does_not_depend_on_the_others_in_the_batch():
    net, x = awake(tiny()).eval(), torch.randn(3, 2, 9, 16, 12)
    with torch.inference_mode():
        for both, alone in zip(net(x), net(x[1:2]), strict=True):
            torch.testing.assert_close(both[1:2], alone, rtol=1e-4, atol=1e-5)


def test_weights_survive_saving_and_loading(tmp_path):
    net, other, x = awake(tiny()).eval(), tiny().eval(), torch.randn(1, 2, 8, 8, 8)
    torch.save(net.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(net(x), other(x), strict=True))


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": (2, 2)}, r"depths must name four stages of at least 1, got \(2, 2\)"),
        ({"dims": (4, 0, 8, 8)}, "dims must name four stages"),
        ({"kernel_size": 4}, r"kernel_size must be odd \(3, 5, 7\), got 4"),
        ({"stem_stride": (2, 2)}, r"stem_stride must be one or three numbers of at least 1, got \(2, 2\)"),
        ({"stem_stride": 0}, "stem_stride must be"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1, got 1.0"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        tiny(**options)


def test_an_unknown_size_is_refused_with_the_known():
    with pytest.raises(ValueError, match='"huge"; choose one of atto, femto, pico, nano, tiny'):
        ConvNeXtV2.of_size("huge")


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (1, 2, 0, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape):
    with pytest.raises(ValueError, match=r"takes \(batch, channels, X, Y, Z\) with voxels, got shape"):
        tiny()(torch.zeros(shape))
