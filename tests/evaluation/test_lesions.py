"""Lesion matching on cases that can be checked by counting voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volseg.evaluation.lesions import FalsePositivesPerCase, LesionSensitivity, match_lesions


def _row(*runs: tuple[int, int, int]) -> np.ndarray:
    """A (1, 1, 40) map with runs (start, stop, id)."""
    out = np.zeros((1, 1, 40), np.uint16)
    for start, stop, value in runs:
        out[0, 0, start:stop] = value
    return out


def test_a_pair_that_shares_half_its_union_is_a_hit_and_the_rest_is_missed_or_false():
    truth = _row((0, 6, 1), (20, 25, 2))
    predicted = _row((2, 8, 7), (30, 33, 9))
    match = match_lesions(predicted, truth)
    assert match.hits == ((1, 7, 4 / 8),)
    assert match.missed == (2,)
    assert match.false_positives == (9,)
    assert match.n_true == 2


def test_one_prediction_over_two_lesions_hits_only_one_of_them():
    truth = _row((0, 5, 1), (6, 10, 2))
    predicted = _row((0, 10, 1))
    match = match_lesions(predicted, truth)
    assert [h[0] for h in match.hits] == [1]
    assert match.missed == (2,)


def test_an_overlap_below_the_iou_is_both_missed_and_false():
    truth, predicted = _row((0, 10, 1)), _row((9, 20, 1))
    match = match_lesions(predicted, truth, iou=0.1)  # 1 / 20
    assert match.hits == () and match.missed == (1,) and match.false_positives == (1,)


def test_matching_maximises_the_sum_where_greedy_would_lose_a_hit():
    # p1 overlaps t1 best, but only p1 can serve t2: 3/5 for (t1,p1) alone, against 2/5 + 2/8.
    truth = _row((0, 4, 1), (4, 10, 2))
    predicted = _row((0, 2, 2), (2, 6, 1))
    assert len(match_lesions(predicted, truth, iou=0.1).hits) == 2


def test_two_empty_maps_match_without_error():
    match = match_lesions(_row(), _row())
    assert match.n_true == 0 and match.false_positives == ()


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        match_lesions(_row(), np.zeros((1, 2, 40)))


def test_cumulative_metrics_pool_lesions_over_cases_and_average_false_positives():
    truth = torch.from_numpy(np.stack([_row((0, 5, 1)), _row((0, 5, 1), (10, 15, 2))])[:, None].astype(np.int32))
    predicted = torch.from_numpy(np.stack([_row((0, 5, 1)), _row((30, 35, 1))])[:, None].astype(np.int32))
    sensitivity, false_positives = LesionSensitivity(), FalsePositivesPerCase()
    for metric in (sensitivity, false_positives):
        metric(predicted, truth)
    assert float(sensitivity.aggregate()) == pytest.approx(1 / 3)
    assert float(false_positives.aggregate()) == pytest.approx(1 / 2)


def test_sensitivity_without_any_true_lesion_is_nan_not_zero():
    metric = LesionSensitivity()
    empty = torch.zeros(1, 1, 2, 2, 2)
    metric(empty, empty)
    assert torch.isnan(metric.aggregate())
