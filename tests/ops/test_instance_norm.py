"""Norm, residual and activation in one, against torch's three."""

import pytest
import torch
from torch.nn import functional as F

from volseg.ops import instance_norm
from volseg.ops.instance_norm import instance_norm_act

pytest.importorskip("numba")


def plain(y, slope, residual=None, normalise_residual=False):
    out = F.instance_norm(y.double())
    if residual is not None:
        out = out + (F.instance_norm(residual.double()) if normalise_residual else residual.double())
    return F.leaky_relu(out, slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (2, 3, 5, 4, 7), (1, 2, 20, 21, 22)])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("kind", ["alone", "added", "normalised"])
def test_equals_torch_in_every_form(dtype, shape, slope, kind):
    torch.manual_seed(0)
    y, residual = 3 * torch.randn(shape) + 40, torch.randn(shape) - 2
    y, residual = y.to(dtype), None if kind == "alone" else residual.to(dtype)
    expected = plain(y, slope, residual, kind == "normalised")
    with torch.inference_mode():
        out = instance_norm_act(y.clone(), slope, residual=residual, normalise_residual=kind == "normalised")
    assert out.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert (out - expected).abs().max() < tolerance * max(1, float(expected.abs().max()))


def test_a_large_mean_costs_no_digits():
    y = torch.randn(1, 1, 30, 30, 30, dtype=torch.float64) + 1000
    with torch.inference_mode():
        out = instance_norm_act(y.float(), 1.0)
    assert (out - F.instance_norm(y.float().double())).abs().max() < 1e-3


def test_in_inference_it_works_in_place_and_in_training_it_does_not(monkeypatch):
    y = torch.randn(1, 2, 6, 6, 6)
    with torch.inference_mode():
        given = y.clone()
        assert instance_norm_act(given, 0.0).data_ptr() == given.data_ptr()
    leaf = y.clone().requires_grad_()
    instance_norm_act(leaf * 1.0, 0.01).square().sum().backward()
    reference = y.double().requires_grad_()
    plain(reference, 0.01).square().sum().backward()
    assert torch.allclose(leaf.grad.double(), reference.grad, atol=1e-4)
    monkeypatch.setattr(instance_norm, "installed", lambda _: False)
    with torch.inference_mode():
        assert instance_norm_act(y, 0.0).data_ptr() != y.data_ptr()
