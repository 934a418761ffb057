"""One volume compared: what is kept, and that keeping it loses nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from volseg.evaluation.cases import CaseResult, as_instances, compare_case

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def rods(*spans: tuple[int, int, int]) -> np.ndarray:
    """(30, 4, 4) map of rods along x: (start, stop, id)."""
    out = np.zeros((30, 4, 4), np.uint16)
    for start, stop, id_ in spans:
        out[start:stop, 1:3, 1:2] = id_
    return out


def test_a_case_keeps_lesions_scores_and_their_overlaps():
    truth, predicted = rods((0, 6, 3), (20, 24, 900)), rods((2, 8, 7), (12, 14, 9))
    case = compare_case(
        predicted, truth, AFFINE, case="c", patient="p", scores={7: 0.8, 9: 0.3}, kinds={3: "lytic", 900: "mixed"}
    )
    assert [lesion.id for lesion in case.true_lesions] == [3, 900]
    assert [lesion.kind for lesion in case.true_lesions] == ["lytic", "mixed"]
    assert [lesion.volume_mm3 for lesion in case.true_lesions] == [48, 32]
    assert [lesion.longest_axial_diameter_mm for lesion in case.true_lesions] == pytest.approx(
        [math.hypot(5, 1) * 6 / 5, math.hypot(3, 1) * 4 / 3]
    )
    assert [lesion.score for lesion in case.predicted_lesions] == [0.8, 0.3]
    assert np.allclose(case.iou_matrix(), [[4 / 8, 0], [0, 0]])
    assert case.found(0.1).tolist() == [True, False] and case.found(0.6).tolist() == [False, False]
    assert case.patient_score == 0.8 and case.has_lesions and case.scored
    assert case.overlap.dice == pytest.approx(2 * 8 / (20 + 16))
    assert case.detection().n_true == 2


@pytest.mark.parametrize("predicted", [rods((2, 8, 7)), rods()])
def test_a_case_survives_json_with_its_infinities(predicted):
    case = compare_case(predicted, rods((0, 6, 1), (9, 12, 2)), AFFINE, case="c", patient="p")
    again = CaseResult.from_json(json.loads(json.dumps(case.to_json(), allow_nan=False)))
    assert again.to_json() == case.to_json()
    assert again.hd95_mm == case.hd95_mm and again.overlap == case.overlap
    assert math.isnan(again.true_lesions[0].score) and again.iou_matrix().shape == case.iou_matrix().shape


def test_predictions_without_scores_score_1_and_say_so():
    case = compare_case(rods((0, 3, 1)), rods(), AFFINE, case="c", patient="p")
    assert case.predicted_lesions[0].score == 1.0 and not case.scored and not case.has_lesions


def test_a_predicted_lesion_that_lacks_its_score_is_refused():
    with pytest.raises(ValueError, match="c: predicted lesion 2 has no score"):
        compare_case(rods((0, 3, 1), (5, 7, 2)), rods(), AFFINE, case="c", patient="p", scores={1: 0.5})


def test_a_score_threshold_takes_predictions_out_of_lists_and_overlaps():
    truth, predicted = rods((0, 6, 1)), rods((2, 8, 7), (12, 14, 9))
    case = compare_case(predicted, truth, AFFINE, case="c", patient="p", scores={7: 0.3, 9: 0.8})
    cut = case.at_score(0.5)
    assert [lesion.id for lesion in cut.predicted_lesions] == [9] and cut.iou_matrix().tolist() == [[0]]
    assert cut.found(0.1).tolist() == [False] and case.at_score(math.inf).iou_matrix().shape == (1, 0)


def test_no_lesion_on_either_side_is_a_complete_case():
    case = compare_case(rods(), rods(), AFFINE, case="c", patient="p", scores={})
    assert (case.overlap.dice, case.hd95_mm, case.nsd, case.patient_score) == (1, 0, 1, 0)
    assert case.iou_matrix().shape == (0, 0) and case.found(0.1).size == 0


def test_a_plain_mask_is_numbered_by_components_that_touch_even_at_corners():
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = 255
    assert as_instances(mask).max() == 2 and as_instances(mask)[1, 1, 1] == as_instances(mask)[0, 0, 0]
    assert as_instances(mask, "instances").max() == 255
    assert as_instances(np.zeros((2, 2, 2))).max() == 0


def test_a_map_with_two_values_is_taken_as_instances_unless_told():
    touching = rods((0, 5, 1), (5, 9, 2))
    assert as_instances(touching) is touching
    assert as_instances(touching, "mask").max() == 1
