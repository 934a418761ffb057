"""Winograd's convolution against torch's: values and gradients, odd sizes, one and two inputs."""

import pytest
import torch
from torch.nn import functional as F

from volseg.ops import conv3d
from volseg.ops._winograd_cpu import winograd, winograd_weight
from volseg.ops.conv3d import conv3d_1x1x1, conv3d_3x3x3

pytest.importorskip("numba")

SIZES = [(1, 1, 1), (2, 3, 5), (5, 4, 32), (4, 7, 33), (3, 6, 64), (3, 2, 97)]


def tensors(size, ca, cb, cout, dtype=torch.float64, batch=2):
    torch.manual_seed(sum(size) + ca)
    x, also = torch.randn(batch, ca, *size, dtype=dtype), torch.randn(batch, cb, *size, dtype=dtype)
    weight, bias = torch.randn(cout, ca + cb, 3, 3, 3, dtype=dtype), torch.randn(cout, dtype=dtype)
    return [t.requires_grad_() for t in (x, also, weight, bias)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("ca", "cb", "cout"), [(1, 0, 1), (3, 0, 8), (2, 3, 9)])
def test_values_and_gradients_equal_torchs(size, ca, cb, cout):
    x, also, weight, bias = tensors(size, ca, cb, cout)
    given = [x, also, weight, bias] if cb else [x, weight, bias]
    ours = conv3d._Convolution.apply(x, also if cb else None, weight, bias)
    plain = F.conv3d(torch.cat([x, also], 1) if cb else x, weight, bias, padding=1)
    assert torch.allclose(ours, plain, atol=1e-11)
    seed = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(ours, given, seed), torch.autograd.grad(plain, given, seed), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2])
