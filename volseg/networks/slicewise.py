"""Volumes cut into slices for a 2D network, and its answers stacked again. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def to_slices(x: Tensor, slice_axis: int, context: int = 0) -> Tensor:
    """(B, C, X, Y, Z) -> the slices across a spatial axis, (B * N, C * (2 * context + 1), ...), N of them per volume.

    context: neighbours to either side that come as further channels (2.5D), channel by channel and in their order in
    space; beyond the first and the last slice that slice itself.
    """
    batch, count = x.shape[0], x.shape[2 + slice_axis]
    x = x.movedim(2 + slice_axis, 1)  # (B, N, C, ...)
    if context:
        places = torch.arange(count, device=x.device)[:, None] + torch.arange(-context, context + 1, device=x.device)
        x = x[:, places.clamp(0, count - 1)].movedim(2, 3)  # (B, N, C, neighbours, ...)
        x = x.flatten(2, 3)
    return x.reshape(batch * count, *x.shape[2:])


def from_slices(y: Tensor, slice_axis: int, batch: int) -> Tensor:
    """(B * N, K, ...) -> (B, K, X, Y, Z): `to_slices` undone, for `batch` volumes."""
    return y.unflatten(0, (batch, -1)).movedim(1, 2 + slice_axis)


def with_context(weight: Tensor, context: int) -> Tensor:
    """Weights (out, C, ...) of a first convolution over single slices -> (out, C * (2 * context + 1), ...).

    Neighbours weigh nothing yet: the network answers as before until it is trained on.
    """
    inflated = weight.new_zeros(weight.shape[0], weight.shape[1], 2 * context + 1, *weight.shape[2:])
    inflated[:, :, context] = weight
    return inflated.flatten(1, 2)


class SliceWise(nn.Module):
    """A 2D network that takes volumes, slice by slice. (B, C, X, Y, Z) -> (B, K, X, Y, Z).

    A batch of single slices (B, C, X, Y) goes straight to the network, so one bundle trains on slices and reads
    volumes, with one set of weights. All slices of a volume make one batch: the sliding window says how many.

    Args:
        network: takes slices, with C * (2 * context + 1) channels.
        slice_axis: the spatial axis slices are stacked along; 2 (axial) or 0 (sagittal) in RAS+. Several axes: the
            volume is read once across each, and the answers are averaged.
        context: neighbouring slices to either side, see `to_slices`.
    """

    def __init__(self, network: nn.Module, *, slice_axis: int | Sequence[int] = 2, context: int = 0) -> None:
        super().__init__()
        axes = (slice_axis,) if isinstance(slice_axis, int) else tuple(slice_axis)
        if not axes or not set(axes) <= {0, 1, 2} or context < 0:
            raise ValueError(f"slice_axis must be 0, 1 or 2 and context 0 or more, got {slice_axis} and {context}")
        self.network, self.slice_axes, self.context = network, axes, context

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.network(x)
        if x.ndim != 5:
            raise ValueError(f"SliceWise takes (batch, channels, X, Y, Z) or single slices, got shape {tuple(x.shape)}")
        answers = [self._across(x, axis) for axis in self.slice_axes]
        return answers[0] if len(answers) == 1 else torch.stack(answers).mean(dim=0)

    def _across(self, x: Tensor, axis: int) -> Tensor:
        try:
            y = self.network(to_slices(x, axis, self.context))
        except ValueError as refusal:
            raise ValueError(f"{refusal} (in slices of {tuple(x.shape[2:])} across axis {axis})") from refusal
        return from_slices(y, axis, x.shape[0])
