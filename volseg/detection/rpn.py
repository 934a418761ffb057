"""First stage: which anchors hold a lesion. Losses in training, proposals always."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.detection.boxes import RPN_CODE, clip_boxes, decode, encode, finite_rows, large_enough
from volseg.detection.matching import match, match_atss, sample
from volseg.ops.nms3d import nms3d

log = logging.getLogger(__name__)

BETA = 1 / 9  # where smooth L1 turns from square to line, as in torchvision


@dataclass(frozen=True)
class RPNSettings:
    """How the first stage learns and chooses.

    matcher: "iou" (from `foreground` on, below `background`; every lesion keeps its best anchor) or "atss".
    samples, positive_fraction: anchors per image in the loss. per_level, nms_iou, proposals: what is passed on;
    `proposals_test` in inference.
    """

    matcher: str = "iou"
    foreground: float = 0.35
    background: float = 0.1
    samples: int = 128
    positive_fraction: float = 0.5
    per_level: int = 300
    nms_iou: float = 0.6
    proposals: int = 200
    proposals_test: int = 100

    def __post_init__(self) -> None:
        if self.matcher not in ("iou", "atss"):
            raise ValueError(f"matcher is 'iou' or 'atss', not {self.matcher!r}")


def rpn_losses(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    settings: RPNSettings,
    *,
    per_location: int,
) -> dict[str, Tensor]:
    """Losses of the first stage: {"rpn_objectness", "rpn_box"}, scalars, over all images of the batch.

    objectness (B, N) logits, deltas (B, N, 6), anchors per level with N in all. Normalised as torchvision does: both
    over the number of sampled anchors. A batch without lesions has a box loss of 0 with a gradient of 0. Raises
    ValueError for NaN: `propose` goes on without such anchors, and a training would go on with weights of NaN.
    """
    broken = torch.nonzero(objectness.isnan().any(1) | deltas.isnan().flatten(1).any(1))[:, 0].tolist()
    if broken:
        raise ValueError(
            f"the network says NaN about images {broken} of a batch of {len(objectness)}: they hold NaN themselves, or "
            "the training has diverged and wants a lower learning rate"
        )
    flat = torch.cat(list(anchors))
    locations = [len(a) // per_location for a in anchors]
    said, meant, code_said, code_meant = [], [], [], []
    for logits, code, target in zip(objectness, deltas, targets, strict=True):
        if settings.matcher == "atss":
            matches = match_atss(
                flat, target["box"], per_level=locations, per_location=per_location, ignore=target.get("ignore")
            )
        else:
            matches = match(
                flat,
                target["box"],
                foreground=settings.foreground,
                background=settings.background,
                ignore=target.get("ignore"),
                keep_best=True,
            )
        positive, negative = sample(
            matches, logits.detach(), number=settings.samples, positive_fraction=settings.positive_fraction
        )
        said.append(logits[torch.cat([positive, negative])])
        meant.append(torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(logits))
        code_said.append(code[positive])
        if len(positive):
            code_meant.append(encode(target["box"][matches[positive]], flat[positive], RPN_CODE))
    number = max(1, sum(len(m) for m in meant))
    box = torch.cat(code_said)
    wanted = torch.cat(code_meant) if code_meant else box.detach()
    return {
        "rpn_objectness": F.binary_cross_entropy_with_logits(torch.cat(said), torch.cat(meant), reduction="sum")
        / number,
        "rpn_box": F.smooth_l1_loss(box, wanted, beta=BETA, reduction="sum") / number,
    }


@torch.no_grad()
def propose(
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    shape: Sequence[int],
    settings: RPNSettings,
    *,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Proposals of one image: boxes (P, 6) inside the image of `shape` and objectness (P,) in [0, 1], best first.

    objectness, deltas, anchors per level: (N_l,), (N_l, 6), (N_l, 6). NMS runs over all levels together: a lesion has
    one size. Anchors with NaN or Inf propose nothing, with a warning; P may be 0.
    """
    boxes, scores = [], []
    for logits, code, level in zip(objectness, deltas, anchors, strict=True):
        top = _best(logits, code, settings.per_level)
        boxes.append(clip_boxes(decode(code[top], level[top], RPN_CODE), shape))
        scores.append(logits[top].float().sigmoid())
    every, score = torch.cat(boxes), torch.cat(scores)
    kept = torch.nonzero(large_enough(every))[:, 0]
    every, score = every[kept], score[kept]
    chosen = nms3d(every, score, settings.nms_iou, max_keep=most)
    return every[chosen], score[chosen]


def _best(logits: Tensor, code: Tensor, most: int) -> Tensor:
    """Indices of the `most` highest logits (N,) among the rows that are finite, in their code (N, 6) too."""
    # Sorted stably: which of two equal anchors comes first must not depend on the machine.
    order = torch.sort(logits.float(), descending=True, stable=True).indices
    top = order[:most]
    if bool(finite_rows(logits[top, None], code[top]).all()):  # the others need not be looked at
        return top
    finite = finite_rows(logits[:, None], code)
    dropped = len(finite) - int(finite.sum())
    log.warning("%d of a level's %d anchors are NaN or Inf and propose nothing: is the image?", dropped, len(finite))
    return order[finite[order]][:most]
