"""FROC and average precision: counted on paper, and against MONAI's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.metrics import compute_froc_curve_data

from volseg.evaluation.detection import (
    DetectionCase,
    average_precision,
    found_lesions,
    froc,
    mean_average_precision,
    sensitivity_by_size,
)
from volseg.evaluation.matching import box_ious, match_by_score


def case(hits: list[float], false: list[float], *, missed: int = 0, **more) -> DetectionCase:
    """One volume: a prediction of IoU 1 per score in `hits`, scores of false positives, lesions nobody saw."""
    ious = np.zeros((len(hits) + missed, len(hits) + len(false)))
    ious[range(len(hits)), range(len(hits))] = 1.0
    return DetectionCase(ious, np.array([*hits, *false], dtype=float), **more)


@pytest.fixture
def random_boxes(rng):
    """Five volumes with true boxes, jittered predictions and false ones: (predicted, scores, truth) each.

    Eleven lesions: no recall falls on a hundredth, where COCO's comparison of floats loses a hit (see below).
    """
    volumes = []
    for n in (0, 1, 2, 3, 5):
        truth = rng.integers(0, 60, (n, 3))
        truth = np.concatenate([truth, truth + rng.integers(4, 12, (n, 3))], axis=1).astype(float)
        near = np.repeat(truth, 2, axis=0) + rng.integers(-2, 3, (2 * n, 6)) * 0.5
        false = rng.integers(0, 60, (3, 3))
        predicted = np.concatenate([near, np.concatenate([false, false + 5], axis=1)])
        volumes.append((predicted, rng.permutation(len(predicted)) / 20 + n / 100, truth))
    return volumes


def test_a_froc_curve_counted_by_hand():
    # Four lesions in three volumes, one of them without any: hit .9, false .8, hit .7 and false .7 together, false .2.
    cases = [case([0.9], [0.8], missed=1), case([0.7], [0.2], missed=1), case([], [0.7])]
    curve = froc(cases, rates=(0.3, 0.34, 1.0))
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.2]
    assert curve.sensitivity.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert np.allclose(curve.false_positives, [0, 1 / 3, 2 / 3, 1])
    assert curve.at == {0.3: 0.25, 0.34: 0.25, 1.0: 0.5}
    assert curve.mean_sensitivity == pytest.approx(1 / 3)
    assert curve.threshold_for(0.7) == 0.7 and curve.threshold_for(5) == 0.2


def test_the_froc_curve_agrees_with_monais(random_boxes):
    cases = [DetectionCase.from_boxes(*volume) for volume in random_boxes]
    scores = np.concatenate([c.scores for c in cases])
    hit = np.concatenate([match_by_score(c.ious, c.scores, 0.1) >= 0 for c in cases])
    false_rate, sensitivity = compute_froc_curve_data(scores[~hit], scores[hit], num_targets=11, num_images=5)
    ours = froc(cases)
    for rate in ours.at:
        assert ours.at[rate] == pytest.approx(float(np.max(np.asarray(sensitivity)[np.asarray(false_rate) <= rate])))


@pytest.mark.parametrize("iou", [0.1, 0.3, 0.5])
def test_average_precision_agrees_with_monais_coco_metric(random_boxes, iou):
    predicted, scores, truth = zip(*random_boxes, strict=True)
    metric = COCOMetric(["lesion"], iou_list=[iou], iou_range=(iou, iou, 0.1), max_detection=[100], verbose=False)
    matched = matching_batch(
        iou_fn=lambda p, t: box_ious(t, p),
        iou_thresholds=metric.iou_thresholds,
        pred_boxes=predicted,
        pred_classes=[np.zeros(len(s), int) for s in scores],
        pred_scores=scores,
        gt_boxes=truth,
        gt_classes=[np.zeros(len(t), int) for t in truth],
    )
    theirs = metric(matched)[0][f"AP_IoU_{iou:.2f}_MaxDet_100"]
    assert average_precision([DetectionCase.from_boxes(*volume) for volume in random_boxes], iou=iou) == pytest.approx(
        theirs, abs=1e-6
    )
    assert 0.1 < theirs < 1


def test_average_precision_by_hand():
    # Two lesions. Falling scores: hit, false, hit: precision 1 up to recall .5, then 2/3: 51 and 50 of 101 recalls.
    assert average_precision([case([0.9, 0.5], [0.7])]) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([case([0.9], [], missed=1)]) == pytest.approx(51 / 101)


def test_a_recall_of_seven_in_a_hundred_is_reached_by_seven_hits():
    # 7 * 0.01 > 7 / 100 in floating point: taken literally, the seventh recall would be lost.
    assert average_precision([case([0.9] * 7, [], missed=93)]) == pytest.approx(8 / 101)


def test_perfect_predictions_reach_one_and_mean_average_precision_falls_with_overlap():
    perfect = [case([0.9, 0.8], []), case([0.7], [])]
    assert average_precision(perfect) == 1.0 and froc(perfect).mean_sensitivity == 1.0
    loose = [DetectionCase(np.array([[0.3]]), np.array([0.9]))]
    assert mean_average_precision(loose) == pytest.approx(5 / 9)  # IoU .1 .15 .2 .25 .3 of nine


def test_a_second_prediction_on_a_found_lesion_is_a_false_positive():
    doubled = DetectionCase(np.array([[0.9, 0.8]]), np.array([0.6, 0.5]))
    assert froc([doubled]).false_positives.tolist() == [0, 1]


def test_volumes_without_lesions_or_predictions_have_stated_values():
    nothing = case([], [])
    assert math.isnan(froc([nothing]).at[1.0]) and math.isnan(average_precision([nothing]))
    missed = case([], [], missed=2)
    assert froc([missed]).at[8.0] == 0.0 and average_precision([missed]) == 0.0
    assert froc([missed]).threshold_for(1) == math.inf
    healthy = case([], [0.3])
    assert math.isnan(froc([healthy]).at[1.0]) and froc([healthy]).false_positives.tolist() == [1]
    with pytest.raises(ValueError, match="no case"):
        froc([])


def test_a_rate_that_not_even_the_highest_score_meets_gives_sensitivity_0():
    assert froc([case([0.5], [0.9])], rates=(0.5,)).at == {0.5: 0.0}


def test_the_order_of_cases_and_predictions_changes_no_froc(random_boxes, rng):
    cases = [DetectionCase.from_boxes(*volume) for volume in random_boxes]
    shuffled = []
    for n in rng.permutation(len(cases)):
        order = rng.permutation(cases[n].scores.size)
        shuffled.append(DetectionCase(cases[n].ious[:, order], cases[n].scores[order]))
    assert froc(shuffled).at == froc(cases).at
    assert average_precision(shuffled) == pytest.approx(average_precision(cases))


def test_predictions_of_equal_score_count_together():
    equal = [case([0.5], []), case([], [0.5])]
    assert average_precision(equal) == average_precision(equal[::-1]) == pytest.approx(0.5)
    assert froc(equal).false_positives.tolist() == [0.5]


def test_sensitivity_by_size_counts_lesions_where_their_limits_say():
    sizes = np.array([9.9, 10.0, 30.0, 50.0])
    groups = sensitivity_by_size([case([0.9, 0.4, 0.8], [], missed=1, sizes_mm=sizes), case([], [])], threshold=0.5)
    assert [(g.name, g.found, g.n) for g in groups] == [
        ("< 10 mm", 1, 1),
        ("10 to 30 mm", 0, 1),
        (">= 30 mm", 1, 2),
    ]
    assert math.isnan(sensitivity_by_size([case([], [])])[0].sensitivity)
    with pytest.raises(ValueError, match="without sizes"):
        sensitivity_by_size([case([0.9], [])])


def test_instance_maps_and_centers_come_in_as_boxes_do():
    truth, predicted = np.zeros((1, 1, 20), np.uint16), np.zeros((1, 1, 20), np.uint16)
    truth[..., 0:4], truth[..., 10:12], predicted[..., 2:6] = 1, 2, 5
    from_maps = DetectionCase.from_instances(predicted, {5: 0.7}, truth, sizes_mm={1: 8.0, 2: 4.0}, patient="p")
    assert np.allclose(from_maps.ious, [[2 / 6], [0]]) and from_maps.sizes_mm.tolist() == [8, 4]
    assert found_lesions(from_maps).tolist() == [True, False]
    assert found_lesions(from_maps, threshold=0.8).tolist() == [False, False]
    box = [[0, 0, 0, 4, 4, 4]]
    assert found_lesions(DetectionCase.from_centers([[1, 1, 1]], [0.5], box)).tolist() == [True]


def test_scores_that_do_not_fit_the_predictions_are_refused():
    with pytest.raises(ValueError, match="scores for an IoU matrix"):
        DetectionCase(np.zeros((1, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        DetectionCase(np.zeros((1, 1)), np.array([np.nan]))
