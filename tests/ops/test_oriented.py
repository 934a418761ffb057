"""Convolution and scan along an order of tokens: the kernels that step through positions say what their twins say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.networks.mamba import MambaLayer, TriOrientedMamba
from volseg.ops.causal_conv import causal_conv1d
from volseg.ops.oriented import oriented_conv_silu, oriented_scan, steps_in_any_order
from volseg.ops.selective_scan import selective_scan
from volseg.ops.token_order import AHEAD, BACK, TokenOrder, across, to_positions, to_tokens

# (tokens, order): odd lengths, one token, fewer columns than taps, a last block and a last tile that are not full
CASES = [
    (133, AHEAD),
    (1200, AHEAD),
    (133, BACK),
    (1200, BACK),
    (133, across(7)),
    (2 * 300, across(2)),
    (64 * 35, across(64)),
    (133, across(133)),
    (1, AHEAD),
    (1, BACK),
    (3, across(3)),
    (64 * 18, TokenOrder(64, backwards=True)),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # largest difference over largest value


def normal(*shape: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scan_arguments(length: int, *, channels=3, states=16, dtype=torch.float64, batch=2) -> list[Tensor]:
    return [
        normal(batch, channels, length, dtype=dtype),
        0.5 * normal(batch, channels, length, dtype=dtype, seed=1),
        -torch.arange(1, states + 1, dtype=dtype) - 0.1 * normal(channels, states, dtype=dtype, seed=2),
        normal(batch, states, length, dtype=dtype, seed=3),
        normal(batch, states, length, dtype=dtype, seed=4),
        normal(channels, dtype=dtype, seed=5),
        normal(channels, dtype=dtype, seed=6) - 2,
    ]


def conv_arguments(length: int, *, channels=3, taps=4, dtype=torch.float64, batch=2) -> list[Tensor]:
    return [
        normal(batch, channels, length, dtype=dtype),
        normal(channels, 1, taps, dtype=dtype, seed=1),
        normal(channels, dtype=dtype, seed=2),
    ]


def scan_twin(u, delta, A, B, C, D, bias, order) -> Tensor:
    u, delta, B, C = (to_tokens(t, order) for t in (u, delta, B, C))
    return to_positions(selective_scan(u, delta, A, B, C, D, None, bias, True, backend="torch"), order)


def conv_twin(x, weight, bias, order) -> Tensor:
    return to_positions(F.silu(causal_conv1d(to_tokens(x, order), weight, bias)), order)


def values_and_gradients(function, given: list[Tensor], *rest, **options) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in given]
    y = function(*leaves, *rest, **options)
    weight = torch.cos(torch.arange(y.numel())).bfloat16().view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; over 1 where everything is 0 (dA of a single step)."""
    return float((a - b).abs().max() / (b.abs().max() or 1))


