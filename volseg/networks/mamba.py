"""Tri-orientated Mamba (ToM) of SegMamba: a feature map is read as a line of tokens in three orders.

Paper: Xing et al., arXiv 2401.13560, sec. 2.2; the state space model itself: Gu & Dao, arXiv 2312.00752.
Everything between the two projections is kept channels first and by position, (B, E, L): the orders differ only in the
path that convolution and scan take through it. The gate silu(z) is the same for a token in whatever order it is read,
so it multiplies the sum of the three readings once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.ops.oriented import oriented_conv_silu, oriented_scan, steps_in_any_order
from volseg.ops.selective_scan import Backend
from volseg.ops.token_order import AHEAD, BACK, TokenOrder, across, to_positions, to_tokens


def _project(weight: Tensor, x: Tensor) -> Tensor:
    """(O, C) times (B, C, L) -> (B, O, L). matmul would transpose a copy of x, and hand back a transposed product."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


class SelectiveSSM(nn.Module):
    """Causal depthwise convolution, SiLU, selective scan, over tokens in the order given. All (B, E, L) by position."""

    def __init__(
        self, channels: int, rank: int, *, states: int = 16, kernel_size: int = 4, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.rank, self.states, self.backend = rank, states, backend
        self.conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)  # holds the parameters only
        self.x_proj = nn.Linear(channels, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():  # steps start between .001 and .1, log-uniform; the bias is softplus inverted
            dt = torch.exp(torch.empty(channels).uniform_(math.log(0.001), math.log(0.1)))
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(self, x: Tensor, order: TokenOrder = AHEAD, onto: Tensor | None = None) -> Tensor:
        """`onto`: an earlier reading that this one is added to, perhaps in place."""
        if order != AHEAD and not steps_in_any_order(x, self.backend):  # put in order once, not by every operation
            y = to_positions(self.forward(to_tokens(x, order)), order)
            return y if onto is None else onto + y
        x = oriented_conv_silu(x, self.conv.weight, self.conv.bias, order, backend=self.backend)
        dt, B, C = _project(self.x_proj.weight, x).split([self.rank, self.states, self.states], dim=1)
        delta = _project(self.dt_proj.weight, dt)
        A = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        return oriented_scan(x, delta, A, B, C, self.D, self.dt_proj.bias, order, onto=onto, backend=self.backend)


class TriOrientedMamba(nn.Module):
    """ToM: forward, backward and slice-wise reading, SegMamba fig. 2 (c). Tokens (B, L, C) -> (B, C, L)."""

    def __init__(self, channels: int, *, states: int = 16, kernel_size: int = 4, backend: Backend = "auto") -> None:
        super().__init__()
        inner, rank = 2 * channels, math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.ahead, self.back, self.across = (
            SelectiveSSM(inner, rank, states=states, kernel_size=kernel_size, backend=backend) for _ in range(3)
        )
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, num_slices: int) -> Tensor:
        length = tokens.shape[1]
        if length % num_slices:
            raise ValueError(
                f"{length} tokens cannot be cut into {num_slices} slices; num_slices=None takes the feature map's own"
            )
        x, z = _project(self.in_proj.weight, tokens.transpose(1, 2)).chunk(2, dim=1)
        y = self.ahead(x, AHEAD)
        y = self.back(x, BACK, onto=y)
        y = self.across(x, across(num_slices), onto=y)
        return _project(self.out_proj.weight, y * F.silu(z))


class MambaLayer(nn.Module):
    """x + ToM(LayerNorm(x)) over the voxels of a feature map, SegMamba fig. 2 (b). (B, C, X, Y, Z) -> same.

    num_slices: slices for the slice-wise reading; None takes the map's own, x.shape[2].
    """

    def __init__(self, channels: int, *, num_slices: int | None = None, backend: Backend = "auto") -> None:
        super().__init__()
        self.num_slices = num_slices
        self.norm = nn.LayerNorm(channels)
        self.mamba = TriOrientedMamba(channels, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return x + self.mamba(tokens, self.num_slices or x.shape[2]).view_as(x)
