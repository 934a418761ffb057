"""The transposed convolution as a matrix product is torch's own: values, gradients, types."""

import pytest
import torch
from torch.nn import functional as F

from volseg.ops.upconv3d import upconv3d_2x2x2


@pytest.mark.parametrize("shape", [(1, 3, 4, 5, 6), (2, 1, 1, 2, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_torchs(shape, with_bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(shape[1], 4, 2, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True) if with_bias else None
    ours, plain = upconv3d_2x2x2(x, weight, bias), F.conv_transpose3d(x, weight, bias, stride=2)
    assert torch.allclose(ours, plain, atol=1e-12)
    leaves = [t for t in (x, weight, bias) if t is not None]
    loss = torch.randn(plain.shape, dtype=torch.float64, generator=generator)
    for a, b in zip(
        torch.autograd.grad((ours * loss).sum(), leaves), torch.autograd.grad((plain * loss).sum(), leaves), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-11)


def test_autocast_multiplies_in_bfloat16():
    x, weight = torch.randn(1, 8, 4, 4, 4), torch.randn(8, 4, 2, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = upconv3d_2x2x2(x, weight, torch.zeros(4))
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), F.conv_transpose3d(x, weight, stride=2), atol=0.1)


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match="2x2x2"):
        upconv3d_2x2x2(torch.zeros(1, 2, 2, 2, 2), torch.zeros(2, 2, 3, 3, 3))
