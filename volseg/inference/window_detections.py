"""Detections of overlapping windows -> one lesion each. Plain tensors; knows no network and no volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.inference.windows import Corner
from volseg.ops.nms3d import weighted_box_clustering

# A box side within this many voxels of a window's inner face was probably cut there.
NEAR_FACE = 1.5
# What a cut side still says about where the lesion ends, and a box with one about whether there is one.
CUT_SIDE, CUT_BOX = 1e-3, 0.3


@dataclass(frozen=True, eq=False)
class WindowDetections:
    """All boxes that the windows of one volume returned.

    boxes (N, 6) in voxels of the volume, scores (N,), masks (N, s, s, s) probabilities inside each box, cut (N, 6)
    bool: the side lies at a window's inner face. views (N,): how many windows saw the box whole.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor
    cut: Tensor
    views: Tensor


@dataclass(frozen=True, eq=False)
class MergedDetections:
    """Lesions after merging, best first: boxes (K, 6), scores (K,), members: row numbers of each one's detections."""

    boxes: Tensor
    scores: Tensor
    members: tuple[Tensor, ...]


def gather(
    found: Sequence[tuple[Corner, dict[str, Tensor]]], plan: Sequence[Corner], roi: Corner, shape: Sequence[int]
) -> WindowDetections:
    """Move each window's detections (box, label_scores, mask) to the volume of `shape` and note what its faces cut.

    `plan`: the corners of all windows that were visited.
    """
    size = torch.tensor(roi, dtype=torch.float32)
    boxes, scores, masks, cuts = [], [], [], []
    for corner, result in found:
        box = result["box"].float().cpu()
        low = torch.tensor(corner, dtype=torch.float32)
        inner_low = low > 0
        inner_high = low + size < torch.tensor(list(shape), dtype=torch.float32)
        cuts.append(
            torch.cat([(box[:, :3] < NEAR_FACE) & inner_low, (box[:, 3:] > size - NEAR_FACE) & inner_high], dim=1)
        )
        boxes.append(box + low.repeat(2))
        scores.append(result["label_scores"].float().cpu())
        masks.append(result["mask"].float().cpu())
    if not boxes:
        none = torch.zeros(0)
        return WindowDetections(none.reshape(0, 6), none, none.reshape(0, 1, 1, 1), none.reshape(0, 6).bool(), none)
    every = torch.cat(boxes)
    corners = torch.tensor(plan, dtype=torch.float32)
    sees = ((every[:, None, :3] >= corners) & (every[:, None, 3:] <= corners + size)).all(dim=2)
    return WindowDetections(every, torch.cat(scores), torch.cat(masks), torch.cat(cuts), sees.sum(dim=1).clamp_min(1))


def merge(detections: WindowDetections, *, iou_threshold: float = 0.3, ios_threshold: float = 0.6) -> MergedDetections:
    """Weighted box clustering over windows; where a window's face cut a box, the other windows say where it ends.

    Clusters are clustered again, with the boxes they have by then, until nothing changes: the two ends of a lesion
    longer than a window meet through its middle. Independent of the order of detections. The merged score is the mean
    over the windows that saw the lesion; one that should have and did not counts as 0.
    """
    trust = torch.where(detections.cut.any(dim=1), CUT_BOX, 1.0)
    scores = detections.scores * trust  # whole boxes open clusters before cut ones
    members = [torch.tensor([i]) for i in range(len(scores))]
    boxes = detections.boxes
    while True:
        _, _, cluster_of = weighted_box_clustering(
            boxes, scores, torch.ones_like(scores), iou_threshold=iou_threshold, ios_threshold=ios_threshold
        )
        count = int(cluster_of.max()) + 1 if len(cluster_of) else 0
        if count == len(members):
            break
        groups = [torch.nonzero(cluster_of == k)[:, 0].tolist() for k in range(count)]
        members = [_canonical(torch.cat([members[i] for i in group]), detections) for group in groups]
        scores = torch.stack([scores[group].max() for group in groups])
        boxes = torch.stack([_merged_box(detections, m) for m in members])
    merged = sorted(
        ((_merged_score(detections, trust, m), _merged_box(detections, m), m) for m in members),
        key=lambda lesion: (-lesion[0], lesion[1].tolist()),
    )
    if not merged:
        return MergedDetections(detections.boxes[:0], detections.scores[:0], ())
    return MergedDetections(
        torch.stack([box for _, box, _ in merged]),
        torch.tensor([score for score, _, _ in merged]),
        tuple(m for _, _, m in merged),
    )


def _merged_score(detections: WindowDetections, trust: Tensor, members: Tensor) -> float:
    """Mean score weighted by trust; windows that saw the place and said nothing count with the mean trust."""
    weight = trust[members].double()
    missing = max(0.0, float(detections.views[members].double().mean()) - len(members))
    total = float(weight.sum()) + missing * float(weight.mean())
    return float((detections.scores[members].double() * weight).sum()) / total


def _merged_box(detections: WindowDetections, members: Tensor) -> Tensor:
    """Each side is the mean over the members, weighted by score, of those that no window cut there.

    A side that every member had cut lies as far out as the farthest of them, and so do both of an axis whose means
    contradict each other.
    """
    sides, cut = detections.boxes[members].double(), detections.cut[members]
    weight = torch.where(cut, CUT_SIDE, 1.0).double() * detections.scores[members, None].double().clamp_min(1e-6)
    box = (sides * weight).sum(0) / weight.sum(0)
    outermost = torch.cat([sides[:, :3].amin(0), sides[:, 3:].amax(0)])
    box = torch.where(cut.all(dim=0), outermost, box)
    # Members that barely touch, each cut at another side, would give a beginning behind its end.
    reversed_axes = (box[3:] <= box[:3]).repeat(2)
    return torch.where(reversed_axes, outermost, box).float()


def _canonical(members: Tensor, detections: WindowDetections) -> Tensor:
    """Members in an order that does not depend on the windows': by score, then by coordinates."""
    keys = [(-float(detections.scores[i]), *detections.boxes[i].tolist(), int(i)) for i in members]
    return torch.tensor([k[-1] for k in sorted(keys)], dtype=torch.long)
