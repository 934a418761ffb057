"""SegMamba through our kernels and through torch's operations: one function, and one gradient."""

from __future__ import annotations

import contextlib

import pytest
import torch

from volseg.networks import SegMamba
from volseg.ops import conv3d, instance_norm

pytest.importorskip("numba")


@contextlib.contextmanager
def plain(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(conv3d, "installed", lambda _: False)
        patch.setattr(instance_norm, "installed", lambda _: False)
        yield


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SegMamba(2, 3, depths=(1, 1, 1, 1), dims=(16, 16, 24, 24), hidden_dim=32)


@pytest.fixture
def image():
    return torch.randn(1, 2, 48, 32, 32, generator=torch.Generator().manual_seed(1))


def test_inference_agrees(net, image, monkeypatch):
    calls, original = [], conv3d.winograd
    monkeypatch.setattr(conv3d, "winograd", lambda *a: calls.append(1) or original(*a))
    with torch.inference_mode():
        fast = net(image)
        assert len(calls) >= 5, "the decoder's full-resolution convolutions should be Winograd's"
        with plain(monkeypatch):
            slow = net(image)
    assert (fast - slow).abs().max() < 1e-4


def test_bfloat16_inference_agrees_within_its_digits(net, image):
    with torch.inference_mode():
        full = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(image).float()
    assert (full - half).abs().mean() < 0.02 * full.abs().mean()


def test_gradients_agree(net, image, monkeypatch):
    def gradients():
        net.zero_grad()
        net(image).square().mean().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    fast = gradients()
    with plain(monkeypatch):
        slow = gradients()
    for name, g in slow.items():
        assert (fast[name] - g).norm() < 2e-3 * g.norm() + 1e-6, name
