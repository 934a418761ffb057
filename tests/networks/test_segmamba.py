"""SegMamba against its published implementation: parameter counts, keys, output values."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from volseg.networks import SegMamba
from volseg.networks.checkpoints import segmamba_state_dict

REFERENCE = Path("data/segmamba_reference")
PUBLISHED_SLICES = (64, 32, 16, 8)


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(0)


def tiny(**options) -> SegMamba:
    return SegMamba(1, 2, (1, 1, 1, 1), (4, 4, 4, 4), 4, **options)


def published_weight(key: str, shape: list[int]) -> torch.Tensor:
    """The deterministic weights of ../shared/data/segmamba_reference/README.md."""
    rs = np.random.RandomState(zlib.crc32(key.encode()))
    kind = key.rsplit(".", 1)[-1]
    if kind in ("A_log", "A_b_log", "A_s_log"):
        value = np.log(np.arange(1, shape[1] + 1)) + 0.1 * rs.standard_normal(shape)
    elif kind in ("D", "D_b", "D_s") or key.endswith(".norm.weight"):
        value = 1 + 0.1 * rs.standard_normal(shape)
    elif re.search(r"\.dt_proj(_b|_s)?\.weight$", key):
        value = rs.uniform(-(shape[1] ** -0.5), shape[1] ** -0.5, shape)
    elif re.search(r"\.dt_proj(_b|_s)?\.bias$", key):
        dt = np.exp(rs.uniform(0, 1, shape) * np.log(100) + np.log(0.001))
        value = dt + np.log(-np.expm1(-dt))
    elif kind == "bias":
        value = 0.1 * rs.standard_normal(shape)
    else:
        value = rs.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def published_input() -> torch.Tensor:
    shape = (1, 2, 64, 64, 64)
    i, j, k = (np.arange(64).reshape(s) / 64 for s in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    channel = np.arange(2).reshape(-1, 1, 1, 1)
    rs = np.random.RandomState(zlib.crc32(b"input:cube64"))
    x = 0.5 * rs.standard_normal(shape) + np.sin(2 * np.pi * i)
    x = x + 0.5 * np.cos(2 * np.pi * j) * (1 + channel) - 0.25 * np.sin(4 * np.pi * k)
    return torch.from_numpy(x.astype(np.float32))


@pytest.fixture(scope="module")
def published(shared: Path) -> SegMamba:
    keys = json.loads((shared / REFERENCE / "keys.json").read_text())
    net = SegMamba(2, 3, (1, 1, 1, 1), (48, 8, 16, 24), 32, num_slices=PUBLISHED_SLICES).eval()
    net.load_state_dict(segmamba_state_dict({key: published_weight(key, shape) for key, shape in keys}))
    return net


@pytest.mark.parametrize(
    "dtype",
    # float64 convolutions take half a minute on a busy core and show nothing that float32 does not
    [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)],
)
def test_the_output_is_that_of_the_published_implementation(shared: Path, published: SegMamba, dtype):
    expected = np.load(shared / REFERENCE / "reference.npz")
    with torch.inference_mode():
        y = published.to(dtype)(published_input().to(dtype))
    published.float()
    assert np.abs(y[..., ::4, ::4, ::4].numpy() - expected["cube64"]).max() < (1e-4 if dtype == torch.float32 else 1e-6)
    np.testing.assert_allclose(y.mean((2, 3, 4)).numpy(), expected["cube64_mean"], atol=1e-5)
    np.testing.assert_allclose(y.std((2, 3, 4), correction=0).numpy(), expected["cube64_std"], atol=1e-5)


@pytest.mark.parametrize(("in_channels", "out_channels", "count"), [(1, 2, 67_362_674), (4, 4, 67_416_196)])
def test_the_default_size_has_the_published_number_of_parameters(in_channels, out_channels, count):
    with torch.device("meta"):
        net = SegMamba(in_channels, out_channels)
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(net.state_dict()) == 291


def test_true_slices_are_the_published_ones_where_the_first_axis_has_128_voxels():
    own, fixed = tiny().eval(), tiny(num_slices=PUBLISHED_SLICES).eval()
    fixed.load_state_dict(own.state_dict())
    x = torch.randn(1, 1, 128, 16, 16)
    with torch.inference_mode():
        assert torch.equal(own(x), fixed(x))


def test_the_fixed_list_changes_the_answer_at_other_sizes():
    own, fixed = tiny().eval(), tiny(num_slices=PUBLISHED_SLICES).eval()
    fixed.load_state_dict(own.state_dict())
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert not torch.allclose(own(x), fixed(x), atol=1e-4)


def test_slices_that_do_not_divide_the_tokens_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="1024 tokens cannot be cut into 48 slices"):
        tiny(num_slices=(48, 8, 4, 2))(torch.zeros(1, 1, 32, 16, 16))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((32, 32, 40), r"multiples of 16, got \(32, 32, 40\); pad to \(32, 32, 48\)"),
        ((15, 16, 16), r"pad to \(16, 16, 16\)"),
        ((16, 16, 16), r"two voxels at its lowest level.*pad an axis to 32"),
    ],
)
def test_a_size_it_cannot_take_is_refused_with_one_it_can(size, words):
    with pytest.raises(ValueError, match=words):
        tiny()(torch.zeros(1, 1, *size))


def test_a_batch_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"\(batch, channels, X, Y, Z\)"):
        tiny()(torch.zeros(1, 32, 32, 32))


@pytest.mark.parametrize("options", [{"depths": (2, 2)}, {"dims": (8, 8, 8)}, {"num_slices": (1,)}])
def test_a_network_of_other_than_four_stages_is_refused_by_name(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must name four stages"):
        SegMamba(1, 2, **options)


def test_training_in_bfloat16_gives_finite_gradients_everywhere():
    net = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(2, 1, 32, 16, 16))
    y.float().square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("x", [32, 48])
def test_gradients_of_the_deepest_convolutions_are_right_in_bfloat16(x):
    # oneDNN leaves the weight gradient uninitialised where a map has 2 voxels along X; poisoned memory shows it.
    torch.manual_seed(0)
    net = tiny()
    image = torch.randn(2, 1, x, 32, 32)
    weight = net.stages[3].gsc.local[0][0].weight

    def gradient() -> torch.Tensor:
        net.zero_grad()
        net(image).float().square().mean().backward()
        return weight.grad.clone()

    expected = gradient()
    for _ in range(8):
        del_me = torch.full((1_000_000,), float("nan"))
        del del_me
        with torch.autocast("cpu", torch.bfloat16):
            found = gradient()
        assert found.abs().max() < 10 * expected.abs().max()  # NaN fails too; bf16 noise does not


def test_the_backends_of_the_scan_give_one_network():
    nets = {backend: tiny(backend=backend).double() for backend in ("numba", "torch", "reference")}
    x = torch.randn(1, 1, 32, 16, 16, dtype=torch.float64)
    gradients = {}
    for backend, net in nets.items():
        net.load_state_dict(nets["reference"].state_dict())
        net(x).square().mean().backward()
        gradients[backend] = torch.cat([p.grad.flatten() for p in net.parameters()])
    for backend in ("numba", "torch"):
        torch.testing.assert_close(gradients[backend], gradients["reference"], rtol=1e-7, atol=1e-10)
