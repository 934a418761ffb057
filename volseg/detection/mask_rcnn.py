"""The detector: images and targets in, losses out; images in, lesions out. Built ready; there are no setters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from volseg.detection.anchors import AnchorGrid
from volseg.detection.boxes import check_boxes
from volseg.detection.mask_rcnn_network import Maps, MaskRCNNNetwork
from volseg.detection.roi_heads import RoISettings, detect, roi_losses, sample_rois
from volseg.detection.rpn import RPNSettings, propose, rpn_losses
from volseg.detection.semantic_proposals import THRESHOLDS, semantic_proposals
from volseg.detection.targets import stacked, targets_from_instances
from volseg.errors import UsageError
from volseg.ops.log_odds import mean_probability


class MaskRCNN3D(nn.Module):
    """3D Mask R-CNN with the calling convention of MONAI's RetinaNetDetector.

    `detector(images, targets)` in training mode gives a dict of scalar losses; `detector(images)` in eval mode a list,
    one dict per image, of box (N, 6), label (N,), label_scores (N,) and mask (N, s, s, s): the probability of lesion
    inside its own box. `.network` holds every weight.

    Args:
        network: a `MaskRCNNNetwork`.
        anchors: an `AnchorGrid` with as many levels and as many anchors a place as the network was built for.
        rpn, roi: settings of the two stages.
        semantic_thresholds: the dense branch proposes its connected pieces at these probabilities; () for the RPN
            alone.
        weights: of the losses, by name; a name left out counts 1.
        semantic_loss: of the dense branch, called with logits (B, 1 + classes, X, Y, Z) and lesion (B, 1, X, Y, Z) in 0
            and 1; None: Dice and cross-entropy.

    Images are a batch (B, C, X, Y, Z) or a list of equally shaped (C, X, Y, Z). Targets are one dict per image as
    `targets_from_instances` makes them, or any with box (N, 6), label (N,) and mask (1, X, Y, Z), the instance label
    map, with id (N,) naming each box's value (1..N where left out). N = 0 is fine: lesion-free images teach too.

    Raises:
        UsageError: training without targets; anchors that do not fit the network.
        InputError: boxes that are reversed, empty, outside or not finite.
    """

    def __init__(
        self,
        network: MaskRCNNNetwork,
        anchors: AnchorGrid,
        *,
        rpn: RPNSettings | None = None,
        roi: RoISettings | None = None,
        semantic_thresholds: Sequence[float] = THRESHOLDS,
        weights: Mapping[str, float] | None = None,
        semantic_loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if anchors.levels != len(network.strides):
            raise UsageError(
                "anchor-levels",
                f"sizes_mm holds {anchors.levels} levels, the network's pyramid {len(network.strides)}",
            )
        if anchors.per_location * 6 != network.rpn_head.deltas.out_channels:
            raise UsageError(
                "anchor-count",
                f"{anchors.per_location} anchors a place, but the network was built for "
                f"anchors_per_location={network.rpn_head.deltas.out_channels // 6}",
            )
        self.network = network
        self.anchors = anchors
        self.rpn, self.roi = rpn or RPNSettings(), roi or RoISettings()
        self.semantic_thresholds = tuple(semantic_thresholds)
        self.weights = dict(weights or {})
        self.semantic_loss = semantic_loss or DiceCELoss(
            to_onehot_y=True, softmax=True, include_background=False, batch=True
        )

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        batch = stacked(images)
        if not self.training:
            return self.predict(batch)[0]
        if targets is None:
            raise UsageError("targets-missing", "a detector in training mode needs targets: detector(images, targets)")
        return self.losses(batch, [_complete(t, batch.shape[2:], i) for i, t in enumerate(targets)])

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """All losses of a batch, weighted; the network under whatever autocast is on, the arithmetic in float32."""
        maps = self.network(images)
        with torch.autocast(images.device.type, enabled=False):
            objectness = [o.float() for o in maps.objectness]
            deltas = [d.float() for d in maps.deltas]
            anchors = self._anchors(maps)
            found = rpn_losses(
                torch.cat(objectness, dim=1),
                torch.cat(deltas, dim=1),
                anchors,
                targets,
                self.rpn,
                per_location=self.anchors.per_location,
            )
            lesion = lesion_probability(maps.semantic)
            proposals = self._proposals(objectness, deltas, anchors, lesion, self.rpn.proposals)
            samples = [sample_rois(b, s, t, self.roi) for (b, s), t in zip(proposals, targets, strict=True)]
            semantic = torch.stack([(t["mask"] > 0).float() for t in targets])
            found["semantic"] = self.semantic_loss(maps.semantic.float(), semantic)
        found |= roi_losses(self.network, maps.pyramid, samples, targets, self.roi, self.anchors)
        return {name: self.weights.get(name, 1.0) * value for name, value in found.items()}

    @torch.no_grad()
    def predict(self, images: Tensor, beside: Tensor | None = None) -> tuple[list[dict[str, Tensor]], Tensor]:
        """(B, C, X, Y, Z) -> detections per image, and the semantic lesion probability (B, X, Y, Z) float32.

        beside: what other networks hold for a lesion, probabilities (B, N, X, Y, Z). The mean of their log odds then
        takes the place of the dense branch's map: its pieces are proposed, and it is what is given back.
        """
        maps = self.network(images)
        objectness = [o.float() for o in maps.objectness]
        deltas = [d.float() for d in maps.deltas]
        lesion = lesion_probability(maps.semantic) if beside is None else mean_probability(beside, dim=1)
        proposals = self._proposals(objectness, deltas, self._anchors(maps), lesion, self.rpn.proposals_test)
        found = detect(self.network, maps.pyramid, [b for b, _ in proposals], images.shape[2:], self.roi, self.anchors)
        return found, lesion

    def _anchors(self, maps: Maps) -> list[Tensor]:
        shapes = [tuple(level.shape[2:]) for level in maps.pyramid]
        return [a.to(maps.semantic.device) for a in self.anchors(shapes, self.network.strides)]

    def _proposals(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        lesion: Tensor,
        most: int,
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image boxes (P, 6) and scores (P,): the RPN's `most` best, then the dense branch's."""
        every = []
        for i, probability in enumerate(lesion):
            first = propose(
                [o[i] for o in objectness], [d[i] for d in deltas], anchors, lesion.shape[1:], self.rpn, most=most
            )
            dense = semantic_proposals(probability, thresholds=self.semantic_thresholds)
            every.append((torch.cat([first[0], dense[0]]), torch.cat([first[1], dense[1]])))
        return every


