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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (2, 3, 5, 4, 7), (1, 2, 20, 21, 22)])
@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("kind", ["alone", "added", "normalised"])
def test_gradients_equal_torchs_in_every_form(dtype, shape, slope, kind, monkeypatch):
    torch.manual_seed(0)
    y, residual = (3 * torch.randn(shape) + 4).to(dtype), (torch.randn(shape) - 2).to(dtype)
    given = [t.requires_grad_() for t in ([y] if kind == "alone" else [y, residual])]
    doubled = [t.detach().double().requires_grad_() for t in given]
    calls, original = [], instance_norm._forward
    monkeypatch.setattr(instance_norm, "_forward", lambda *a: calls.append(1) or original(*a))
    out = instance_norm_act(
        y, slope, residual=residual if kind != "alone" else None, normalise_residual=kind == "normalised"
    )
    assert calls, "the compiled kernel was not used"
    expected = plain(doubled[0], slope, *doubled[1:], normalise_residual=kind == "normalised")
    seed = torch.randn(shape).to(dtype)
    ours, exact = torch.autograd.grad(out, given, seed), torch.autograd.grad(expected, doubled, seed.double())
    # Two voxels leave a gradient of nearly 0, a difference of large numbers.
    tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * max(1, float(exact[0].abs().max()))
    for a, e in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        assert (a - e).abs().max() < tolerance


def test_a_gradient_need_not_be_contiguous_nor_of_one_type():
    y, residual = torch.randn(1, 2, 4, 5, 6), torch.randn(1, 2, 4, 5, 6)
    half = y.bfloat16().requires_grad_()
    out = instance_norm_act(half, 0.01, residual=residual)
    assert out.dtype == torch.float32
    seed = torch.randn(1, 2, 6, 5, 4).transpose(2, 4)
    exact = half.detach().double().requires_grad_()
    plain(exact, 0.01, residual).backward(seed.double())
    out.backward(seed)
    assert (half.grad - exact.grad).abs().max() < 2e-2


@pytest.mark.parametrize("shape", [(1, 3, 5, 4, 7), (2, 1, 5, 4, 7), (2, 3, 1, 1, 1), (1, 1, 1, 1, 7)])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_of_another_shape_is_broadcast_as_torch_does(shape, training):
    torch.manual_seed(0)
    y, residual = torch.randn(2, 3, 5, 4, 7, requires_grad=training), torch.randn(shape, requires_grad=training)
    out = instance_norm_act(y.clone(), 0.01, residual=residual)
    assert (out - plain(y, 0.01, residual)).abs().max() < 2e-5


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "other"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_result_has_the_wider_type_in_training_and_inference(dtype, other, training, numba, monkeypatch):
    if not numba:
        monkeypatch.setattr(instance_norm, "installed", lambda _: False)
    torch.manual_seed(0)
    y, residual = torch.randn(1, 2, 4, 5, 6).to(dtype), torch.randn(1, 2, 4, 5, 6).to(other)
    expected = plain(y, 0.01, residual)
    out = instance_norm_act(y.requires_grad_(training), 0.01, residual=residual)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < (1e-5 if numba or dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_stays_one(training):
    y, residual = (torch.randn(0, 16, 16, 16, 16, requires_grad=training) for _ in range(2))
    for given in ({}, {"residual": residual}, {"residual": residual, "normalise_residual": True}):
        out = instance_norm_act(y, 0.01, **given)
        assert out.shape == y.shape and out.dtype == y.dtype
