"""In which order the positions of a feature map are read as tokens: a noun, and the plain way from one to the other.

Knows neither scan nor convolution. Kernels that step through positions in any order take its two fields as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TokenOrder:
    """Positions 0..L-1 lie in `num_slices` slices, one after the other; tokens take one position of each slice in turn.

    Token t lies at position (t % num_slices) * (L / num_slices) + t // num_slices, so one slice is the order of the
    positions themselves. `backwards` starts at the last token: token t is what was token L - 1 - t.
    """

    num_slices: int = 1
    backwards: bool = False

    def check(self, length: int) -> None:
        """Raise ValueError if `length` positions cannot be cut into `num_slices` slices."""
        if self.num_slices < 1 or length % self.num_slices:
            raise ValueError(f"{length} tokens cannot be cut into {self.num_slices} slices of one size")


AHEAD = TokenOrder()
BACK = TokenOrder(backwards=True)


def across(num_slices: int) -> TokenOrder:
    """Slice-wise: the same place in every slice, then the next place (the third reading of SegMamba)."""
    return TokenOrder(num_slices)


def to_tokens(x: Tensor, order: TokenOrder) -> Tensor:
    """(..., L) by position -> (..., L) by token. Raises ValueError where the slices do not divide L."""
    order.check(x.shape[-1])
    if order.num_slices > 1:
        x = x.unflatten(-1, (order.num_slices, -1)).transpose(-1, -2).flatten(-2)
    return x.flip(-1) if order.backwards else x


def to_positions(y: Tensor, order: TokenOrder) -> Tensor:
    """(..., L) by token -> (..., L) by position: `to_tokens` undone."""
    order.check(y.shape[-1])
    if order.backwards:
        y = y.flip(-1)
    if order.num_slices > 1:
        y = y.unflatten(-1, (-1, order.num_slices)).transpose(-1, -2).flatten(-2)
    return y
