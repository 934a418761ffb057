"""One instance label map -> what a Mask R-CNN learns from. Made after all augmentation, so boxes fit the masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from volseg.geometry import TOUCHING

# An instance of which the crop shows less than this is neither lesion nor background.
LEAST_VISIBLE = 0.25
LEAST_VOXELS = 2


def instances_from_pieces(labels: Tensor) -> Tensor:
    """A label map (1, X, Y, Z) in which a value may have many lesions, a binary mask say -> an instance map, int32.

    Pieces of one value that do not touch (26-connected) become lesions of their own. The largest, and so a value's only
    one, keeps the number; the others get those after the largest of all, value by value, in the order of their first
    voxels. The same map always gives the same numbers.
    """
    plain = labels.as_tensor() if isinstance(labels, MetaTensor) else labels
    values = plain[0].to(torch.int32).cpu().numpy()
    instances = values.copy()
    following = max(0, int(values.max(initial=0))) + 1
    for value, where in enumerate(ndimage.find_objects(values), start=1):
        if where is None:
            continue
        pieces, count = ndimage.label(values[where] == value, structure=TOUCHING)
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        for piece in (n for n in range(1, count + 1) if n != largest):
            instances[where][pieces == piece] = following
            following += 1
    return torch.from_numpy(instances)[None].to(plain.device)


def targets_from_instances(
    instances: Tensor, *, sizes: Tensor | None = None, least_visible: float = LEAST_VISIBLE
) -> dict[str, Tensor]:
    """Targets of one image from its instance label map (1, X, Y, Z) or (X, Y, Z), 0 = background.

    Args:
        instances: integers; every value above 0 is one lesion, touching or not (see `instances_from_pieces`).
        sizes: (K,) voxel counts before cropping, `sizes[value]` that of an instance (0 or beyond the end: unknown).
            An instance that shows less than `least_visible` of it becomes an ignore box.

    Returns box (N, 6) float32 half-open voxels, label (N,) long zeros (one kind of lesion), id (N,) long the instance's
    value, ignore (N,) bool, and mask, the label map itself (1, X, Y, Z) int32. N may be 0.
    """
    plain = instances.as_tensor() if isinstance(instances, MetaTensor) else instances
    if plain.ndim == 3:
        plain = plain[None]
    if plain.ndim != 4 or plain.shape[0] != 1:
        raise ValueError(f"an instance label map is (1, X, Y, Z) or (X, Y, Z), not {tuple(instances.shape)}")
    labels = plain[0].to(torch.int32)
    found = ndimage.find_objects(labels.cpu().numpy())
    rows: list[list[float]] = []
    ids: list[int] = []
    ignore: list[bool] = []
    for value, where in enumerate(found, start=1):
        if where is None:
            continue
        visible = int((labels[where] == value).sum())
        whole = float(sizes[value]) if sizes is not None and value < len(sizes) else 0.0
        rows.append([float(s.start) for s in where] + [float(s.stop) for s in where])
        ids.append(value)
        ignore.append(visible < LEAST_VOXELS or visible < least_visible * whole)
    device = plain.device
    return {
        "box": torch.tensor(rows, dtype=torch.float32, device=device).reshape(-1, 6),
        "label": torch.zeros(len(ids), dtype=torch.long, device=device),
        "id": torch.tensor(ids, dtype=torch.long, device=device),
        "ignore": torch.tensor(ignore, dtype=torch.bool, device=device),
        "mask": labels[None],
    }


def stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    """A batch (B, C, X, Y, Z) from a batch or a list of equally shaped images (C, X, Y, Z)."""
    if isinstance(images, Tensor):
        batch: Any = images
    else:
        shapes = {tuple(i.shape) for i in images}
        if len(shapes) != 1:
            raise ValueError(f"images of one batch have one shape, not {sorted(shapes)}; crop or pad them first")
        batch = torch.stack([i.as_tensor() if isinstance(i, MetaTensor) else i for i in images])
    batch = batch.as_tensor() if isinstance(batch, MetaTensor) else batch
    if batch.ndim != 5:
        raise ValueError(f"images are (B, C, X, Y, Z), not {tuple(batch.shape)}")
    return batch
