"""The short causal convolution against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from volseg.ops.causal_conv import causal_conv1d


@pytest.mark.parametrize("length", [1, 3, 50])
@pytest.mark.parametrize("taps", [1, 4])
def test_values_and_gradients_equal_conv1d(length, taps):
    torch.manual_seed(0)
    x = torch.randn(2, 5, length, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 1, taps, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ours = causal_conv1d(x, weight, bias)
    plain = F.conv1d(F.pad(x, (taps - 1, 0)), weight, bias, groups=5)
    assert torch.allclose(ours, plain, atol=1e-12)
    seed = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), seed),
        torch.autograd.grad(plain, (x, weight, bias), seed),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_bfloat16_input_is_summed_in_the_weights_type():
    x = torch.randn(1, 3, 20).bfloat16()
    y = causal_conv1d(x, torch.randn(3, 1, 4), torch.randn(3))
    assert y.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "weight", "bias", "says"),
    [
        ((2, 8, 10), (4, 1, 4), (4,), r"weight must have shape \(8, 1, taps\)"),
        ((2, 1, 10), (4, 1, 4), (4,), r"weight must have shape \(1, 1, taps\)"),  # torch would broadcast x
        ((2, 8, 10), (8, 2, 4), (8,), r"weight must have shape \(8, 1, taps\)"),
        ((2, 8, 10), (8, 1, 4), (1,), r"bias must have shape \(8,\) beside x \(2, 8, 10\), got \(1,\)"),
        ((8, 10), (8, 1, 4), (8,), r"x must be \(batch, channels, length\)"),
    ],
)
def test_other_shapes_are_refused_by_name(x, weight, bias, says):
    with pytest.raises(ValueError, match=says):
        causal_conv1d(torch.zeros(x), torch.zeros(weight), torch.zeros(bias))
