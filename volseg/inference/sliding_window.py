"""A MONAI Inferer that slides a window only where there is something to see.

Enters: a preprocessed image (B, C, X, Y, Z), a network, and where to look. Leaves: blended logits on the same grid.
It differs from `monai.inferers.SlidingWindowInferer` in these ways: windows step evenly (no doubled last window),
windows without occupancy are skipped, batches run across the borders of rows and planes, sums live in a ring one window
thick instead of the whole volume, and hold features instead of logits where the network's head is named. On a GPU the
next windows are cut and sent while the network runs; on the CPU the windows of a batch run side by side, a core each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from volseg.inference.head import Head, without_head
from volseg.inference.mirrors import flip, mirrorings
from volseg.inference.slabs import UNSEEN_LOGIT, Slab, SlabSums
from volseg.inference.windows import (
    Corner,
    WindowPlan,
    gaussian_importance,
    padded_to_window,
    plan_windows,
    volumes_of,
    window_bar,
    window_size,
)
from volseg.inference.workers import in_order, workers_for

__all__ = ["BESIDE", "KEPT_FOR_INFERERS", "UNSEEN_LOGIT", "OccupiedSlidingWindowInferer", "with_occupancy"]

# What preprocessing may leave beside the image for an inferer that asks for it: other networks' lesion maps
# (B, N, X, Y, Z), the image in Hounsfield units.
BESIDE = "beside"
KEPT_FOR_INFERERS = ("hu", BESIDE)


class OccupiedSlidingWindowInferer(Inferer):
    """Sliding-window inference with Gaussian blending over the occupied part of a volume.

    Args:
        roi_size: window in voxels; every axis a multiple of what the network asks for (16 for SegMamba).
        sw_batch_size: windows per forward pass; on the CPU, windows at work at the same time.
        overlap: least fraction of a window shared with its neighbour, 0 <= overlap < 1.
        sigma_scale: width of the Gaussian weight as a fraction of the window.
        pad_value: what surrounds a volume smaller than the window, in the image's own (normalised) units.
        precision: "float32" or "bfloat16" (autocast of the network).
        sums: "float32" or "float16", the type windows are summed in.
        sw_device: where the network runs, if the volume lies elsewhere (a CT that does not fit on the GPU); logits and
            sums stay with the volume.
        mirror_axes: axes (0, 1, 2) along which windows are also shown mirrored; logits are averaged over all
            combinations, so three axes cost eight passes. Only for networks that were trained with such flips.
        all_windows: visit every window even where `occupancy` is empty.
        layout: "even" steps over the bounding box of the occupancy, or "monai": the places where MONAI's
            SlidingWindowInferer looks. A network that normalises over its window depends on where windows lie.
        spare: share of the blended weight that occupied voxels can spare, 0 <= spare < 1: windows that hold bone only
            in their faint rim are left out, as many as fit. 0: every window that holds any is visited.
        head: path of the network's last 1x1x1 convolution ("out" of SegMamba, "out.conv.conv" of MONAI's UNETRs).
            Named, features are blended instead of logits and memory does not grow with the number of classes.
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
        sums: str = "float32",
        sw_device: torch.device | str | None = None,
        mirror_axes: Sequence[int] = (),
        all_windows: bool = False,
        layout: str = "even",
        spare: float = 0.0,
        head: str | None = None,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        self.roi_size = window_size(roi_size)
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), not {overlap}")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
        if sums not in ("float32", "float16"):
            raise ValueError(f"sums must be 'float32' or 'float16', not {sums!r}")
        if layout not in ("even", "monai"):
            raise ValueError(f"layout must be 'even' or 'monai', not {layout!r}")
        if not 0 <= spare < 1:
            raise ValueError(f"spare must lie in [0, 1), not {spare}")
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.sigma_scale = sigma_scale
        self.pad_value = pad_value
        self.precision = precision
        self.sums = getattr(torch, sums)
        self.sw_device = sw_device
        self.mirrors = mirrorings(mirror_axes)
        self.all_windows = all_windows
        self.layout = layout
        self.spare = spare
        self.head = head
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
        samples = []
        for image, where in self._volumes(inputs, occupancy):
            output: Tensor | None = None
            for slab in self.slabs(image, network, where, *args, **kwargs):
                logits = slab.logits()
                if output is None:
                    output = logits.new_empty((logits.shape[0], *image.shape[1:]))
                output[:, slab.first : slab.last] = logits
            assert output is not None
            samples.append(output)
        logits = torch.stack(samples) if len(samples) > 1 else samples[0][None]
        if isinstance(inputs, MetaTensor):
            return MetaTensor(logits, meta=inputs.meta, applied_operations=inputs.applied_operations)
        return logits

    def slabs(
        self, image: Tensor, network: Callable[..., Any], where: np.ndarray | None = None, *args: Any, **kwargs: Any
    ) -> Iterator[Slab]:
        """Blended planes of one volume (C, X, Y, Z), from the first plane to the last, as soon as they are final.

        `where` (X, Y, Z) bool: where to look, None for everywhere. Read this way no logits of the whole volume exist.
        """
        original = image.shape[1:]
        image, where, before = padded_to_window(image, where, self.roi_size, self.pad_value)
        weight = gaussian_importance(self.roi_size, self.sigma_scale)
        plan = plan_windows(
            image.shape[1:],
            self.roi_size,
            self.overlap,
            where,
            layout=self.layout,
            spare=self.spare,
            weight=weight.numpy(),
        )
        _, y, z = (slice(b, b + n) for b, n in zip(before, original, strict=True))
        with ExitStack() as stack:
            head: Head | None = None
            if self.head is not None:
                network, head = stack.enter_context(without_head(network, self.head))
            for slab in self._slide(image, lambda x: network(x, *args, **kwargs), plan, weight, head):
                first, last = max(slab.first, before[0]), min(slab.last, before[0] + original[0])
                if first < last:
                    cut = slab.cut(slice(first - slab.first, last - slab.first), y, z)
                    yield Slab(first - before[0], cut.values, cut.unseen, head)

    def _volumes(self, inputs: Tensor, occupancy: Tensor | None) -> Iterator[tuple[Tensor, np.ndarray | None]]:
        return volumes_of(inputs, None if self.all_windows else occupancy)

    def _slide(
        self,
        image: Tensor,
        network: Callable[[Tensor], Tensor],
        plan: WindowPlan,
        weight: Tensor,
        head: Head | None,
    ) -> Iterator[Slab]:
        weight = weight.to(image.device)
        sums: SlabSums | None = None
        with window_bar(plan, self.progress) as bar:
            for corners, values in self._outputs(image, network, plan):
                if sums is None:
                    sums = SlabSums(values.shape[1], image.shape[1:], self.roi_size[0], self.sums, image.device, head)
                for corner, window in zip(corners, values, strict=True):
                    yield from sums.add(corner, window, weight)
                bar.update(len(corners))
        if sums is None:
            # Nothing to look at: one empty window tells how many classes the network speaks of.
            empty = torch.full(
                (1, image.shape[0], *self.roi_size), self.pad_value, device=self.sw_device or image.device
            )
            channels = self._run(network, empty).shape[1]
            sums = SlabSums(channels, image.shape[1:], self.roi_size[0], self.sums, image.device, head)
        yield from sums.finish()

    def _outputs(
        self, image: Tensor, network: Callable[[Tensor], Tensor], plan: WindowPlan
    ) -> Iterator[tuple[tuple[Corner, ...], Tensor]]:
        """What the network makes of the windows (B, C, X, Y, Z), a batch at a time, where the image lies."""
        device = torch.device(self.sw_device) if self.sw_device is not None else image.device
        workers = workers_for(device, self.sw_batch_size)
        if workers > 1:
            batches = plan.batches(max(1, self.sw_batch_size // workers))
            yield from in_order(
                lambda corners: self._run(network, self._cut(image, corners, device)).to(image.device), batches, workers
            )
        else:
            for corners, windows in self._windows(image, plan, device):
                yield corners, self._run(network, windows).to(image.device)

    def _cut(self, image: Tensor, corners: tuple[Corner, ...], device: torch.device) -> Tensor:
        rx, ry, rz = self.roi_size
        windows = torch.stack([image[:, x : x + rx, y : y + ry, z : z + rz] for x, y, z in corners])
        if device.type == "cuda" and image.device.type == "cpu":
            windows = windows.pin_memory()
        return windows.to(device, non_blocking=True)

    def _windows(
        self, image: Tensor, plan: WindowPlan, device: torch.device
    ) -> Iterator[tuple[tuple[Corner, ...], Tensor]]:
        """Batches of windows (B, C, X, Y, Z) on the network's device, each cut while the network works on the last."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            batches = list(plan.batches(self.sw_batch_size))
            coming = [pool.submit(self._cut, image, batch, device) for batch in batches[:1]]
            for i, batch in enumerate(batches):
                windows = coming.pop().result()
                if i + 1 < len(batches):
                    coming.append(pool.submit(self._cut, image, batches[i + 1], device))
                yield batch, windows

    def _run(self, network: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        with self._autocast(windows.device):
            values = network(windows)
            for axes in self.mirrors[1:]:
                values = values + flip(network(flip(windows, axes)), axes)
        return values if len(self.mirrors) == 1 else values / len(self.mirrors)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()


def with_occupancy(
    batchdata: dict[str, Any],
    device: torch.device | str,
    non_blocking: bool = False,
    *,
    mask_key: str = "bone",
    **_: Any,
) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]:
    """`prepare_batch` for MONAI's evaluator: image, label (or None); the inferer gets the bone mask as `occupancy`, and
    what preprocessing left for it under the names in `KEPT_FOR_INFERERS`."""
    image = batchdata["image"].to(device, non_blocking=non_blocking)
    label = batchdata.get("label")
    label = label.to(device, non_blocking=non_blocking) if label is not None else None
    given = {"occupancy": mask_key} | {name: name for name in KEPT_FOR_INFERERS}
    return image, label, (), {name: batchdata[key] for name, key in given.items() if key in batchdata}