def assert_close(ours: list[Tensor], twin: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, twin, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert relative(a, b) < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("states", [8, 16])
@pytest.mark.parametrize(("length", "order"), CASES)
def test_the_scan_agrees_with_its_twin_in_values_and_all_gradients(length, order, states, dtype):
    given = scan_arguments(length, states=states, dtype=dtype)
    ours, twin = values_and_gradients(oriented_scan, given, order), values_and_gradients(scan_twin, given, order)
    assert_close(ours, twin, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("length", "order"), CASES)
def test_the_convolution_agrees_with_its_twin_in_values_and_all_gradients(length, order, dtype):
    given = conv_arguments(length, dtype=dtype)
    ours, twin = values_and_gradients(oriented_conv_silu, given, order), values_and_gradients(conv_twin, given, order)
    assert_close(ours, twin, TOLERANCE[dtype])


@pytest.mark.parametrize("taps", [1, 2, 7])
@pytest.mark.parametrize("order", [AHEAD, BACK, across(3)])
def test_any_number_of_taps_agrees_with_the_twin_over_several_chunks(order, taps):
    given = conv_arguments(3 * 1500, taps=taps)  # rows are taken 1024 positions at a time
    ours, twin = values_and_gradients(oriented_conv_silu, given, order), values_and_gradients(conv_twin, given, order)
    assert_close(ours, twin, 1e-12)


@pytest.mark.parametrize("order", [AHEAD, BACK, across(3), TokenOrder(2, backwards=True)])
def test_gradcheck_in_float64(order):
    scan = [t.requires_grad_() for t in scan_arguments(6, channels=2, states=3)]
    assert torch.autograd.gradcheck(lambda *t: oriented_scan(*t, order, backend="numba"), scan)
    conv = [t.requires_grad_() for t in conv_arguments(6, channels=2)]
    assert torch.autograd.gradcheck(lambda *t: oriented_conv_silu(*t, order, backend="numba"), conv)


@pytest.mark.parametrize("order", [AHEAD, BACK, across(2)])
def test_a_convolution_by_hand(order):
    # tokens 1 2 3 4, taps (10, 1): token + 10 * the one before; silu(v) = v to eight digits from 20 on
    x = to_positions(torch.tensor([[[1.0, 2, 3, 4]]], dtype=torch.float64), order)
    weight = torch.tensor([[[10.0, 1.0]]], dtype=torch.float64)
    y = to_tokens(oriented_conv_silu(x, weight, torch.full((1,), 20.0, dtype=torch.float64), order), order)
    torch.testing.assert_close(y[0, 0], torch.tensor([21.0, 32, 43, 54], dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("order", [AHEAD, BACK, across(7)])
@pytest.mark.parametrize("u_dtype", [torch.float32, torch.bfloat16])
def test_the_scan_reads_and_writes_bfloat16_with_one_rounding(order, u_dtype):
    given = scan_arguments(133, dtype=torch.float32)
    short = [given[0].to(u_dtype), *(given[i].bfloat16() if i in (1, 3, 4) else given[i] for i in range(1, 7))]
    ours = values_and_gradients(oriented_scan, short, order)
    exact = values_and_gradients(scan_twin, [t.double() for t in short], order)
    for a, b, like in zip(ours, exact, [short[0], *short], strict=True):
        assert a.dtype == like.dtype
        assert relative(a.double(), b) < (2**-8 if a.dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("order", [AHEAD, BACK, across(7)])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_the_convolution_of_bfloat16_has_the_wider_type_of_input_and_weight(order, weight_dtype):
    x, weight, bias = conv_arguments(133)
    short = [x.bfloat16(), weight.to(weight_dtype), bias.to(weight_dtype)]
    ours = values_and_gradients(oriented_conv_silu, short, order)
    exact = values_and_gradients(conv_twin, [t.double() for t in short], order)
    for a, b, dtype in zip(ours, exact, [weight_dtype, *(t.dtype for t in short)], strict=True):
        assert a.dtype == dtype
        assert relative(a.double(), b) < (2**-8 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_stay_as_other_backends_have_them(dtype):
    given = [t.to(dtype) for t in scan_arguments(12)]
    conv = [t.to(dtype) for t in conv_arguments(12)]
    for backend in ("numba", "torch"):
        assert oriented_scan(*given, across(3), backend=backend).dtype == dtype
        assert oriented_conv_silu(*conv, across(3), backend=backend).dtype == dtype


@pytest.mark.parametrize("order", [AHEAD, BACK, across(7)])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_result_is_added_to_an_earlier_one_and_so_are_its_gradients(order, backend):
    def onto(*given: Tensor) -> Tensor:
        return oriented_scan(*given[:7], order, onto=2 * given[7], backend=backend)

    def plain(*given: Tensor) -> Tensor:
        return scan_twin(*given[:7], order) + 2 * given[7]

    given = [*scan_arguments(133), normal(2, 3, 133, seed=7)]
    assert_close(values_and_gradients(onto, given), values_and_gradients(plain, given), 1e-12)


def test_an_earlier_result_of_another_type_or_layout_is_left_alone_and_still_added():
    given = scan_arguments(12, dtype=torch.float32)
    y = oriented_scan(*given, AHEAD)
    for earlier in (normal(2, 3, 12), normal(2, 12, 3, dtype=torch.float32).transpose(1, 2)):
        before = earlier.clone()
        found = oriented_scan(*given, AHEAD, onto=earlier)
        assert torch.equal(earlier, before)
        torch.testing.assert_close(found, earlier + y)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    order, scan, conv = across(3), scan_arguments(150, channels=7), conv_arguments(150, channels=7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = [values_and_gradients(oriented_scan, scan, order), values_and_gradients(oriented_conv_silu, conv, order)]
    finally:
        torch.set_num_threads(before)
    assert_close(ours[0], values_and_gradients(scan_twin, scan, order), 1e-12)
    assert_close(ours[1], values_and_gradients(conv_twin, conv, order), 1e-12)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_convolution_without_bias_is_one_with_a_bias_of_zero(backend):
    x, weight, bias = conv_arguments(50)
    found = oriented_conv_silu(x, weight, None, BACK, backend=backend)
    assert torch.equal(found, oriented_conv_silu(x, weight, 0 * bias, BACK, backend=backend))


def test_half_of_the_channels_of_a_larger_tensor_is_taken_as_it_lies():
    x, weight, bias = conv_arguments(50, channels=6)
    weight, bias = weight[:3], bias[:3]
    half = x.chunk(2, dim=1)[1]
    assert not half.is_contiguous()
    torch.testing.assert_close(
        oriented_conv_silu(half, weight, bias, BACK), conv_twin(half, weight, bias, BACK), rtol=1e-12, atol=1e-12
    )


def test_slices_that_do_not_divide_the_tokens_are_refused_by_every_backend():
    for backend in ("numba", "torch"):
        with pytest.raises(ValueError, match="12 tokens cannot be cut into 5 slices"):
            oriented_scan(*scan_arguments(12), across(5), backend=backend)
        with pytest.raises(ValueError, match="12 tokens cannot be cut into 5 slices"):
            oriented_conv_silu(*conv_arguments(12), across(5), backend=backend)


def test_a_wrong_shape_is_refused_by_name():
    given = scan_arguments(12)
    given[3] = given[3][..., :11]
    with pytest.raises(ValueError, match=r"^B must have shape \("):
        oriented_scan(*given, AHEAD)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("weight", "bias", "name"),
    [((4, 1, 4), (4,), "weight"), ((8, 1, 4), (4,), "bias"), ((16, 1, 4), (16,), "weight"), ((8, 4), (8,), "weight")],
)
def test_a_convolution_of_other_channels_is_refused_by_every_backend(weight, bias, name, backend):
    with pytest.raises(ValueError, match=rf"^{name} must have shape \(8,.* beside x \(1, 8, 12\)"):
        oriented_conv_silu(torch.zeros(1, 8, 12), torch.zeros(weight), torch.zeros(bias), AHEAD, backend=backend)


def test_only_numba_on_the_cpu_steps_in_any_order():
    x = torch.zeros(1, 1, 4)
    assert steps_in_any_order(x) and steps_in_any_order(x, "numba")
    assert not steps_in_any_order(x, "torch") and not steps_in_any_order(x.to("meta"))


# ---- the three readings of a feature map


def with_flips_and_permutations(tom: TriOrientedMamba, tokens: Tensor, num_slices: int) -> Tensor:
    """TriOrientedMamba as it stood before the kernels knew orders: every reading puts its tokens in a row first."""

    def reading(ssm, x: Tensor) -> Tensor:
        x = F.silu(causal_conv1d(x, ssm.conv.weight, ssm.conv.bias))
        dt, B, C = (ssm.x_proj.weight @ x).split([ssm.rank, ssm.states, ssm.states], dim=1)
        A = -torch.exp(ssm.A_log)
        return selective_scan(
            x, ssm.dt_proj.weight @ dt, A, B, C, ssm.D, None, ssm.dt_proj.bias, True, backend="reference"
        )

    x, z = (tom.in_proj.weight @ tokens.transpose(1, 2)).chunk(2, dim=1)
    by_slice = x.unflatten(2, (num_slices, -1)).transpose(2, 3).flatten(2)
    y = reading(tom.ahead, x) + reading(tom.back, x.flip(2)).flip(2)
    y = y + reading(tom.across, by_slice).unflatten(2, (-1, num_slices)).transpose(2, 3).flatten(2)
    return tom.out_proj.weight @ (y * F.silu(z))


@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
@pytest.mark.parametrize(("length", "num_slices"), [(60, 4), (7, 1), (9, 9)])
def test_three_readings_in_place_are_those_with_flips_and_permutations(length, num_slices, backend):
    torch.manual_seed(0)
    tom = TriOrientedMamba(5, backend=backend).double()
    tokens = normal(2, length, 5).requires_grad_()
    found = []
    for function in (tom, lambda *a: with_flips_and_permutations(tom, *a)):
        y = function(tokens, num_slices)
        weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
        found.append([y, *torch.autograd.grad((y * weight).sum(), [tokens, *tom.parameters()])])
    assert len(found[0]) == 2 + 2 + 3 * 7
    assert_close(*([t.detach() for t in one] for one in found), 1e-11)


def test_three_readings_in_float32_are_close_to_those_with_flips_and_permutations():
    torch.manual_seed(0)
    tom, tokens = TriOrientedMamba(8), normal(2, 192, 8, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(tom(tokens, 6), with_flips_and_permutations(tom, tokens, 6), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_mamba_layer_can_be_traced_and_the_trace_takes_other_values():
    torch.manual_seed(0)
    layer = MambaLayer(4).eval()
    traced = torch.jit.trace(layer, normal(1, 4, 3, 2, 2, dtype=torch.float32))
    other = normal(1, 4, 3, 2, 2, dtype=torch.float32, seed=9)
    with torch.no_grad():
        torch.testing.assert_close(traced(other), layer(other), rtol=0, atol=1e-5)


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None  # importing it now raises ImportError
import torch
from volseg.ops.oriented import oriented_conv_silu, oriented_scan, steps_in_any_order
from volseg.ops.token_order import across
x, weight = torch.linspace(-1, 1, 24).view(1, 2, 12), torch.ones(2, 1, 4)
assert not steps_in_any_order(x)
x = oriented_conv_silu(x, weight, torch.ones(2), across(3))
y = oriented_scan(x, x, -torch.ones(2, 1), x[:, :1], x[:, 1:], torch.ones(2), torch.ones(2), across(3))
assert not [name for name in sys.modules if name.endswith("_numba")]
print(repr(y.sum().item()))
"""


def test_where_numba_is_missing_the_answer_is_the_same():
    x, ones = torch.linspace(-1, 1, 24).view(1, 2, 12), torch.ones(2)
    x = oriented_conv_silu(x, torch.ones(2, 1, 4), ones, across(3))
    y = oriented_scan(x, x, -torch.ones(2, 1), x[:, :1], x[:, 1:], ones, ones, across(3))
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(y.sum().item(), rel=1e-5)
