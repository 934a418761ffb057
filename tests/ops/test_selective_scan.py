"""Every backend of the selective scan says what the step-by-step twin says: values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from volseg.ops import selective_scan

FAST = ["numba", "torch"]
# Largest difference from the reference, relative to the largest value, per dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


def arguments(
    *, batch=2, channels=3, length=133, states=16, dtype=torch.float64, gate=True, bias=True, skip=True, device="cpu"
) -> dict[str, Tensor | None]:
    """Inputs like a network's: A near -1..-N, steps around softplus(-2). With gradients."""
    g = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    given = {
        "u": normal(batch, channels, length),
        "delta": 0.5 * normal(batch, channels, length),
        "A": -torch.arange(1, states + 1, dtype=dtype) - 0.1 * normal(channels, states),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": 1 + normal(channels) if skip else None,
        "z": normal(batch, channels, length) if gate else None,
        "delta_bias": normal(channels) - 2 if bias else None,
    }
    return {k: None if v is None else v.to(device).requires_grad_() for k, v in given.items()}


def values_and_gradients(given: dict, softplus: bool, backend: str) -> list[Tensor]:
    y = selective_scan(**given, delta_softplus=softplus, backend=backend)
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y.dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), [t for t in given.values() if t is not None])]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; over 1 where everything is 0 (dA of a single step)."""
    return float((a - b).detach().abs().max() / (b.detach().abs().max() or 1))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("gate", "bias", "skip"), list(itertools.product([True, False], repeat=3)))
def test_a_backend_agrees_with_the_reference_in_values_and_all_gradients(backend, dtype, gate, bias, skip):
    given = arguments(dtype=dtype, gate=gate, bias=bias, skip=skip)
    for ours, twin in zip(
        values_and_gradients(given, True, backend), values_and_gradients(given, True, "reference"), strict=True
    ):
        assert ours.dtype == twin.dtype == dtype
        assert relative(ours, twin) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 197])
@pytest.mark.parametrize("states", [1, 5, 16, 33])
def test_any_length_and_number_of_states_agrees_with_the_reference(backend, length, states):
    given = arguments(batch=1, channels=2, length=length, states=states)
    for ours, twin in zip(
        values_and_gradients(given, True, backend), values_and_gradients(given, True, "reference"), strict=True
    ):
        assert relative(ours, twin) < 1e-12


@pytest.mark.parametrize("backend", FAST)
def test_without_softplus_the_steps_are_taken_as_given(backend):
    given = arguments(bias=False)
    given["delta"] = given["delta"].detach().abs().requires_grad_()
    for ours, twin in zip(
        values_and_gradients(given, False, backend), values_and_gradients(given, False, "reference"), strict=True
    ):
        assert relative(ours, twin) < 1e-12


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck_in_float64(backend, softplus):
    given = arguments(batch=2, channels=2, length=5, states=3)
    if not softplus:  # a step is positive
        given |= {k: given[k].detach().abs().requires_grad_() for k in ("delta", "delta_bias")}
    names = list(given)
    assert torch.autograd.gradcheck(
        lambda *tensors: selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=softplus, backend=backend
        ),
        tuple(given.values()),
    )


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_one_token_by_hand(backend):
    # h = dt*B*u = .5*2*3 = 3; y = C*h + D*u = 4*3 + 10*3 = 42
    y = selective_scan(
        torch.tensor([[[3.0]]]),
        torch.tensor([[[0.5]]]),
        torch.tensor([[-1.0]]),
        torch.tensor([[[2.0]]]),
        torch.tensor([[[4.0]]]),
        torch.tensor([10.0]),
        backend=backend,
    )
    assert y.item() == 42.0


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_pulse_fades_by_half_with_every_step(backend):
    # A*dt = -ln 2: the state halves; B = C = 1 and dt = 1, so the pulse itself enters as 1.
    pulse = torch.zeros(1, 1, 200, dtype=torch.float64)
    pulse[..., 0] = 1
    one = torch.ones_like(pulse)
    y = selective_scan(pulse, one, -torch.log(torch.tensor([[2.0]], dtype=torch.float64)), one, one, backend=backend)
    torch.testing.assert_close(y[0, 0], 0.5 ** torch.arange(200, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", FAST)
def test_strong_decay_and_huge_steps_stay_finite(backend):
    given = arguments(dtype=torch.float32, length=300)
    given["delta"] = (given["delta"].detach() * 200).requires_grad_()  # steps from 0 to 400: exp(-6400) at the far end
    ours, twin = (values_and_gradients(given, True, b) for b in (backend, "reference"))
    for a, b in zip(ours, twin, strict=True):
        assert torch.isfinite(a).all()
        assert relative(a, b) < 2e-5


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_not_a_number_goes_in_and_comes_out_from_there_on(backend):
    given = {k: t.detach() for k, t in arguments(batch=1, channels=2, length=70).items()}
    given["u"][0, 1, 66] = torch.nan
    y = selective_scan(**given, delta_softplus=True, backend=backend)
    assert torch.isfinite(y[0, 0]).all() and torch.isfinite(y[0, 1, :66]).all() and y[0, 1, 66:].isnan().all()


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_computed_in_float32_and_given_back_short(backend, dtype):
    short = {
        k: t if k in ("A", "D", "delta_bias") else t.detach().to(dtype)
        for k, t in arguments(dtype=torch.float32).items()
    }
    y = selective_scan(**short, delta_softplus=True, backend=backend)
    exact = selective_scan(**{k: t.double() for k, t in short.items()}, delta_softplus=True, backend="reference")
    assert y.dtype == dtype
    assert relative(y.double(), exact) < torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", FAST)
def test_gradients_of_short_inputs_come_back_in_their_own_type(backend):
    given = {k: t.detach().bfloat16().requires_grad_() for k, t in arguments().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**given, delta_softplus=True, backend=backend)
    y.float().square().sum().backward()
    for t in given.values():
        assert t.grad.dtype == torch.bfloat16 and torch.isfinite(t.grad).all()


@pytest.mark.parametrize("backend", FAST)
def test_strided_inputs_give_what_contiguous_ones_give(backend):
    given = {k: t.detach() for k, t in arguments().items()}
    strided = {
        k: t.transpose(-1, 0).contiguous().transpose(-1, 0) if t.ndim == 3 else t.repeat_interleave(2, 0)[::2]
        for k, t in given.items()
    }
    assert not strided["u"].is_contiguous() and not strided["A"].is_contiguous()
    ours, twin = (selective_scan(**g, delta_softplus=True, backend=backend) for g in (strided, given))
    torch.testing.assert_close(ours, twin, rtol=0, atol=1e-14)


def test_only_the_asked_gradients_are_needed():
    given = arguments(gate=False)
    alone = {k: t if k == "A" else t.detach() if t is not None else None for k, t in given.items()}
    (ours,) = torch.autograd.grad(selective_scan(**alone, delta_softplus=True, backend="numba").sum(), [given["A"]])
    (twin,) = torch.autograd.grad(selective_scan(**alone, delta_softplus=True, backend="reference").sum(), [given["A"]])
    assert relative(ours, twin) < 1e-12


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    given = arguments(channels=7, length=150)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = values_and_gradients(given, True, "numba")
    finally:
        torch.set_num_threads(before)
    for a, b in zip(ours, values_and_gradients(given, True, "reference"), strict=True):
        assert relative(a, b) < 1e-12


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (2, 3, 9)),
        ("A", (4, 16)),
        ("B", (2, 3, 10)),
        ("C", (1, 16, 10)),
        ("D", (2,)),
        ("z", (2, 3)),
        ("delta_bias", (3, 1)),
    ],
)
def test_a_wrong_shape_is_refused_by_name_with_the_right_one(name, shape):
    given = arguments(length=10)
    given[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"^{name} must have shape \("):
        selective_scan(**given)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="nothing to scan"):
        selective_scan(**arguments(length=0))


def test_whole_numbers_are_refused():
    given = arguments(length=4)
    given["B"] = torch.ones(2, 16, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="B must be real floating point"):
        selective_scan(**given)


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r'unknown backend "jax"; choose "auto" or one of mamba_ssm, numba'):
        selective_scan(**arguments(length=4), backend="jax")


def test_mamba_ssm_is_refused_for_cpu_tensors():
    with pytest.raises(ValueError, match="takes CUDA tensors"):
        selective_scan(**arguments(length=4), backend="mamba_ssm")
