"""Which prediction belongs to which true lesion. Enters: boxes or instance maps. Leaves: pairs, one to one.

Two rules, for two questions. With predictions that only exist or not, `match_optimally` finds the assignment of the
largest summed IoU. With scored predictions, `match_by_score` serves the highest score first, so that raising the
score threshold never changes who hit whom: a FROC curve needs that. Where all scores are equal both rules are one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

Ious = NDArray[np.float64]
A_PAIR_MORE = 1e-9  # far below what two different sums of IoUs differ by, far above their rounding


def instance_ious(predicted: NDArray, truth: NDArray) -> tuple[NDArray, NDArray, Ious]:
    """Compare two instance maps of one shape (0 = background).

    Returns (true ids (T,), predicted ids (P,), IoU (T, P)). Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, truth {truth.shape}")
    predicted_ids, predicted_sizes = _sizes(predicted)
    true_ids, true_sizes = _sizes(truth)
    overlap = np.zeros((true_ids.size, predicted_ids.size))
    both = (predicted > 0) & (truth > 0)
    if both.any():
        pairs, counts = np.unique(np.stack([truth[both], predicted[both]]), axis=1, return_counts=True)
        overlap[np.searchsorted(true_ids, pairs[0]), np.searchsorted(predicted_ids, pairs[1])] = counts
    union = true_sizes[:, None] + predicted_sizes[None, :] - overlap
    return true_ids, predicted_ids, np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def box_ious(predicted: ArrayLike, truth: ArrayLike) -> Ious:
    """IoU (T, P) of half-open boxes xyzxyz, predicted (P, 6) and true (T, 6), in voxels or in mm.

    Raises ValueError for boxes that are not (n, 6), not finite, or without volume (a reversed box has none).
    """
    p, t = check_boxes(predicted, "predicted"), check_boxes(truth, "true")
    starts = np.maximum(t[:, None, :3], p[None, :, :3])
    stops = np.minimum(t[:, None, 3:], p[None, :, 3:])
    overlap = np.clip(stops - starts, 0, None).prod(axis=2)
    volume_t, volume_p = ((b[:, 3:] - b[:, :3]).prod(axis=1) for b in (t, p))
    return np.asarray(overlap / (volume_t[:, None] + volume_p[None, :] - overlap))


def centers_in_boxes(centers: ArrayLike, boxes: ArrayLike) -> Ious:
    """1 where a predicted center (P, 3) lies in a true half-open box (T, 6), otherwise 0; (T, P).

    A second, looser meaning of "found" for truths that are only boxes: use it where an IoU matrix is asked for.
    """
    b = check_boxes(boxes, "true")
    c = np.asarray(centers, dtype=np.float64).reshape(-1, 3)
    inside = (c[None] >= b[:, None, :3]) & (c[None] < b[:, None, 3:])
    return np.asarray(inside.all(axis=2), dtype=np.float64)


def check_boxes(boxes: ArrayLike, name: str) -> NDArray[np.float64]:
    """Boxes as float64 (n, 6), an empty list as (0, 6); ValueError names the first bad box."""
    b = np.asarray(boxes, dtype=np.float64)
    if b.size == 0:
        return np.zeros((0, 6))
    if b.ndim != 2 or b.shape[1] != 6:
        raise ValueError(f"{name} boxes have shape {b.shape}; expected (n, 6) as x0 y0 z0 x1 y1 z1")
    bad = ~(np.isfinite(b).all(axis=1) & (b[:, 3:] > b[:, :3]).all(axis=1))
    if bad.any():
        n = int(np.argmax(bad))
        raise ValueError(f"{name} box {n} is {b[n].tolist()}: not finite, reversed or without volume")
    return b


def match_optimally(ious: Ious, at_least: float) -> list[tuple[int, int]]:
    """(true row, predicted column) of the one-to-one assignment that maximises the summed IoU.

    A pair counts from IoU >= `at_least`; at 0 any overlap counts, no overlap never does. Of equal sums the one of more
    pairs is taken: otherwise the order of the list would decide whether .5 is one hit or two of .25.
    """
    usable = (ious >= at_least) & (ious > 0)
    rows, columns = linear_sum_assignment(np.where(usable, ious + A_PAIR_MORE, 0.0), maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if usable[r, c]]


def match_by_score(ious: Ious, scores: ArrayLike, at_least: float) -> NDArray[np.int64]:
    """For each of P predictions the true row it hit, or -1: COCO's rule between different scores.

    Highest score first; each takes the free true lesion of largest IoU >= `at_least` (> 0). COCO serves equal scores
    in the order in which they are listed; here they are served together, by `match_optimally` among the lesions still
    free, so that the order of the list does not decide how many of them hit.
    """
    s = np.asarray(scores, dtype=np.float64)
    if ious.ndim != 2 or s.shape != ious.shape[1:]:
        raise ValueError(f"{s.size} scores for an IoU matrix of shape {ious.shape} (true, predicted)")
    if np.isnan(s).any():
        raise ValueError(f"{int(np.isnan(s).sum())} of {s.size} scores are NaN")
    matched = np.full(s.size, -1, dtype=np.int64)
    if ious.size == 0:
        return matched
    free = np.where((ious >= at_least) & (ious > 0), ious, 0.0)
    falling = np.argsort(-s, kind="stable")
    for columns in np.split(falling, np.flatnonzero(s[falling][1:] != s[falling][:-1]) + 1):
        if columns.size == 1:  # the usual case, and quick: an assignment of one is the largest IoU
            row = int(np.argmax(free[:, columns[0]]))
            hits = [(row, 0)] if free[row, columns[0]] > 0 else []
        else:
            hits = match_optimally(free[:, columns], at_least)
        for row, n in hits:
            matched[columns[n]] = row
            free[row] = 0.0
    return matched


def _sizes(instances: NDArray) -> tuple[NDArray, NDArray]:
    ids, counts = np.unique(instances, return_counts=True)
    return ids[ids > 0], counts[ids > 0]
