"""What lets MONAI's SupervisedTrainer train a detector: targets as network arguments, losses as the loss."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor

from volseg.detection.targets import instances_from_pieces, targets_from_instances

WHOLE_SIZES = "whole_sizes"
MOST_IDS = 256  # a case of `volseg synth` holds a handful of lesions; more would go on without their sizes


class WholeSizesd(MapTransform):
    """Number the lesions of a label map (1, X, Y, Z) and note how many voxels each has: (256,) int32.

    Pieces of one value that do not touch are lesions of their own (`instances_from_pieces`): in a binary mask all
    lesions have one value. Deterministic, and only the whole volume tells pieces from lesions cut by a crop: it goes
    before the crop, into what CacheDataset keeps. The label becomes int32: uint8 would make lesion 256 background.
    """

    def __init__(self, keys: KeysCollection = "label", *, sizes_key: str = WHOLE_SIZES) -> None:
        super().__init__(keys)
        self.sizes_key = sizes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            instances = instances_from_pieces(d[key])
            d[key] = convert_to_dst_type(instances, d[key], dtype=torch.int32)[0]
            values = instances.flatten().to(torch.int64)
            d[self.sizes_key] = torch.bincount(values[values > 0], minlength=MOST_IDS)[:MOST_IDS].to(torch.int32)
        return d


def detection_batch(
    batch: Mapping[str, Any], device: torch.device | str, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[list[dict[str, Tensor]]], dict[str, Any]]:
    """`prepare_batch` of a trainer: image and label (B, 1, X, Y, Z), the label an instance map, -> the detector's call.

    Gives (images, labels, (targets,), {}): the targets go into the network beside the images.
    """
    images = _plain(batch["image"]).to(device, non_blocking=non_blocking)
    labels = _plain(batch["label"]).to(device, non_blocking=non_blocking)
    sizes: Sequence[Tensor | None] = batch.get(WHOLE_SIZES, [None] * len(images))
    return images, labels, ([targets_from_instances(y, sizes=s) for y, s in zip(labels, sizes, strict=True)],), {}


class SummedLoss:
    """`loss_function` of a trainer: the sum of a detector's losses. The labels went in as targets already."""

    def __call__(self, losses: Mapping[str, Tensor], _: Any = None) -> Tensor:
        return torch.stack(list(losses.values())).sum()


def loss_parts(output: Any) -> dict[str, float]:
    """For StatsHandler's `output_transform`: every loss by name, from the trainer's output."""
    found = output[0] if isinstance(output, list) else output
    losses = found["pred"]
    return {"loss": float(found["loss"])} | {name: float(value) for name, value in losses.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
