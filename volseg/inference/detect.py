"""A detector over a whole volume: windows where there is bone, lesions merged across windows, masks in their boxes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from volseg.inference.paste import paste
from volseg.inference.window_detections import MergedDetections, gather, merge
from volseg.inference.windows import Corner, gaussian_importance, plan_windows


class DetectionInferer(Inferer):
    """Runs a detector with `predict(windows) -> (detections, semantic)` (MaskRCNN3D) over whole volumes.

    Args:
        roi_size, sw_batch_size, overlap, pad_value, precision, progress: as in OccupiedSlidingWindowInferer.
        score: merged lesions below it are dropped. Sweep it on validation data only.
        iou_threshold, ios_threshold: of the clustering over windows.
        instance_weight: share of the instance masks in a lesion's outline; the rest is the semantic map's.

    Call: `inferer(images (B, C, X, Y, Z), detector, occupancy=(B, 1, X, Y, Z))` -> (B, 3, X, Y, Z) float32: lesion
    probability, owner (which lesion a voxel's probability belongs to, 0 for none), the owner's detection score. A
    MetaTensor keeps its meta. The result does not depend on `sw_batch_size` or on the order of windows beyond float32
    rounding.
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
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        self.roi_size: Corner = (roi_size,) * 3 if isinstance(roi_size, int) else tuple(roi_size)  # type: ignore[assignment]
        if len(self.roi_size) != 3 or min(self.roi_size) < 1:
            raise ValueError(f"roi_size needs three positive lengths, not {roi_size}")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
        self.sw_batch_size, self.overlap = sw_batch_size, overlap
        self.score, self.iou_threshold, self.ios_threshold = score, iou_threshold, ios_threshold
        self.instance_weight = instance_weight
        self.pad_value, self.precision, self.progress = pad_value, precision, progress

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, occupancy: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if inputs.ndim != 5:
            raise ValueError(f"a detector over volumes needs (B, C, X, Y, Z), not {tuple(inputs.shape)}")
        results = []
        for i, image in enumerate(inputs):
            where = None if occupancy is None else (torch.as_tensor(occupancy[i, 0]) > 0).cpu().numpy()
            plain = image.as_tensor() if isinstance(image, MetaTensor) else image
            results.append(self._volume(plain, network, where))
        stacked = torch.stack(results).to(inputs.device)
        return MetaTensor(stacked, meta=inputs.meta) if isinstance(inputs, MetaTensor) else stacked

    def _volume(self, image: Tensor, network: Any, where: np.ndarray | None) -> Tensor:
        detector = network if hasattr(network, "predict") else network.module  # DistributedDataParallel hides it
        original = image.shape[1:]
        padding = [max(0, r - n) for r, n in zip(self.roi_size, original, strict=True)]
        before = [p // 2 for p in padding]
        if any(padding):
            sides = [(b, p - b) for b, p in zip(before, padding, strict=True)]
            image = functional.pad(image, [v for pair in reversed(sides) for v in pair], value=self.pad_value)
            where = np.pad(where, sides) if where is not None else None
        plan = plan_windows(image.shape[1:], self.roi_size, self.overlap, where)
        shape = image.shape[1:]
        sums, weights = torch.zeros(shape), torch.zeros(shape)
        importance = gaussian_importance(self.roi_size)
        rx, ry, rz = self.roi_size
        found: list[tuple[Corner, dict[str, Tensor]]] = []
        bar = tqdm(
            total=len(plan.corners),
            desc=f"windows ({len(plan.corners)} of {plan.total} hold bone)",
            unit="win",
            disable=None if self.progress is None else not self.progress,
            file=sys.stderr,
            leave=False,
        )
        with bar:
            for corners in plan.batches(self.sw_batch_size):
                windows = torch.stack([image[:, x : x + rx, y : y + ry, z : z + rz] for x, y, z in corners])
                with torch.autocast(windows.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    detections, semantic = detector.predict(windows)
                for (x, y, z), one, probability in zip(corners, detections, semantic.cpu(), strict=True):
                    here = (slice(x, x + rx), slice(y, y + ry), slice(z, z + rz))
                    sums[here] += probability * importance
                    weights[here] += importance
                    found.append(((x, y, z), one))
                bar.update(len(corners))
        every = gather(found, plan.corners, self.roi_size, shape)
        lesions = self._confident(merge(every, iou_threshold=self.iou_threshold, ios_threshold=self.ios_threshold))
        pasted = paste(lesions, every, sums / weights.clamp_min(1e-6), instance_weight=self.instance_weight)
        inside = tuple(slice(b, b + n) for b, n in zip(before, original, strict=True))
        return pasted.stacked()[(slice(None), *inside)]

    def _confident(self, merged: MergedDetections) -> MergedDetections:
        kept = torch.nonzero(merged.scores >= self.score)[:, 0]
        return MergedDetections(
            merged.boxes[kept], merged.scores[kept], tuple(merged.members[i] for i in kept.tolist())
        )
