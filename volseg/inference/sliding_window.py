"""A MONAI Inferer that slides a window only where there is something to see.

Enters: a preprocessed image (B, C, X, Y, Z), a network, and where to look. Leaves: blended logits on the same grid.
It differs from `monai.inferers.SlidingWindowInferer` in four ways: windows step evenly (no doubled last window),
windows without occupancy are skipped, sums live in a slab one window thick instead of the whole volume, and bf16 runs
on CPUs that have it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

# Logit of background where no window looked: softmax of (10, -10) is 2e-9 for every other class.
UNSEEN_LOGIT = 10.0

Corner = tuple[int, int, int]


@dataclass(frozen=True)
class WindowPlan:
    """Which windows will be visited. `corners` are sorted along the first axis; `total` counts the skipped ones too."""

    corners: tuple[Corner, ...]
    total: int


def even_starts(length: int, roi: int, overlap: float, *, first: int = 0) -> list[int]:
    """Window starts that cover [first, first + length) evenly with at least `overlap`.

    >>> even_starts(100, 64, 0.5)
    [0, 18, 36]
    """
    if length <= roi:
        return [first]
    count = int(np.ceil((length - roi) / (roi * (1.0 - overlap)))) + 1
    return [first + round(i * (length - roi) / (count - 1)) for i in range(count)]


def plan_windows(
    shape: Sequence[int], roi_size: Sequence[int], overlap: float, occupancy: np.ndarray | None = None
) -> WindowPlan:
    """Windows over a volume of `shape` (>= roi_size); with `occupancy` (bool, same shape) only those that hold any.

    The windows are laid over the bounding box of the occupancy, not over the air around it.
    """
    first, lengths = [0, 0, 0], list(shape)
    if occupancy is not None:
        filled = [np.flatnonzero(occupancy.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        if filled[0].size == 0:
            return WindowPlan((), 0)
        for axis in range(3):
            begin, extent = int(filled[axis][0]), int(filled[axis][-1] - filled[axis][0]) + 1
            lengths[axis] = max(extent, roi_size[axis])
            # What is shorter than a window sits in its middle, as far as the volume's border allows.
            centered = max(0, begin - (lengths[axis] - extent) // 2)
            first[axis] = min(centered, shape[axis] - lengths[axis])
    starts = [even_starts(lengths[a], roi_size[a], overlap, first=first[a]) for a in range(3)]
    every: list[Corner] = [(x, y, z) for x, y, z in itertools.product(*starts)]
    if occupancy is None:
        return WindowPlan(tuple(every), len(every))
    rx, ry, rz = roi_size
    kept: list[Corner] = [(x, y, z) for x, y, z in every if occupancy[x : x + rx, y : y + ry, z : z + rz].any()]
    return WindowPlan(tuple(kept), len(every))


def gaussian_importance(roi_size: Sequence[int], sigma_scale: float = 0.125) -> Tensor:
    """Gaussian weight (X, Y, Z) of a window, as MONAI makes it: floored at 1e-3, so that borders still count."""
    weight = compute_importance_map(tuple(roi_size), mode="gaussian", sigma_scale=sigma_scale).float()
    return weight.clamp_min(max(float(weight.min()), 1e-3))


class _SlabSums:
    """Weighted sums of overlapping windows, kept only for the planes that later windows can still reach."""

    def __init__(self, output: Tensor, roi: int, *, first: int) -> None:
        self.output = output
        _, _, ny, nz = output.shape
        self.values = torch.zeros((output.shape[0], roi, ny, nz), dtype=torch.float32, device=output.device)
        self.weights = torch.zeros((roi, ny, nz), dtype=torch.float32, device=output.device)
        self.first = first

    def add(self, corner: Corner, logits: Tensor, weight: Tensor) -> None:
        """Add one window (K, X, Y, Z) whose first plane is `self.first`."""
        _, y, z = corner
        _, _, ry, rz = logits.shape
        self.values[:, :, y : y + ry, z : z + rz] += logits * weight
        self.weights[:, y : y + ry, z : z + rz] += weight

    def advance(self, first: int) -> None:
        """Planes before `first` are final: divide, hand them over, and move the slab."""
        done = min(first - self.first, self.weights.shape[0])
        if done <= 0:
            return
        seen = self.weights[:done] > 0
        target = self.output[:, self.first : self.first + done]
        mean = self.values[:, :done] / self.weights[:done].clamp_min(1e-12)
        target.copy_(torch.where(seen, mean, target))
        for buffer, axis in ((self.values, 1), (self.weights, 0)):
            kept = buffer.narrow(axis, done, buffer.shape[axis] - done).clone()
            buffer.narrow(axis, 0, kept.shape[axis]).copy_(kept)
            buffer.narrow(axis, kept.shape[axis], done).zero_()
        self.first = first


class OccupiedSlidingWindowInferer(Inferer):
    """Sliding-window inference with Gaussian blending over the occupied part of a volume.

    Args:
        roi_size: window in voxels; every axis a multiple of what the network asks for (16 for SegMamba).
        sw_batch_size: windows per forward pass.
        overlap: least fraction of a window shared with its neighbour, 0 <= overlap < 1.
        sigma_scale: width of the Gaussian weight as a fraction of the window.
        pad_value: what surrounds a volume smaller than the window, in the image's own (normalised) units.
        precision: "float32" or "bfloat16" (autocast; sums stay float32).
        all_windows: visit every window even where `occupancy` is empty.
        progress: show a bar with the time left on stderr; `None` shows it only on a terminal.

    Call it as any Inferer: `inferer(image, network)`. `occupancy` (B, 1, X, Y, Z), nonzero where to look, is optional;
    without it every window is visited. The output (B, K, X, Y, Z) float32 holds logits; where no window looked, class 0
    has logit +10 and the others -10. A MetaTensor in gives a MetaTensor out with the same meta.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        *,
        sigma_scale: float = 0.125,
        pad_value: float = -1.0,
        precision: str = "float32",
        all_windows: bool = False,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        self.roi_size: Corner = (roi_size,) * 3 if isinstance(roi_size, int) else tuple(roi_size)  # type: ignore[assignment]
        if len(self.roi_size) != 3 or min(self.roi_size) < 1:
            raise ValueError(f"roi_size needs three positive lengths, not {roi_size}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), not {overlap}")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.sigma_scale = sigma_scale
        self.pad_value = pad_value
        self.precision = precision
        self.all_windows = all_windows
        self.progress = progress

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        occupancy: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, C, X, Y, Z) -> logits (B, K, X, Y, Z) on the same grid."""
        if inputs.ndim != 5:
            raise ValueError(f"a sliding window over volumes needs (B, C, X, Y, Z), not {tuple(inputs.shape)}")
        samples = []
        for index, image in enumerate(inputs):
            where = None
            if occupancy is not None and not self.all_windows:
                where = (torch.as_tensor(occupancy[index, 0]) > 0).cpu().numpy()
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            samples.append(self._one_volume(plain, lambda x: network(x, *args, **kwargs), where))
        logits = torch.stack(samples) if len(samples) > 1 else samples[0][None]
        if isinstance(inputs, MetaTensor):
            return MetaTensor(logits, meta=inputs.meta, applied_operations=inputs.applied_operations)
        return logits

    def _one_volume(self, image: Tensor, network: Callable[[Tensor], Tensor], where: np.ndarray | None) -> Tensor:
        original = image.shape[1:]
        padding = [max(0, r - n) for r, n in zip(self.roi_size, original, strict=True)]
        if any(padding):
            # Padded on both sides, so that a small crop sits in the middle of the window as it did in training.
            before = [p // 2 for p in padding]
            sides = [(b, p - b) for b, p in zip(before, padding, strict=True)]
            image = functional.pad(image, [v for pair in reversed(sides) for v in pair], value=self.pad_value)
            where = np.pad(where, sides) if where is not None else None
        logits = self._slide(image, network, plan_windows(image.shape[1:], self.roi_size, self.overlap, where))
        if any(padding):
            x, y, z = (slice(b, b + n) for b, n in zip(before, original, strict=True))
            logits = logits[:, x, y, z]
        return logits

    def _slide(self, image: Tensor, network: Callable[[Tensor], Tensor], plan: WindowPlan) -> Tensor:
        weight = gaussian_importance(self.roi_size, self.sigma_scale).to(image.device)
        rx, ry, rz = self.roi_size
        output: Tensor | None = None
        sums: _SlabSums | None = None
        bar = tqdm(
            total=len(plan.corners),
            desc=f"windows ({len(plan.corners)} of {plan.total} hold bone)",
            unit="win",
            disable=None if self.progress is None else not self.progress,
            file=sys.stderr,
            leave=False,
        )
        with bar:
            for batch in _batches(plan.corners, self.sw_batch_size):
                windows = torch.stack([image[:, x : x + rx, y : y + ry, z : z + rz] for x, y, z in batch])
                with self._autocast(image.device):
                    logits = network(windows)
                logits = logits.float()
                if output is None or sums is None:
                    output = _background(logits.shape[1], image)
                    sums = _SlabSums(output, rx, first=batch[0][0])
                sums.advance(batch[0][0])
                for corner, window in zip(batch, logits, strict=True):
                    sums.add(corner, window, weight)
                bar.update(len(batch))
        if output is None or sums is None:
            # Nothing to look at: one empty window tells how many classes the network speaks of.
            with self._autocast(image.device):
                classes = network(torch.full((1, image.shape[0], rx, ry, rz), self.pad_value, device=image.device))
            return _background(classes.shape[1], image)
        sums.advance(sums.first + rx)
        return output

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()


def _background(classes: int, image: Tensor) -> Tensor:
    output = torch.full((classes, *image.shape[1:]), -UNSEEN_LOGIT, dtype=torch.float32, device=image.device)
    output[0] = UNSEEN_LOGIT
    return output


def _batches(corners: Sequence[Corner], size: int) -> Iterator[list[Corner]]:
    """Windows that start on the same plane, `size` at a time, so that the slab of sums never has to be wider."""
    for _, group in itertools.groupby(corners, key=lambda c: c[0]):
        members = list(group)
        for i in range(0, len(members), size):
            yield members[i : i + size]


def with_occupancy(
    batchdata: dict[str, Any],
    device: torch.device | str,
    non_blocking: bool = False,
    *,
    mask_key: str = "bone",
    **_: Any,
) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]:
    """`prepare_batch` for MONAI's evaluator: image, label (or None), and the bone mask as the inferer's `occupancy`."""
    image = batchdata["image"].to(device, non_blocking=non_blocking)
    label = batchdata.get("label")
    label = label.to(device, non_blocking=non_blocking) if label is not None else None
    return image, label, (), {"occupancy": batchdata[mask_key]} if mask_key in batchdata else {}
