"""The depthwise convolution against torch's: values and gradients, with and without numba."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from volseg.ops import depthwise_conv3d as module
from volseg.ops.depthwise_conv3d import depthwise_conv3d, weight_gradient, weight_gradient_plain

# Fewer channels than a vector has, as many, and a rest; axes shorter than the kernel; planes of more than one task.
SHAPES = [(2, 3, 4, 3, 5), (1, 16, 1, 2, 3), (1, 40, 2, 6, 7), (2, 17, 37, 2, 3)]


def tensors(shape, size, dtype=torch.float64) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(sum(shape) + size)
    shapes = (shape, (shape[1], 1, size, size, size), (shape[1],), shape)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.fixture(params=["numba", "plain"])
def road(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(module, "installed", lambda _: False)
    return request.param


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_torchs(shape, size, road):
    *given, seed = tensors(shape, size)
    for t in given:
        t.requires_grad_()
    ours, plain = depthwise_conv3d(*given), F.conv3d(*given, padding=size // 2, groups=shape[1])
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11)
    for a, b in zip(torch.autograd.grad(ours, given, seed), torch.autograd.grad(plain, given, seed), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradcheck(road):
    x, weight, bias, _ = tensors((1, 3, 3, 2, 4), 3)
    assert torch.autograd.gradcheck(depthwise_conv3d, [t.requires_grad_() for t in (x, weight, bias)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_gradient_is_summed_in_float32(dtype, road):
    x, _, _, dy = tensors((1, 20, 33, 5, 6), 5, dtype)
    x, dy = (t.contiguous(memory_format=module.LAST) for t in (x, dy))
    exact = weight_gradient_plain(x.double(), dy.double(), 5)
    found = weight_gradient(x, dy, 5)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 2e-6 * exact.abs().max()


def test_autocast_convolves_in_bfloat16_and_gives_gradients_in_the_parameters_type(road):
    x, weight, bias, seed = tensors((1, 16, 5, 6, 7), 5, torch.float32)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv3d(*given)
        with torch.no_grad():
            assert depthwise_conv3d(*given).dtype == torch.bfloat16
    exact = torch.autograd.grad(depthwise_conv3d(*given), given, seed)
    for a, b in zip(torch.autograd.grad(y, given, seed.bfloat16()), exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 1e-2 * b.norm()


def test_the_number_of_threads_changes_no_bit():
    pytest.importorskip("numba")
    x, _, _, dy = tensors((2, 40, 37, 5, 6), 5)
    x, dy = (t.float().contiguous(memory_format=module.LAST) for t in (x, dy))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(weight_gradient(x, dy, 5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_compiled_gradient_is_taken_in_training_and_none_in_inference(monkeypatch):
    pytest.importorskip("numba")
    from volseg.ops import _depthwise_numba as kernels

    calls, original = [], kernels.weight_gradient
    monkeypatch.setattr(kernels, "weight_gradient", lambda *a: calls.append(1) or original(*a))
    x, weight, bias, seed = tensors((1, 16, 5, 6, 7), 5, torch.float32)
    depthwise_conv3d(x, weight, bias).sum()
    depthwise_conv3d(x.requires_grad_(), weight, bias).backward(seed)
    assert not calls, "the weight wants no gradient"
    depthwise_conv3d(x, weight.requires_grad_(), bias).backward(seed)
    assert len(calls) == 1 and bias.grad is None


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ((1, 4, 5, 5, 5), (4, 1, 2, 2, 2)),
        ((1, 4, 5, 5, 5), (4, 1, 3, 3, 5)),
        ((1, 4, 5, 5, 5), (4, 4, 3, 3, 3)),
        ((1, 3, 5, 5, 5), (4, 1, 3, 3, 3)),
        ((4, 5, 5, 5), (4, 1, 3, 3, 3)),
    ],
)
def test_other_shapes_are_refused_in_words(x, weight):
    with pytest.raises(ValueError, match=r"weight \(C, 1, k, k, k\) with k odd, got x \("):
        depthwise_conv3d(torch.zeros(x), torch.zeros(weight))
