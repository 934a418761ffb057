"""Muon: the small-matrix iteration is the textbook one, and it goes where plain gradient descent goes, sooner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.networks import SegMamba
from volseg.training.muon import ITERATIONS, QUINTIC, Muon, orthogonalised


def iterated(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz as it is written down: on the long matrix itself, step by step."""
    x = matrix / (matrix.norm() + 1e-12)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 216), (16, 16), (64, 432)])
def test_the_small_iteration_is_the_long_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(orthogonalised(matrix), iterated(matrix), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(orthogonalised(matrix.T), iterated(matrix).T, rtol=1e-8, atol=1e-8)


def test_singular_values_end_near_one() -> None:
    # A square random matrix has singular values near 0, which five steps do not lift: so a long one.
    matrix = torch.randn((32, 400), generator=torch.Generator().manual_seed(2))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_decay_rates_and_depthwise_kernels_are_not_matrices() -> None:
    network = SegMamba(1, 2, depths=(1, 1, 1, 1), dims=(8, 16, 16, 16), hidden_dim=16)
    optimizer = Muon(network)
    orthogonal = {id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    every = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(every) == len(set(map(id, every))) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        if name.endswith(("A_log", ".D", "bias", "conv.weight")) and parameter.ndim < 5:
            assert id(parameter) not in orthogonal, name
    assert any(p.ndim == 5 and id(p) in orthogonal for p in network.parameters())


def test_matrices_move_as_torchs_own_muon_moves_them() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(24, 40, generator=generator)
    ours, theirs = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)
    for layer in (ours, theirs):
        layer.weight.data.copy_(start)
    optimizers = (
        Muon(ours, 0.01, weight_decay=0.1),
        torch.optim.Muon(theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(5):
        grad = torch.randn(24, 40, generator=generator)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            layer.weight.grad = grad.clone()
            optimizer.step()
    moved = (theirs.weight - start).norm()
    # torch iterates in bfloat16.
    assert (ours.weight - theirs.weight).norm() < 0.02 * moved


def test_it_learns_a_kernel() -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 8, 8, 8, 8)
    wanted = nn.Conv3d(8, 8, 3, padding=1)(x).detach()
    network = nn.Conv3d(8, 8, 3, padding=1)
    optimizer = Muon(network, 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 80)
    first = (network(x) - wanted).square().mean().item()
    for _ in range(80):
        loss = (network(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.01 * first


def test_a_state_that_was_saved_goes_on_in_the_same_bits() -> None:
    def steps(network: nn.Module, optimizer: Muon, count: int, start: int) -> None:
        for i in range(start, start + count):
            x = torch.randn(4, 12, generator=torch.Generator().manual_seed(i))
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    def fresh() -> tuple[nn.Module, Muon]:
        torch.manual_seed(5)
        network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 9))
        return network, Muon(network)

    whole, its = fresh()
    steps(whole, its, 6, 0)
    first, half = fresh()
    steps(first, half, 3, 0)
    second, rest = fresh()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    steps(second, rest, 3, 3)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
