"""The one metric of a detector's evaluate.json, on a case that can be checked by hand."""

import pytest
import torch

from volseg.evaluation.detection_metric import DetectionSummary


def case():
    label = torch.zeros(1, 10, 10, 10, dtype=torch.int32)
    label[0, 0:4, 0:4, 0:4] = 1
    label[0, 6:8, 6:8, 6:8] = 2
    pred = torch.zeros_like(label)
    pred[0, 0:2, 0:4, 0:4] = 1  # half of lesion 1: IoU .5, Dice 2/3
    pred[0, 9, 9, 9] = 2  # false
    return pred, (0.9, 0.4), label


def test_a_case_worked_by_hand():
    metric = DetectionSummary(operating_score=0.5)
    pred, scores, label = case()
    metric.update(([pred], [scores], [label]))
    found = metric.compute()
    assert found["froc_1"] == found["froc_8"] == found["froc_0.125"] == 0.5, "one of two, before the first false one"
    assert found["mask_dice"] == pytest.approx(2 / 3)
    assert found["AP_10"] == pytest.approx(51 / 101), "precision 1 up to recall .5, 0 beyond"
    assert (found["sensitivity"], found["false_positives_per_case"]) == (0.5, 0.0), "the false one scores .4"
    assert found["mAP_10_50"] == pytest.approx(51 / 101), "IoU .5 is a hit up to the last threshold"


def test_reset_forgets_and_nothing_is_refused():
    metric = DetectionSummary(operating_score=0.5)
    pred, scores, label = case()
    metric.update(([pred], [scores], [label]))
    metric.reset()
    with pytest.raises(ValueError, match="no case"):
        metric.compute()
