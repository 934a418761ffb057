"""A detector over a whole volume: windows where there is bone, lesions merged across windows, masks in their boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from volseg.inference.mirrors import flip, flip_detections, mirrorings
from volseg.inference.paste import paste
from volseg.inference.window_detections import gather, merge
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


class DetectionInferer(Inferer):
    """Runs a detector with `predict(windows) -> (detections, semantic)` (MaskRCNN3D) over whole volumes.

    Args:
        roi_size, sw_batch_size, overlap, pad_value, precision, mirror_axes, all_windows, progress: as in
            OccupiedSlidingWindowInferer; a window shown mirrored counts as another window that saw the same place.
        score: lesions below it are dropped; a lesion's score is its best detection's times the mean semantic
            probability in its outline (see `paste`). Sweep it on validation data only.
        iou_threshold, ios_threshold: of the clustering over windows.
        instance_weight: share of the instance masks in a lesion's outline; the rest is the semantic map's.

    Call: `inferer(images (B, C, X, Y, Z), detector, occupancy=(B, 1, X, Y, Z))` -> (B, 3, X, Y, Z) float32: lesion
    probability, owner (which lesion a voxel's probability belongs to, 0 for none), the owner's detection score. A
    MetaTensor keeps its meta. The result does not depend on `sw_batch_size` or on the order of windows beyond float32
    rounding. `beside` (B, N, X, Y, Z): other networks' lesion maps, which the detector then heeds.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        *,
        score: float = 0.3,
        iou_threshold: float = 0.3,
        ios_threshold: float = 0.6,
        instance_weight: float = 0.5,
        pad_value: float = -1.0,
        precision: str = "float32",
        mirror_axes: Sequence[int] = (),
        all_windows: bool = False,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        self.roi_size = window_size(roi_size)
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
        self.sw_batch_size, self.overlap = sw_batch_size, overlap
        self.score, self.iou_threshold, self.ios_threshold = score, iou_threshold, ios_threshold
        self.instance_weight = instance_weight
        self.pad_value, self.precision = pad_value, precision
        self.mirrors = mirrorings(mirror_axes)
        self.all_windows, self.progress = all_windows, progress

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        occupancy: Tensor | None = None,
        beside: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        where_to_look = None if self.all_windows else occupancy
        # They travel as further channels, cut, padded and mirrored as the image is.
        stacked = inputs if beside is None else torch.cat([torch.as_tensor(inputs), beside.to(inputs)], dim=1)
        channels = inputs.shape[1]
        results = [self._volume(image, network, where, channels) for image, where in volumes_of(stacked, where_to_look)]
        found = torch.stack(results).to(inputs.device)
        return MetaTensor(found, meta=inputs.meta) if isinstance(inputs, MetaTensor) else found

    def _volume(self, image: Tensor, network: Any, where: np.ndarray | None, channels: int) -> Tensor:
        detector = network if hasattr(network, "predict") else network.module  # DistributedDataParallel hides it
        original = image.shape[1:]
        image, where, before = padded_to_window(image, where, self.roi_size, self.pad_value)
        plan = plan_windows(image.shape[1:], self.roi_size, self.overlap, where)
        shape = image.shape[1:]
        sums, weights = torch.zeros(shape), torch.zeros(shape)
        importance = gaussian_importance(self.roi_size)
        rx, ry, rz = self.roi_size
        found: list[tuple[Corner, dict[str, Tensor]]] = []
        with window_bar(plan, self.progress) as bar:
            for corners, (detections, semantic) in self._outputs(image, detector, plan, channels):
                for (x, y, z), views, probability in zip(corners, detections, semantic.cpu(), strict=True):
                    here = (slice(x, x + rx), slice(y, y + ry), slice(z, z + rz))
                    sums[here] += probability * importance
                    weights[here] += importance
                    found += [((x, y, z), view) for view in views]
                bar.update(len(corners))
        every = gather(found, plan.corners * len(self.mirrors), self.roi_size, shape)
        lesions = merge(every, iou_threshold=self.iou_threshold, ios_threshold=self.ios_threshold)
        semantic = sums / weights.clamp_min(1e-6)
        pasted = paste(lesions, every, semantic, instance_weight=self.instance_weight, least_score=self.score)
        inside = tuple(slice(b, b + n) for b, n in zip(before, original, strict=True))
        return pasted.stacked()[(slice(None), *inside)]

    def _outputs(
        self, image: Tensor, detector: Any, plan: WindowPlan, channels: int
    ) -> Iterator[tuple[tuple[Corner, ...], tuple[list[list[dict[str, Tensor]]], Tensor]]]:
        """What the detector says of the windows, a batch at a time and in order; on the CPU one window a core.

        Per window one dict of detections for each mirroring, and the semantic probability, the mean of all.
        """
        rx, ry, rz = self.roi_size

        def predict(corners: tuple[Corner, ...]) -> tuple[list[list[dict[str, Tensor]]], Tensor]:
            windows = torch.stack([image[:, x : x + rx, y : y + ry, z : z + rz] for x, y, z in corners])
            found, maps = [], []
            for axes in self.mirrors:
                with torch.autocast(windows.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    shown = flip(windows, axes)
                    beside = (shown[:, channels:],) if shown.shape[1] > channels else ()
                    each, semantic = detector.predict(shown[:, :channels], *beside)
                found.append([flip_detections(one, axes, self.roi_size) for one in each])
                maps.append(flip(semantic, axes))
            return [list(views) for views in zip(*found, strict=True)], torch.stack(maps).mean(dim=0)

        workers = workers_for(image.device, self.sw_batch_size)
        batches = plan.batches(max(1, self.sw_batch_size // workers))
        if workers > 1:
            yield from in_order(predict, batches, workers)
        else:
            yield from ((corners, predict(corners)) for corners in batches)