def test_float32_through_the_front_door_is_within_rounding(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        x, also, weight, bias = (t.detach() for t in tensors((17, 18, 40), 16, 16, 24, torch.float32))
        exact = F.conv3d(torch.cat([x, also], 1).double(), weight.double(), bias.double(), padding=1)
        calls = []
        original = conv3d.winograd
        conv3d.winograd = lambda *a: calls.append(1) or original(*a)
        try:
            y = conv3d_3x3x3(x, weight, bias, also=also)
        finally:
            conv3d.winograd = original
        assert calls, "the fast road was not taken"
        assert (y - exact).abs().max() < 3e-6 * exact.abs().max()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("cin", "cout"), [(1, 1), (9, 17), (25, 35), (50, 52), (16, 100)])
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 4, 33), (3, 2, 97)])
def test_weight_gradient_equals_torchs_for_any_number_of_channels(cin, cout, size, threads):
    torch.manual_seed(0)
    x, dy = torch.randn(2, cin, *size, dtype=torch.float64), torch.randn(2, cout, *size, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = winograd_weight(x, dy)
    finally:
        torch.set_num_threads(before)
    exact = torch.nn.grad.conv3d_weight(x, (cout, cin, 3, 3, 3), dy, padding=1)
    assert (ours - exact).abs().max() < 1e-11 * max(1, float(exact.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_is_within_rounding(dtype):
    torch.manual_seed(0)
    # A mean makes the sum over the voxels large: what is added one by one would lose digits.
    x, dy = (torch.randn(2, 18, 33, 34, 35) + 1).to(dtype), (torch.randn(2, 20, 33, 34, 35) + 1).to(dtype)
    ours = winograd_weight(x, dy)
    exact = torch.nn.grad.conv3d_weight(x.double(), (20, 18, 3, 3, 3), dy.double(), padding=1)
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 5e-6 * exact.abs().max()


def test_training_through_the_front_door_uses_the_compiled_weight_gradient(monkeypatch):
    x, also, weight, bias = (t.detach().requires_grad_() for t in tensors((16, 16, 18), 16, 16, 20, torch.float32))
    calls, original = [], conv3d.winograd_weight
    monkeypatch.setattr(conv3d, "winograd_weight", lambda *a: calls.append(1) or original(*a))
    given, doubled = [x, also, weight, bias], [t.detach().double().requires_grad_() for t in (x, also, weight, bias)]
    seed = torch.randn(2, 20, 16, 16, 18)
    ours = torch.autograd.grad(conv3d_3x3x3(x, weight, bias, also=also), given, seed)
    plain = F.conv3d(torch.cat(doubled[:2], 1), *doubled[2:], padding=1)
    assert len(calls) == 2, "once for each input"
    for a, e in zip(ours, torch.autograd.grad(plain, doubled, seed.double()), strict=True):
        assert (a - e).abs().max() < 1e-5 * e.abs().max()


@pytest.mark.parametrize("turned", [False, True])
def test_weights_are_transformed_anew_after_they_changed(turned):
    x, weight = torch.randn(1, 8, 4, 4, 32), torch.randn(8, 8, 3, 3, 3)
    for _ in range(2):
        kernel = weight.transpose(0, 1).flip(2, 3, 4) if turned else weight
        assert torch.allclose(winograd(x, None, weight, None, turned=turned), F.conv3d(x, kernel, padding=1), atol=1e-4)
        weight.data.add_(torch.randn_like(weight))  # what no version counter sees


needs_bfloat16 = pytest.mark.skipif(not conv3d._multiplies_bfloat16(), reason="this CPU does not multiply bfloat16")


@needs_bfloat16
@pytest.mark.parametrize("size", [(4, 7, 33), (3, 6, 64), (5, 4, 97)])
@pytest.mark.parametrize(("ca", "cb", "cout"), [(1, 0, 3), (5, 0, 8), (4, 3, 9)])
def test_bfloat16_is_within_twice_its_rounding(size, ca, cb, cout):
    x, also, weight, bias = (t.detach().float() for t in tensors(size, ca, cb, cout))
    x, also = x.bfloat16(), also.bfloat16()
    both = torch.cat([x, also], 1) if cb else x
    exact = F.conv3d(both.double(), weight.double(), bias.double(), padding=1)
    ours = conv3d.winograd(x, also if cb else None, weight, bias)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).pow(2).mean().sqrt() < 6e-3 * exact.pow(2).mean().sqrt()
    assert (ours - exact).abs().max() < 1.5e-2 * exact.abs().max()


@needs_bfloat16
def test_autocast_in_inference_takes_bfloat16_winograd(monkeypatch):
    x, weight = torch.randn(1, 16, 16, 16, 16), torch.randn(16, 16, 3, 3, 3)
    calls, original = [], conv3d.winograd
    monkeypatch.setattr(conv3d, "winograd", lambda *a: calls.append(a[0].dtype) or original(*a))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            assert conv3d_3x3x3(x, weight).dtype == torch.bfloat16
        assert conv3d_3x3x3(x, weight.requires_grad_()).dtype == torch.bfloat16
    assert calls == [torch.bfloat16], "once in inference, not in training"


def test_other_types_and_autocast_go_to_torch(monkeypatch):
    monkeypatch.setattr(conv3d, "winograd", lambda *a: pytest.fail("Winograd on something it cannot take"))
    x, weight = torch.randn(1, 16, 16, 16, 16), torch.randn(16, 16, 3, 3, 3)
    conv3d_3x3x3(x.double(), weight.double())
    conv3d_3x3x3(x[:, :8], weight[:, :8])
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3d_3x3x3(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(conv3d, "installed", lambda _: False)
    conv3d_3x3x3(x, weight)


# What the compiled kernels would read beyond, at the sizes they take: 16 channels and 16^3 voxels on.
WRONG = {
    "the weight of another number of channels": {"weight": (16, 64, 3, 3, 3)},
    "the weight of x alone": {"weight": (16, 16, 3, 3, 3)},
    "another batch": {"also": (1, 16, 16, 16, 16)},
    "another size": {"also": (2, 16, 16, 16, 15)},
    "the same voxels in another order": {"also": (2, 16, 16, 8, 32)},
    "one bias too few": {"bias": (15,)},
    "one bias for all": {"bias": (1,)},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrong", WRONG)
def test_shapes_that_do_not_fit_are_left_to_torch_which_refuses_them(wrong, training):
    fitting = {"x": (2, 16, 16, 16, 16), "also": (2, 16, 16, 16, 16), "weight": (16, 32, 3, 3, 3), "bias": (16,)}
    given = {name: torch.zeros(shape, requires_grad=training) for name, shape in (fitting | WRONG[wrong]).items()}
    with pytest.raises(RuntimeError):
        conv3d_3x3x3(**given)


def test_a_kernel_of_another_size_is_torchs():
    x, weight = torch.randn(1, 16, 16, 16, 16), torch.randn(16, 16, 5, 5, 5)
    assert torch.equal(conv3d_3x3x3(x, weight), F.conv3d(x, weight, padding=1))


@pytest.mark.parametrize("shapes", [[(0, 16, 16, 16, 16)], [(0, 16, 16, 16, 16), (0, 8, 16, 16, 16)]])
def test_an_empty_batch_gives_an_empty_batch_and_gradients_of_zero(shapes):
    x, *also = [torch.randn(shape, requires_grad=True) for shape in shapes]
    weight = torch.randn(20, sum(shape[1] for shape in shapes), 3, 3, 3, requires_grad=True)
    y = conv3d_3x3x3(x, weight, also=also[0] if also else None)
    assert y.shape == (0, 20, 16, 16, 16)
    y.sum().backward()
    assert x.grad.shape == x.shape and not weight.grad.any()


def test_a_second_input_without_channels_changes_nothing():
    x, weight = torch.randn(1, 16, 16, 16, 16), torch.randn(16, 16, 3, 3, 3, requires_grad=True)
    seed = torch.randn(1, 16, 16, 16, 16)
    (alone,) = torch.autograd.grad(conv3d_3x3x3(x, weight), weight, seed)
    (beside,) = torch.autograd.grad(conv3d_3x3x3(x, weight, also=x[:, :0]), weight, seed)
    assert (alone - beside).abs().max() < 1e-5 * alone.abs().max()


def test_a_gradient_of_the_gradient_is_refused_for_it_would_be_wrong():
    x, weight = (torch.randn(s, requires_grad=True) for s in ((1, 16, 16, 16, 16), (16, 16, 3, 3, 3)))
    (dx,) = torch.autograd.grad(conv3d_3x3x3(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (dx.square().sum() + x.sum()).backward()


@pytest.mark.parametrize("cb", [0, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_pointwise_equals_torchs_in_values_and_gradients(cb, biased):
    x, also, weight, bias = tensors((3, 4, 5), 2, cb, 6)
    weight = weight.detach()[..., :1, :1, :1].clone().requires_grad_()
    given = [x, weight] + [also] * bool(cb) + [bias] * biased
    ours = conv3d_1x1x1(x, weight, bias if biased else None, also=also if cb else None)
    plain = F.conv3d(torch.cat([x, also], 1) if cb else x, weight, bias if biased else None)
    assert torch.allclose(ours, plain, atol=1e-12)
    seed = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(ours, given, seed), torch.autograd.grad(plain, given, seed), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": (6, 9, 1, 1, 1)},
        {"weight": (6, 5, 3, 3, 3)},
        {"also": (2, 3, 4, 3, 5)},
        {"also": (1, 3, 3, 4, 5)},
        {"bias": (1,)},
    ],
)
def test_a_pointwise_convolution_of_other_shapes_is_refused_in_words(wrong):
    fitting = {"x": (2, 2, 3, 4, 5), "also": (2, 3, 3, 4, 5), "weight": (6, 5, 1, 1, 1), "bias": (6,)}
    with pytest.raises(ValueError, match=r"1x1x1 convolution takes x .* \(Cout,\), got x \(2, 2, 3, 4, 5\), also \("):
        conv3d_1x1x1(**{name: torch.zeros(shape) for name, shape in (fitting | wrong).items()})


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 4, 4)])
def test_training_in_bfloat16_gives_right_gradients_where_the_first_axis_has_two_voxels(size):
    """oneDNN's own are uninitialised memory there, in a third of the calls (torch 2.13)."""
    torch.manual_seed(0)
    x, also = torch.randn(2, 8, *size), torch.randn(2, 8, *size)
    convolution = conv3d.Conv3x3x3(16, 16)
    convolution(torch.cat([x, also], dim=1)).square().sum().backward()
    wanted = convolution.weight.grad.clone()
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            y = conv3d_3x3x3(x.bfloat16(), convolution.weight, convolution.bias, also=also.bfloat16())
        (given,) = torch.autograd.grad(y.float().square().sum(), convolution.weight)
        assert float((given - wanted).norm() / wanted.norm()) < 0.02


def test_the_module_is_torchs_with_the_same_weights():
    torch.manual_seed(0)
    ours, plain = conv3d.Conv3x3x3(16, 24), torch.nn.Conv3d(16, 24, 3, padding=1)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(1, 16, 18, 17, 16)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
