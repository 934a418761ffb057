"""GELU with its sums of squares against the two steps it joins."""

from __future__ import annotations

import pytest
import torch

from volseg.ops import gelu_squares as module
from volseg.ops.gelu_squares import gelu_squares, gelu_squares_reference


def maps(dtype=torch.float64, shape=(2, 50, 12)) -> torch.Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


@pytest.fixture(params=[60, 2**18])
def pieces(request, monkeypatch):
    monkeypatch.setattr(module, "PIECE", request.param)  # five rows at once, or all


@pytest.fixture(params=["numba", "plain"])
def road(request, monkeypatch):
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(module, "installed", lambda _: False)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_those_of_the_two_steps(dtype, digits, pieces, road):
    seeds = maps(dtype).flip(1), maps(torch.float64, (2, 12)).to(torch.promote_types(dtype, torch.float32))
    results = []
    for function in (gelu_squares, gelu_squares_reference):
        h = maps(dtype).requires_grad_()
        y, squares = function(h)
        assert y.dtype == dtype and squares.dtype == seeds[1].dtype
        results.append([y, squares, torch.autograd.grad((y, squares), h, seeds)[0]])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b.double()).norm() <= digits * b.double().norm()


def test_gradcheck(pieces):
    assert torch.autograd.gradcheck(gelu_squares, maps(shape=(2, 7, 3)).requires_grad_())


def test_the_compiled_function_and_slope_are_exact_to_float32_on_the_whole_line():
    pytest.importorskip("numba")
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-30, -1e-30, 90.0, -90.0, 1e4, -1e4])])
    exact, given = x.double().requires_grad_(), x.clone().requires_grad_()
    expected, y = torch.nn.functional.gelu(exact), gelu_squares(given[None, :, None])[0][0, :, 0]
    slope, expected_slope = torch.autograd.grad(y.sum(), given)[0], torch.autograd.grad(expected.sum(), exact)[0]
    digits = 4e-7 * (1 + x.double().abs())
    assert ((y - expected).abs() < digits).all()
    assert ((slope - expected_slope).abs() < 1e-6).all()


def test_not_a_number_stays_one():
    pytest.importorskip("numba")
    h = torch.tensor([[[float("nan")], [1.0]]], requires_grad=True)
    y, squares = gelu_squares(h)
    assert y.isnan().flatten().tolist() == [True, False] and squares.isnan().all()
    y.sum().backward()
    assert h.grad.isnan().flatten().tolist() == [True, False]


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 60)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            h = maps(torch.float32).requires_grad_()
            y, squares = gelu_squares(h)
            found.append((y, squares, torch.autograd.grad((y, squares), h, (y.detach(), squares.detach()))[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_without_gradients_the_input_becomes_the_output(road):
    h = maps(torch.float32, (2, 50, 70))
    expected = gelu_squares_reference(h.clone())
    y, squares = gelu_squares(h)
    assert y.data_ptr() == h.data_ptr()
    torch.testing.assert_close((y, squares), expected)


def test_squares_of_bfloat16_are_summed_in_float32(road):
    # 100,000 ones would stop at 256 in bfloat16.
    h = torch.full((1, 100_000, 1), 10.0, dtype=torch.bfloat16)
    assert gelu_squares(h)[1].item() == pytest.approx(100_000 * 100, rel=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False])
def test_it_can_be_traced_and_the_trace_takes_other_values(road, training):
    traced = torch.jit.trace(gelu_squares, maps(torch.float32).requires_grad_(training), check_trace=False)
    other = maps(torch.float32, (3, 70, 12)) + 1
    torch.testing.assert_close(traced(other), gelu_squares_reference(other))


@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16), (2, 5, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_of_nothing_the_sums_are_zero(shape, training, road):
    h = torch.randn(shape, requires_grad=training)
    y, squares = gelu_squares(h)
    assert y.shape == shape and squares.shape == (shape[0], shape[2]) and not squares.any()
    if training:
        (y.sum() + squares.sum()).backward()
        assert h.grad.shape == shape
