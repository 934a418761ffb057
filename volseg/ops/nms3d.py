"""Overlap of 3D boxes, non-maximum suppression, and one box out of several windows' boxes of one lesion.

Boxes are (N, 6) xyzxyz in voxels, half-open: [x0, x1) x [y0, y1) x [z0, z1). Any real type enters, at least float32 is
computed with.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Boxes compared at once in `nms3d`: most of the later ones fall to those kept before, so small blocks compare less, and
# what they compare stays in the second-level cache. 1000 boxes take 4 ms, in one block of 1024 28 ms (2026-11).
BLOCK = 256
# Kept boxes compared with a block at once: 256 x 8192 numbers are 8 MB, a few such arrays live together.
MOST_KEPT = 8192


def box_volume(boxes: Tensor) -> Tensor:
    """(N, 6) -> (N,) in voxels; 0 where a box has no extent along an axis or is reversed along one."""
    boxes = _computed(boxes)
    x, y, z = (boxes[:, 3:] - boxes[:, :3]).clamp(min=0).unbind(1)
    return x * y * z


def box_intersection(a: Tensor, b: Tensor) -> Tensor:
    """(N, 6) and (M, 6) -> common volume (N, M) in voxels; boxes that only touch have none."""
    a, b = _computed(a), _computed(b)
    x, y, z = (
        (torch.minimum(a[:, None, i + 3], b[:, i + 3]) - torch.maximum(a[:, None, i], b[:, i])).clamp(min=0)
        for i in range(3)
    )
    return x * y * z


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, 6) and (M, 6) -> intersection over union (N, M) in 0..1; 0 where both boxes are empty."""
    common = box_intersection(a, b)
    union = box_volume(a)[:, None] + box_volume(b) - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def nms3d(boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_keep: int | None = None) -> Tensor:
    """Indices (long) of the boxes that stay, by descending score; of equal scores the lower index comes first.

    The result of the greedy rule (take the best box left, drop all with IoU > `iou_threshold` to it, repeat), which is
    the only fixed point of keep_j = no kept i before j overlaps j: within a block of boxes the rule is applied to all
    of them until nothing changes. boxes (N, 6), scores (N,); N = 0 gives no index. At most `max_keep` are returned.
    Memory grows with the number of boxes, not with its square. Raises ValueError for other shapes, for boxes that are
    not finite or reversed, and for scores that are NaN.
    """
    boxes, order = _by_score(boxes, scores, max_keep)
    kept = boxes[:0]
    places = order[:0]
    for start in range(0, len(boxes), BLOCK):
        if max_keep is not None and len(kept) >= max_keep:
            break
        block, place = boxes[start : start + BLOCK], order[start : start + BLOCK]
        free = torch.ones(len(block), dtype=torch.bool, device=boxes.device)
        for some in kept.split(MOST_KEPT):
            free &= ~(box_iou(some, block) > iou_threshold).any(0)
        block, place = block[free], place[free]
        mine = _greedy(box_iou(block, block) > iou_threshold)
        kept, places = torch.cat([kept, block[mine]]), torch.cat([places, place[mine]])
    return places[:max_keep]


def _greedy(overlap: Tensor) -> Tensor:
    """Which of n boxes stay, (n,) bool; overlap (n, n) bool, boxes by descending score."""
    suppresses = overlap.triu(1).float()
    keep = suppresses.new_ones(len(overlap))
    while True:
        # Sums of nothing but zeros and ones: 0 is exact in any precision a product may be computed in.
        after = (keep @ suppresses == 0).float()
        if torch.equal(after, keep):
            return keep.bool()
        keep = after


def nms3d_reference(boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_keep: int | None = None) -> Tensor:
    """`nms3d` as the rule is told: one box at a time."""
    boxes, order = _by_score(boxes, scores, max_keep)
    left, kept = list(range(len(boxes))), list[int]()
    while left and (max_keep is None or len(kept) < max_keep):
        best, rest = left[0], left[1:]
        kept.append(best)
        over = (box_iou(boxes[best : best + 1], boxes[rest])[0] > iou_threshold).tolist()
        left = [i for i, falls in zip(rest, over, strict=True) if not falls]
    return order[torch.tensor(kept, dtype=torch.long, device=order.device)]


