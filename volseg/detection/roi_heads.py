"""Second stage: proposals -> lesions with box, class, score and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.detection.anchors import AnchorGrid
from volseg.detection.boxes import ROI_CODE, clip_boxes, decode, encode, finite_rows, large_enough
from volseg.detection.mask_rcnn_network import MaskRCNNNetwork
from volseg.detection.matching import match, sample
from volseg.detection.rpn import BETA
from volseg.ops.nms3d import nms3d
from volseg.ops.roi_align3d import roi_align3d


@dataclass(frozen=True)
class RoISettings:
    """How the second stage learns and chooses.

    samples, positive_fraction: proposals per image in the loss; mask_samples: of the positives, how many learn a mask.
    score, nms_iou, detections: what an image may return.
    """

    foreground: float = 0.35
    background: float = 0.2
    samples: int = 48
    positive_fraction: float = 1 / 3
    mask_samples: int = 12
    score: float = 0.05
    nms_iou: float = 0.3
    detections: int = 30


def pool_rois(
    pyramid: Sequence[Tensor],
    boxes: Sequence[Tensor],
    size: int,
    *,
    anchors: AnchorGrid,
    strides: Sequence[Sequence[float]],
    sampling_ratio: int = 1,
) -> Tensor:
    """RoIAlign from the level that fits each box: per image boxes (N_i, 6) -> (sum N_i, C, size, size, size)."""
    every = torch.cat(list(boxes))
    image = torch.cat([torch.full((len(b),), i, dtype=torch.long, device=b.device) for i, b in enumerate(boxes)])
    level = anchors.level_of(every) if len(every) else image
    out = pyramid[0].new_zeros((len(every), pyramid[0].shape[1], size, size, size))
    for i, (features, stride) in enumerate(zip(pyramid, strides, strict=True)):
        here = torch.nonzero(level == i)[:, 0]
        if len(here):
            scale = tuple(1.0 / s for s in stride)
            pooled = roi_align3d(
                features,
                every[here],
                image[here],
                output_size=size,
                spatial_scale=(scale[0], scale[1], scale[2]),
                sampling_ratio=sampling_ratio,
            )
            out = out.index_copy(0, here, pooled.to(out.dtype))
    return out


@dataclass(frozen=True, eq=False)
class RoISample:
    """The proposals of one image that take part in the loss, positives first. `matched`: target rows, -1 for none."""

    boxes: Tensor
    matched: Tensor


@torch.no_grad()
def sample_rois(proposals: Tensor, scores: Tensor, target: Mapping[str, Tensor], settings: RoISettings) -> RoISample:
    """Draw proposals to learn from; the lesions' own boxes are added, so that an untrained RPN teaches something."""
    ignore = target.get("ignore")
    real = target["box"] if ignore is None else target["box"][~ignore]
    boxes = torch.cat([real, proposals])
    score = torch.cat([scores.new_ones(len(real)), scores])
    matches = match(boxes, target["box"], foreground=settings.foreground, background=settings.background, ignore=ignore)
    positive, negative = sample(matches, score, number=settings.samples, positive_fraction=settings.positive_fraction)
    index = torch.cat([positive, negative])
    return RoISample(boxes[index], matches[index])


def roi_losses(
    network: MaskRCNNNetwork,
    pyramid: Sequence[Tensor],
    samples: Sequence[RoISample],
    targets: Sequence[Mapping[str, Tensor]],
    settings: RoISettings,
    anchors: AnchorGrid,
) -> dict[str, Tensor]:
    """Losses of the second stage: {"roi_class", "roi_box", "roi_mask"}. Zero, with zero gradients, without lesions."""
    pooled = pool_rois(pyramid, [s.boxes for s in samples], network.box_size, anchors=anchors, strides=network.strides)
    logits, deltas = network.box_head(pooled)
    logits, deltas = logits.float(), deltas.float()
    matched = torch.cat([s.matched for s in samples])
    boxes = torch.cat([s.boxes for s in samples])
    labels = torch.zeros_like(matched)
    wanted = torch.zeros_like(boxes)
    start = 0
    for s, target in zip(samples, targets, strict=True):
        hit = torch.nonzero(s.matched >= 0)[:, 0]
        if len(hit):
            labels[start + hit] = target["label"][s.matched[hit]] + 1
            wanted[start + hit] = encode(target["box"][s.matched[hit]], s.boxes[hit], ROI_CODE)
        start += len(s.boxes)
    positive = torch.nonzero(labels > 0)[:, 0]
    number = max(1, len(labels))
    return {
        "roi_class": F.cross_entropy(logits, labels, reduction="sum") / number,
        "roi_box": F.smooth_l1_loss(
            deltas[positive, labels[positive] - 1], wanted[positive], beta=BETA, reduction="sum"
        )
        / number,
        "roi_mask": _mask_loss(network, pyramid, samples, targets, settings, anchors),
    }


