"""Overlapping windows are summed in a ring of planes, one window thick; planes leave it blended, in order.

What is summed are logits, or the features that the network's last convolution would make logits of (`head.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.inference.head import Head
from volseg.inference.windows import Corner

# Logit of background where no window looked: softmax of (10, -10) is 2e-9 for every other class.
UNSEEN_LOGIT = 10.0
# Blended planes leave in pieces of about this size, so that what reads them need not hold a whole window's thickness.
SLAB_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Slab:
    """Blended values (C, planes, Y, Z), float32, of the planes from `first` on. Its memory is the reader's to keep.

    With a `head` the values are features, else logits. `unseen` (planes, Y, Z) is True where no window looked; there
    class 0 has logit +10 and the others -10.
    """

    first: int
    values: Tensor
    unseen: Tensor | None = None
    head: Head | None = None

    @property
    def last(self) -> int:
        """One past the last plane."""
        return self.first + self.values.shape[1]

    @property
    def classes(self) -> int:
        return self.values.shape[0] if self.head is None else self.head.classes

    def logits(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Logits (stop - start, planes, Y, Z) of classes start..stop, all if None; without a head a view."""
        stop = self.classes if stop is None else stop
        logits = self.values[start:stop] if self.head is None else self.head(self.values, start, stop)
        if self.unseen is not None:
            logits.masked_fill_(self.unseen, -UNSEEN_LOGIT)
            if start == 0:
                logits[0].masked_fill_(self.unseen, UNSEEN_LOGIT)
        return logits

    def cut(self, x: slice, y: slice = slice(None), z: slice = slice(None)) -> Slab:
        """A box of it, `x` counted from its own first plane; shares its memory. Later `cut`s count y and z anew."""
        unseen = None if self.unseen is None else self.unseen[x, y, z]
        return Slab(self.first + x.indices(self.values.shape[1])[0], self.values[:, x, y, z], unseen, self.head)


def joined(slabs: Sequence[Slab]) -> Slab:
    """Neighbouring slabs as one."""
    unseen = [slab.unseen for slab in slabs if slab.unseen is not None]
    return Slab(
        slabs[0].first,
        torch.cat([slab.values for slab in slabs], dim=1),
        torch.cat(unseen) if len(unseen) == len(slabs) else None,
        slabs[0].head,
    )


class SlabSums:
    """Weighted sums over `roi` planes of a volume (C, *shape): windows come in sorted by their first plane.

    `dtype` is that of the sums (float32, or float16 for many classes: half the memory, logits right to 1e-3 of their
    size); what leaves is float32. Plane p lives in row p % roi of the ring, so nothing is moved when the ring moves on.
    With a `head` C is the number of its input channels, however many classes it makes of them.
    """

    def __init__(
        self,
        channels: int,
        shape: Sequence[int],
        roi: int,
        dtype: torch.dtype,
        device: torch.device,
        head: Head | None = None,
    ) -> None:
        self.size, self.roi, self.head = int(shape[0]), roi, head
        self.sums = torch.zeros((channels, roi, *shape[1:]), dtype=dtype, device=device)
        self.weights = torch.zeros((roi, *shape[1:]), dtype=torch.float32, device=device)
        self.first = 0  # every plane before it has left

    def add(self, corner: Corner, values: Tensor, weight: Tensor) -> Iterator[Slab]:
        """Add one window (C, X, Y, Z) with its weight (X, Y, Z); yields the planes it cannot reach any more."""
        x, y, z = corner
        yield from self.finish(x)
        channels, depth, ny, nz = values.shape
        few = max(1, SLAB_BYTES // (4 * values[0].numel()))  # channels at a time: no weighted copy of all is needed
        for row, start, stop in self._rows(x, x + depth):
            here = (slice(row, row + stop - start), slice(y, y + ny), slice(z, z + nz))
            self.weights[here] += weight[start - x : stop - x]
            for k in range(0, channels, few):
                part = values[k : k + few, start - x : stop - x].float() * weight[start - x : stop - x]
                self.sums[(slice(k, k + few), *here)] += part.to(self.sums.dtype)

    def finish(self, stop: int | None = None) -> Iterator[Slab]:
        """Yield the planes before `stop` (all, if None) that have not left yet, and clear their rows."""
        stop = self.size if stop is None else stop
        plane_bytes = 4 * self.sums.shape[0] * self.sums[0, 0].numel()
        thick = max(1, SLAB_BYTES // plane_bytes)
        while self.first < stop:
            row, start, end = next(self._rows(self.first, min(stop, self.first + thick)))
            sums, weights = self.sums[:, row : row + end - start], self.weights[row : row + end - start]
            values = sums.to(torch.float32, copy=True).div_(weights.clamp_min(1e-12))
            slab = Slab(start, values, weights == 0, self.head)
            sums.zero_()
            weights.zero_()
            self.first = end
            yield slab

    def _rows(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(row of the ring, first plane, last plane + 1) for the unbroken pieces of planes start..stop."""
        while start < stop:
            row = start % self.roi
            end = min(stop, start + self.roi - row)
            yield row, start, end
            start = end
