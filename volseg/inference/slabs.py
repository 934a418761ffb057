"""Overlapping windows are summed in a ring of planes, one window thick; planes leave it blended, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.inference.windows import Corner

# Logit of background where no window looked: softmax of (10, -10) is 2e-9 for every other class.
UNSEEN_LOGIT = 10.0
# Blended planes leave in pieces of about this size, so that what reads them need not hold a whole window's thickness.
SLAB_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Slab:
    """Blended logits (K, planes, Y, Z), float32, of the planes from `first` on. Its memory is the reader's to keep."""

    first: int
    logits: Tensor

    @property
    def last(self) -> int:
        """One past the last plane."""
        return self.first + self.logits.shape[1]


class SlabSums:
    """Weighted sums over `roi` planes of a volume (K, *shape): windows come in sorted by their first plane.

    `dtype` is that of the sums (float32, or float16 for many classes: half the memory, logits right to 1e-3 of their
    size); what leaves is float32. Plane p lives in row p % roi of the ring, so nothing is moved when the ring moves on.
    """

    def __init__(self, classes: int, shape: Sequence[int], roi: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size, self.roi = int(shape[0]), roi
        self.sums = torch.zeros((classes, roi, *shape[1:]), dtype=dtype, device=device)
        self.weights = torch.zeros((roi, *shape[1:]), dtype=torch.float32, device=device)
        self.first = 0  # every plane before it has left

    def add(self, corner: Corner, logits: Tensor, weight: Tensor) -> Iterator[Slab]:
        """Add one window (K, X, Y, Z) with its weight (X, Y, Z); yields the planes it cannot reach any more."""
        x, y, z = corner
        yield from self.finish(x)
        classes, depth, ny, nz = logits.shape
        few = max(1, SLAB_BYTES // (4 * logits[0].numel()))  # classes at a time: a weighted copy of all is not needed
        for row, start, stop in self._rows(x, x + depth):
            here = (slice(row, row + stop - start), slice(y, y + ny), slice(z, z + nz))
            self.weights[here] += weight[start - x : stop - x]
            for k in range(0, classes, few):
                part = logits[k : k + few, start - x : stop - x].float() * weight[start - x : stop - x]
                self.sums[(slice(k, k + few), *here)] += part.to(self.sums.dtype)

    def finish(self, stop: int | None = None) -> Iterator[Slab]:
        """Yield the planes before `stop` (all, if None) that have not left yet, and clear their rows."""
        stop = self.size if stop is None else stop
        plane_bytes = 4 * self.sums.shape[0] * self.sums[0, 0].numel()
        thick = max(1, SLAB_BYTES // plane_bytes)
        while self.first < stop:
            row, start, end = next(self._rows(self.first, min(stop, self.first + thick)))
            sums, weights = self.sums[:, row : row + end - start], self.weights[row : row + end - start]
            logits = sums.to(torch.float32, copy=True).div_(weights.clamp_min(1e-12))
            unseen = weights == 0
            logits[1:].masked_fill_(unseen, -UNSEEN_LOGIT)
            logits[0].masked_fill_(unseen, UNSEEN_LOGIT)
            sums.zero_()
            weights.zero_()
            self.first = end
            yield Slab(start, logits)

    def _rows(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(row of the ring, first plane, last plane + 1) for the unbroken pieces of planes start..stop."""
        while start < stop:
            row = start % self.roi
            end = min(stop, start + self.roi - row)
            yield row, start, end
            start = end