@torch.no_grad()
def lesion_probability(semantic: Tensor) -> Tensor:
    """Logits of the dense branch (B, K, X, Y, Z), class 0 background -> lesion of any class (B, X, Y, Z) float32."""
    return 1 - semantic.float().softmax(dim=1)[:, 0]


def _complete(target: Mapping[str, Tensor], shape: Sequence[int], number: int) -> dict[str, Tensor]:
    """Check a target given by a user and fill in what follows from the rest."""
    if "mask" not in target:
        raise UsageError("targets-mask", f"target {number} has no 'mask', the instance label map (1, X, Y, Z)")
    if tuple(target["mask"].shape[1:]) != tuple(shape):
        raise UsageError(
            "targets-shape",
            f"target {number}: mask {tuple(target['mask'].shape)} does not fit the image's {tuple(shape)}",
        )
    if "box" not in target:
        return targets_from_instances(target["mask"])
    device = target["mask"].device
    box = check_boxes(target["box"], shape, where=f"target {number}").to(device)
    n = len(box)
    full = dict(target) | {"box": box}
    full.setdefault("label", torch.zeros(n, dtype=torch.long, device=device))
    full.setdefault("id", torch.arange(1, n + 1, device=device))
    full.setdefault("ignore", torch.zeros(n, dtype=torch.bool, device=device))
    for key in ("label", "id", "ignore"):
        if len(full[key]) != n:
            raise UsageError("targets-count", f"target {number}: {n} boxes but {len(full[key])} entries in {key!r}")
    return full