def _mask_loss(
    network: MaskRCNNNetwork,
    pyramid: Sequence[Tensor],
    samples: Sequence[RoISample],
    targets: Sequence[Mapping[str, Tensor]],
    settings: RoISettings,
    anchors: AnchorGrid,
) -> Tensor:
    boxes, wanted, labels = [], [], []
    for s, target in zip(samples, targets, strict=True):
        hit = torch.nonzero(s.matched >= 0)[:, 0][: settings.mask_samples]
        boxes.append(s.boxes[hit])
        wanted.append(mask_targets(target, s.boxes[hit], s.matched[hit], 2 * network.mask_size))
        labels.append(target["label"][s.matched[hit]])
    pooled = pool_rois(pyramid, boxes, network.mask_size, anchors=anchors, strides=network.strides)
    if not len(pooled):
        # A path of zeros through every weight of the head: DDP and the optimiser see each step alike.
        blank = pyramid[0].new_zeros((1, pyramid[0].shape[1], *(network.mask_size,) * 3))
        return network.mask_head(blank).float().sum() * 0.0
    label = torch.cat(labels)
    logits = network.mask_head(pooled).float()[torch.arange(len(label), device=label.device), label]
    truth = torch.cat(wanted).to(logits)
    probability = logits.sigmoid()
    overlap = (probability * truth).flatten(1).sum(1)
    size = (probability + truth).flatten(1).sum(1)
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return F.binary_cross_entropy_with_logits(logits, truth) + dice.mean()


@torch.no_grad()
def mask_targets(target: Mapping[str, Tensor], boxes: Tensor, rows: Tensor, size: int) -> Tensor:
    """The matched instance inside each box, as fractions in [0, 1]: (N, size, size, size).

    Each mask is cut to the box's voxels before RoIAlign: on a whole image N masks would not fit.
    """
    out = boxes.new_zeros((len(boxes), size, size, size))
    labels = target["mask"][0]
    for i, (box, row) in enumerate(zip(boxes, rows, strict=True)):
        low = [max(0, int(v) - 1) for v in box[:3].floor()]
        high = [min(n, int(v) + 1) for v, n in zip(box[3:].ceil(), labels.shape, strict=True)]
        cut = labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]] == target["id"][row]
        shift = boxes.new_tensor(low * 2)
        out[i] = roi_align3d(
            cut[None, None].float(),
            (box - shift)[None],
            torch.zeros(1, dtype=torch.long, device=boxes.device),
            output_size=size,
            spatial_scale=1.0,
            sampling_ratio=1,
        )[0, 0]
    return out


@torch.no_grad()
def detect(
    network: MaskRCNNNetwork,
    pyramid: Sequence[Tensor],
    proposals: Sequence[Tensor],
    shape: Sequence[int],
    settings: RoISettings,
    anchors: AnchorGrid,
) -> list[dict[str, Tensor]]:
    """Per image: box (N, 6) float32, label (N,) long, label_scores (N,), best first, and mask (N, s, s, s): the
    probability inside its own box, s = 2 * mask_size. N may be 0.
    """
    results = [
        {
            "box": p.new_zeros((0, 6)),
            "label": torch.zeros(0, dtype=torch.long, device=p.device),
            "label_scores": p.new_zeros(0),
        }
        for p in proposals
    ]
    counts = [len(p) for p in proposals]
    if sum(counts):
        pooled = pool_rois(pyramid, proposals, network.box_size, anchors=anchors, strides=network.strides)
        logits, deltas = network.box_head(pooled)
        probability = logits.float().softmax(dim=1)[:, 1:]
        for i, (score, code, boxes) in enumerate(
            zip(probability.split(counts), deltas.float().split(counts), proposals, strict=True)
        ):
            results[i] = _choose(score, code, boxes, shape, settings)
    pooled = pool_rois(
        pyramid, [r["box"] for r in results], network.mask_size, anchors=anchors, strides=network.strides
    )
    size = 2 * network.mask_size
    masks = network.mask_head(pooled).float().sigmoid() if len(pooled) else pooled.new_zeros((0, 1, size, size, size))
    for result, mask in zip(results, masks.split([len(r["box"]) for r in results]), strict=True):
        result["mask"] = mask[torch.arange(len(mask), device=mask.device), result["label"]].float()
    return results


def _choose(
    score: Tensor, code: Tensor, boxes: Tensor, shape: Sequence[int], settings: RoISettings
) -> dict[str, Tensor]:
    """One image's proposals (P, 6) with scores (P, K) and codes (P, K, 6) -> what survives score and NMS per class.

    Rows with NaN or Inf do not.
    """
    finite = finite_rows(score, code)
    score, code, boxes = score[finite], code[finite], boxes[finite]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for label in range(score.shape[1]):
        candidate = clip_boxes(decode(code[:, label], boxes, ROI_CODE), shape)
        kept = torch.nonzero((score[:, label] >= settings.score) & large_enough(candidate))[:, 0]
        chosen = kept[nms3d(candidate[kept], score[kept, label], settings.nms_iou, max_keep=settings.detections)]
        found.append((candidate[chosen], score[chosen, label], torch.full_like(chosen, label)))
    box, value, label_of = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = torch.sort(value, descending=True, stable=True).indices[: settings.detections]
    return {"box": box[order], "label": label_of[order], "label_scores": value[order]}
