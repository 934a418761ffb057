"""Boxes (N, 6) xyzxyz, voxels, half-open: checked, clipped, and coded against anchors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from torch import Tensor

from volseg.errors import InputError

# Weights of the box code (centre, size): torchvision's, so that RoI deltas have about unit variance.
RPN_CODE = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
ROI_CODE = (10.0, 10.0, 10.0, 5.0, 5.0, 5.0)


def check_boxes(boxes: Tensor, shape: Sequence[int], *, where: str = "boxes") -> Tensor:
    """Return `boxes` as float32 (N, 6), or refuse them in words.

    Raises:
        InputError: not (N, 6), NaN or Inf, reversed or empty (an end at or before its begin), or outside (no voxel of
            the image of `shape` inside).
    """
    b = torch.as_tensor(boxes).float()
    if b.numel() == 0:
        return b.reshape(0, 6)
    if b.ndim != 2 or b.shape[1] != 6:
        raise InputError("boxes-shape", f"{where}: boxes are (N, 6) xyzxyz in voxels, not {tuple(b.shape)}")
    bad = ~torch.isfinite(b).all(dim=1)
    if bad.any():
        raise InputError("boxes-not-finite", f"{where}: box {_first(bad)} holds NaN or Inf: {_listed(b, bad)}")
    bad = (b[:, 3:] <= b[:, :3]).any(dim=1)
    if bad.any():
        raise InputError(
            "boxes-reversed",
            f"{where}: box {_first(bad)} is reversed or empty: {_listed(b, bad)}; half-open xyzxyz is meant",
        )
    size = b.new_tensor(list(shape))
    bad = ((b[:, 3:] <= 0) | (b[:, :3] >= size)).any(dim=1)
    if bad.any():
        raise InputError(
            "boxes-outside",
            f"{where}: box {_first(bad)} lies outside the image of {tuple(shape)} voxels: {_listed(b, bad)}",
        )
    return b


def clip_boxes(boxes: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut boxes (N, 6) at the borders of an image of `shape`."""
    size = boxes.new_tensor(list(shape) * 2)
    return torch.minimum(boxes.clamp_min(0), size)


def large_enough(boxes: Tensor, least: float = 1.0) -> Tensor:
    """(N,) bool: every side at least `least` voxels long."""
    return (boxes[:, 3:] - boxes[:, :3] >= least).all(dim=1)


def finite_rows(scores: Tensor, deltas: Tensor) -> Tensor:
    """(N,) bool: neither what a head scored (N, K) nor its codes (N, 6) or (N, K, 6) hold NaN or Inf.

    `decode` refuses all boxes for one that is not finite, and with them those of the batch's other images.
    """
    return torch.isfinite(scores).all(dim=1) & torch.isfinite(deltas.flatten(1)).all(dim=1)


def encode(boxes: Tensor, anchors: Tensor, code: Sequence[float]) -> Tensor:
    """What a head should say, (N, 6), for `anchors` (N, 6) to become `boxes` (N, 6)."""
    return BoxCoder(weights=code).encode_single(boxes.float(), anchors.float())


def decode(deltas: Tensor, anchors: Tensor, code: Sequence[float]) -> Tensor:
    """Boxes (N, 6) float32 from what a head said (N, 6) about `anchors` (N, 6)."""
    return BoxCoder(weights=code).decode_single(deltas.float(), anchors.float())


def _first(bad: Tensor) -> int:
    return int(torch.nonzero(bad)[0])


def _listed(boxes: Tensor, bad: Tensor) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in boxes[_first(bad)].tolist()) + "]"
