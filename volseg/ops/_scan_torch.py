"""Selective scan in plain torch: step by step (the twin all others are tested against), and chunked for any device.

Both take (u, delta, A, B, C, D, bias, softplus) of one dtype, D and bias (D,) present, and return y (batch, D, L).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _steps(delta: Tensor, bias: Tensor, softplus: bool) -> Tensor:
    delta = delta + bias[:, None]
    return F.softplus(delta) if softplus else delta


def reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, softplus: bool
) -> Tensor:
    """As the formula reads, one token after the other."""
    delta = _steps(delta, bias, softplus)
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    y = []
    for t in range(u.shape[2]):
        dt = delta[:, :, t, None]
        h = torch.exp(dt * A) * h + dt * B[:, None, :, t] * u[:, :, t, None]
        y.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(y, dim=-1) + D[:, None] * u


def chunked(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, softplus: bool
) -> Tensor:
    """All chunks at once from a zero state, then the state carried from chunk to chunk is added.

    About sqrt(L) steps inside a chunk and as many chunks. What a chunk receives decays by exp(A * cumsum(delta)) <= 1
    where A <= 0, so nothing is ever divided by a vanishing number. Memory grows as B*D*L*N under autograd.
    """
    delta = _steps(delta, bias, softplus)
    batch, channels, length = u.shape
    size = max(1, math.isqrt(length))
    chunks = -(-length // size)
    padding = chunks * size - length  # steps of size 0 leave the state as it is

    def split(t: Tensor) -> Tensor:
        return F.pad(t, (0, padding)).unflatten(-1, (chunks, size))

    u_, delta_, B_, C_ = split(u), split(delta), split(B), split(C)  # (batch, D or N, chunks, size)
    h = u.new_zeros(batch, channels, chunks, A.shape[1])
    local = []
    for t in range(size):
        dt = delta_[..., t, None]
        h = torch.exp(dt * A[:, None]) * h + (dt * u_[..., t, None]) * B_[..., t].transpose(1, 2)[:, None]
        local.append(torch.einsum("bdkn,bnk->bdk", h, C_[..., t]))
    since_start = delta_.cumsum(-1)
    whole = torch.exp(since_start[..., -1, None] * A[:, None])  # (batch, D, chunks, N)
    carried, state = [], torch.zeros_like(h[:, :, 0])
    for k in range(chunks):
        carried.append(state)
        state = whole[:, :, k] * state + h[:, :, k]
    received = torch.stack(carried, dim=2)
    brought = [
        torch.einsum("bdkn,bnk->bdk", torch.exp(since_start[..., t, None] * A[:, None]) * received, C_[..., t])
        for t in range(size)
    ]
    y = (torch.stack(local, dim=-1) + torch.stack(brought, dim=-1)).flatten(2)[..., :length]
    return y + D[:, None] * u