def weighted_box_clustering(
    boxes: Tensor,
    scores: Tensor,
    weights: Tensor,
    *,
    iou_threshold: float = 0.3,
    ios_threshold: float = 0.6,
    expected_views: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of several windows -> (boxes (K, 6), scores (K,), cluster_of (N,) long), by descending merged score.

    Weighted box clustering (Jaeger et al., Retina U-Net, arXiv 1811.08661, and their Medical Detection Toolkit), with a
    second reason to belong together. The best box left opens a cluster and takes every box left that has IoU >
    `iou_threshold` with it, or of which more than `ios_threshold` of the smaller one's volume is common to both: a
    window that saw a piece of a large lesion gives a small box inside the whole one.

    boxes (N, 6), scores (N,) >= 0, weights (N,) >= 0 (trust in a box: less near a window's inner face). The merged box
    is the mean weighted by score * weight (unweighted where all of these are 0), the merged score the mean weighted by
    weight. `expected_views` (N,): how many windows looked at the place of each box. A cluster with n boxes fewer than
    the mean of its members' views counts n boxes of score 0 and of its mean weight as well.

    The result does not depend on the order of the boxes, to the last bit: they are sorted by score, coordinates,
    weight and views first. N = 0 gives (0, 6), (0,), (0,). Raises ValueError as `nms3d` does, and for negative scores
    or weights.
    """
    boxes, scores, weights, views = _detections(boxes, scores, weights, expected_views)
    order = _lexicographic([-scores, *boxes.unbind(1), weights, views])
    boxes, scores, weights, views = boxes[order], scores[order], weights[order], views[order]
    volume = box_volume(boxes)
    cluster = torch.full((len(boxes),), -1, dtype=torch.long, device=boxes.device)
    merged: list[Tensor] = []
    for i in range(len(boxes)):
        if cluster[i] >= 0:
            continue
        common = box_intersection(boxes[i : i + 1], boxes)[0]
        smaller = torch.minimum(volume[i], volume).clamp(min=torch.finfo(volume.dtype).tiny)
        near = (box_iou(boxes[i : i + 1], boxes)[0] > iou_threshold) | (common / smaller > ios_threshold)
        near[i] = True  # a box without volume overlaps nothing, itself included
        near &= cluster < 0
        cluster[near] = len(merged)
        merged.append(_merged(boxes[near], scores[near], weights[near], views[near]))
    result = torch.stack(merged) if merged else boxes.new_zeros((0, 7))
    places = _lexicographic([-result[:, 6], *result[:, :6].unbind(1)])
    rank, cluster_of = torch.empty_like(places), torch.empty_like(cluster)
    rank[places] = torch.arange(len(places), device=places.device)
    cluster_of[order] = rank[cluster]
    return result[places, :6], result[places, 6], cluster_of


def _merged(boxes: Tensor, scores: Tensor, weights: Tensor, views: Tensor) -> Tensor:
    """Box and score (7,) of one cluster; the sums are taken in float64."""
    boxes, scores, weights = boxes.double(), scores.double(), weights.double()
    trust = weights if weights.any() else torch.ones_like(weights)
    share = scores * trust if (scores * trust).any() else torch.ones_like(trust)
    missing = (views.double().mean() - len(boxes)).clamp(min=0)
    score = (scores * trust).sum() / (trust.sum() + missing * trust.mean())
    return torch.cat([(boxes * share[:, None]).sum(0) / share.sum(), score[None]]).to(views.dtype)


def _lexicographic(keys: list[Tensor]) -> Tensor:
    """Indices that sort by the first key, its ties by the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _computed(t: Tensor) -> Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def _by_score(boxes: Tensor, scores: Tensor, max_keep: int | None) -> tuple[Tensor, Tensor]:
    """Boxes by descending score, and where each was; detached and checked."""
    boxes, scores = checked_boxes(boxes, scores=scores)
    if max_keep is not None and max_keep < 0:
        raise ValueError(f"max_keep must be None or at least 0, got {max_keep}")
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], order


def _detections(boxes: Tensor, scores: Tensor, weights: Tensor, views: Tensor | None) -> list[Tensor]:
    """All four in one type, views 0 where none are given (then nothing is missing)."""
    named = {"scores": scores, "weights": weights}
    if views is not None:
        named["expected_views"] = views
    checked = checked_boxes(boxes, **named)
    for name, t in zip(named, checked[1:], strict=True):
        if (t < 0).any() or t.isinf().any():
            raise ValueError(f"{name} must be finite and at least 0, got {t.min():g} to {t.max():g}")
    dtype = checked[0].dtype
    return [t.to(dtype) for t in (*checked, *([torch.zeros_like(checked[1])] if views is None else []))]


def checked_boxes(boxes: Tensor, **per_box: Tensor) -> list[Tensor]:
    """Boxes (N, 6) and what belongs to each of them (N,), detached, in at least float32; ValueError as for `nms3d`."""
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise ValueError(f"boxes must be (N, 6) xyzxyz, got shape {tuple(boxes.shape)}; no box is (0, 6)")
    for name, t in per_box.items():
        if t.shape != boxes.shape[:1]:
            raise ValueError(f"{name} must have shape ({len(boxes)},) beside {len(boxes)} boxes, got {tuple(t.shape)}")
        if t.isnan().any():
            raise ValueError(f"{name} of {int(t.isnan().sum())} of {len(boxes)} boxes are NaN")
    boxes = _computed(boxes.detach())
    for wrong, what in ((~boxes.isfinite(), "not finite"), (boxes[:, 3:] < boxes[:, :3], "reversed")):
        if wrong.any():
            first = int(wrong.any(1).nonzero()[0])
            raise ValueError(
                f"{int(wrong.any(1).sum())} of {len(boxes)} boxes are {what}; the first is box {first}, "
                f"{[round(v, 3) for v in boxes[first].tolist()]}"
            )
    return [boxes, *(_computed(t.detach()) for t in per_box.values())]
