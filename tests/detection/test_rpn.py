"""Proposals and losses of the first stage where the network says what is not a number."""

import logging

import pytest
import torch

from volseg.detection.roi_heads import RoISettings, _choose
from volseg.detection.rpn import RPNSettings, propose, rpn_losses

SHAPE = (40, 40, 40)
NAN, INF = float("nan"), float("inf")


def said(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits 0, -1, -2, ..., codes of 0, and anchors of 4 voxels that lie apart along the diagonal."""
    low = 6.0 * torch.arange(n)[:, None].expand(n, 3)
    return -torch.arange(float(n)), torch.zeros(n, 6), torch.cat([low, low + 4], dim=1)


@pytest.mark.parametrize("value", [NAN, INF])
def test_anchors_that_are_not_finite_propose_nothing_and_leave_their_places_to_others(value, caplog):
    logits, code, anchors = said()
    logits[0], code[2, 4], code[3, 1] = value, value, value
    with caplog.at_level(logging.WARNING):
        boxes, scores = propose([logits], [code], [anchors], SHAPE, RPNSettings(per_level=2), most=5)
    torch.testing.assert_close(boxes, anchors[[1, 4]])
    torch.testing.assert_close(scores, logits[[1, 4]].sigmoid())
    assert "3 of a level's 6 anchors are NaN or Inf" in caplog.text


def test_where_all_is_nan_nothing_is_proposed():
    logits, code, anchors = said()
    boxes, scores = propose([logits * NAN], [code * NAN], [anchors], SHAPE, RPNSettings(), most=5)
    assert boxes.shape == (0, 6) and scores.shape == (0,)


def test_finite_anchors_are_proposed_without_a_warning(caplog):
    logits, code, anchors = said()
    boxes, _ = propose([logits, logits[:0]], [code, code[:0]], [anchors, anchors[:0]], SHAPE, RPNSettings(), most=5)
    assert torch.equal(boxes, anchors[:5]) and not caplog.text


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_detection_whose_code_is_not_finite_falls_and_the_others_stay(value):
    _, _, boxes = said(4)
    score, code = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.6, 0.2], [0.5, 0.3]]), torch.zeros(4, 2, 6)
    code[1, 0, 3], score[2, 1] = value, value
    found = _choose(score, code, boxes, SHAPE, RoISettings(score=0.4))
    torch.testing.assert_close(found["box"], boxes[[0, 3]])
    assert found["label_scores"].tolist() == pytest.approx([0.9, 0.5]) and found["label"].tolist() == [0, 0]


@pytest.mark.parametrize("where", ["logits", "codes"])
def test_training_on_nan_is_refused_with_the_number_of_the_image(where):
    logits, code, anchors = (t[None].repeat(2, *[1] * t.ndim) for t in said())
    (logits if where == "logits" else code)[1, 3] = NAN
    target = {"box": anchors[0, :1], "label": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"NaN about images \[1\] of a batch of 2: .* lower learning rate"):
        rpn_losses(logits, code, [anchors[0]], [target] * 2, RPNSettings(), per_location=1)
