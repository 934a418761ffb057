"""Which anchor answers for which lesion, and which anchors are asked at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from torch import Tensor

from volseg.ops.nms3d import box_intersection, box_iou, box_volume

BACKGROUND, IGNORE = -1, -2
ATSS_BACKGROUND = 0.1  # overlap with an ignored box from which an anchor is not asked
CHUNK = 1 << 22  # entries of the IoU matrix at a time


def match(
    candidates: Tensor,
    boxes: Tensor,
    *,
    foreground: float,
    background: float,
    ignore: Tensor | None = None,
    keep_best: bool = False,
) -> Tensor:
    """Box index for every candidate, or BACKGROUND, or IGNORE: (N,) long.

    Args:
        candidates: (N, 6) anchors or proposals.
        boxes: (M, 6) lesions.
        foreground: IoU from which a candidate answers for its best box.
        background: IoU below which it is background; between the two it is ignored.
        ignore: (M,) bool, boxes that are neither lesion nor background (mostly cut off by the crop). A candidate that
            lies by half in one, or overlaps it from `background` on, is ignored.
        keep_best: every box also gets the candidate(s) with its highest IoU, however low (Faster R-CNN).
    """
    if not 0 <= background <= foreground <= 1:
        raise ValueError(f"0 <= background <= foreground <= 1 is needed, not {background} and {foreground}")
    n, m = candidates.shape[0], boxes.shape[0]
    matches = torch.full((n,), BACKGROUND, dtype=torch.long, device=candidates.device)
    if n == 0 or m == 0:
        return matches
    real = torch.ones(m, dtype=torch.bool, device=boxes.device) if ignore is None else ~ignore
    index = torch.nonzero(real)[:, 0]
    for rows in torch.arange(n, device=candidates.device).split(max(1, CHUNK // m)):
        part = candidates[rows]
        if len(index):
            best, which = box_iou(part, boxes[index]).max(dim=1)
            found = torch.where(best >= background, IGNORE, BACKGROUND)
            matches[rows] = torch.where(best >= foreground, index[which], found)
        if not bool(real.all()):
            excused = _near(part, boxes[~real], background) & (matches[rows] < 0)
            matches[rows] = torch.where(excused, IGNORE, matches[rows])
    if keep_best and len(index):
        _keep_best(matches, candidates, boxes, index)
    return matches


def match_atss(
    candidates: Tensor, boxes: Tensor, *, per_level: Sequence[int], per_location: int, ignore: Tensor | None = None
) -> Tensor:
    """As `match`, with MONAI's ATSSMatcher (4 candidates a level, centre need not lie in the box: small lesions).

    `per_level`: locations (not anchors) of each level.
    """
    matches = torch.full((len(candidates),), BACKGROUND, dtype=torch.long, device=candidates.device)
    real = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device) if ignore is None else ~ignore
    if not bool(real.all()):
        matches[_near(candidates, boxes[~real], ATSS_BACKGROUND)] = IGNORE
    index = torch.nonzero(real)[:, 0]
    if len(index) and len(candidates):
        _, found = ATSSMatcher(num_candidates=4, center_in_gt=False).compute_matches(
            boxes[index], candidates, list(per_level), per_location
        )
        matches = torch.where(found >= 0, index[found.clamp_min(0)], matches)
    return matches


def sample(
    matches: Tensor, scores: Tensor, *, number: int, positive_fraction: float, pool: int = 10
) -> tuple[Tensor, Tensor]:
    """Indices of at most `number` candidates to learn from: (positives, negatives).

    Positives are drawn at random up to `positive_fraction`. Of the negatives half are the hardest: drawn from the
    `pool` times as many with the highest `scores` (N,) (nnDetection's pool); the rest from all. torch's global
    generator draws, so a seed decides.
    """
    positive = torch.nonzero(matches >= 0)[:, 0]
    negative = torch.nonzero(matches == BACKGROUND)[:, 0]
    positive = _draw(positive, int(number * positive_fraction))
    wanted = min(number - len(positive), len(negative))
    hard = wanted // 2
    order = (
        scores[negative].float().topk(min(len(negative), max(1, hard * pool))).indices if len(negative) else negative
    )
    hardest = _draw(negative[order], hard) if len(negative) else negative
    rest = negative[~torch.isin(negative, hardest)]
    return positive, torch.cat([hardest, _draw(rest, wanted - len(hardest))])


def _near(candidates: Tensor, ignored: Tensor, iou: float) -> Tensor:
    """(N,) bool: the candidate lies by half in an ignored box, or overlaps one from `iou` on."""
    half = (box_intersection(candidates, ignored) >= 0.5 * box_volume(candidates)[:, None]).any(dim=1)
    return half | (box_iou(candidates, ignored) >= iou).any(dim=1)


def _draw(index: Tensor, most: int) -> Tensor:
    if len(index) <= most:
        return index
    return index[torch.randperm(len(index), device=index.device)[:most]]


def _keep_best(matches: Tensor, candidates: Tensor, boxes: Tensor, index: Tensor) -> None:
    """In place; later boxes do not take what an earlier, better overlap has."""
    iou = box_iou(boxes[index], candidates)
    best = iou.max(dim=1).values
    for row in torch.argsort(best, stable=True):  # the best overlap writes last, so it wins
        if best[row] > 0:
            matches[iou[row] >= best[row] - 1e-6] = index[row]
