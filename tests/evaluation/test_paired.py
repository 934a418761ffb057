"""Two models on the same volumes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from volseg.evaluation.cases import CaseResult, compare_case
from volseg.evaluation.paired import compare_cases, paired_table

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def case(n: int, shift: int, *, found: bool = True, extra: bool = False) -> CaseResult:
    """Volume n with one lesion of ten voxels (none in every third), predicted `shift` voxels off."""
    truth, predicted = np.zeros((40, 1, 1), np.uint16), np.zeros((40, 1, 1), np.uint16)
    if n % 3:
        truth[0:10] = 1
        if found:
            predicted[shift : 10 + shift] = 1
    if extra:
        predicted[30:34] = 2
    scores = {1: 0.9, 2: 0.4}
    return compare_case(predicted, truth, AFFINE, case=f"c{n}", patient=f"p{n}", scores=scores)


def test_the_better_outlines_win_by_their_margin(rng):
    good, worse = [case(n, 1) for n in range(12)], [case(n, 3) for n in range(12)]
    result = compare_cases(good, worse[::-1], rng=rng, resamples=300)
    dice = result.differences["DSC, volumes with lesions"]
    assert dice.estimate.value == pytest.approx(0.9 - 0.7) and dice.estimate.n == 8
    assert dice.p_value == 2 / 2**8, "eight patients, all to one side"
    found = result.differences["lesion sensitivity, IoU >= 0.1"]
    assert (found.estimate.value, found.p_value, found.estimate.n) == (0, 1, 8)
    assert result.mcnemar.p_value == 1 and (result.n_volumes, result.n_patients) == (12, 12)


def test_missed_lesions_and_false_alarms_show_in_their_own_lines(rng):
    first = [case(n, 1) for n in range(12)]
    second = [case(n, 1, found=n % 2 == 0, extra=n < 6) for n in range(12)]
    result = compare_cases(first, second, rng=rng, resamples=300)
    assert result.differences["lesion sensitivity, IoU >= 0.1"].estimate.value == pytest.approx(0.5)
    assert result.differences["false positives per volume"].estimate.value == pytest.approx(-0.5)
    assert result.differences["AUC, any lesion per patient"].estimate.value > 0
    # Wrong with the second model: healthy 0 and 3 (called), diseased 7 and 11 (missed, nothing else marked).
    assert (result.mcnemar.only_first, result.mcnemar.only_second) == (4, 0)
    table = paired_table(result, "new", "old")
    assert table.rows[-1][1] == "4 patients right only with new, 0 only with old" and table.rows[-1][2] == "0.125"
    assert table.rows[0][3] == "paired bootstrap over patients"


def test_one_diseased_patient_among_healthy_ones_proves_nothing(rng):
    first = [case(n, 1) for n in (0, 3, 6, 9, 10)]
    second = [case(n, 1, found=False) for n in (0, 3, 6, 9, 10)]
    result = compare_cases(first, second, rng=rng, resamples=300)
    for name in ("lesion sensitivity, IoU >= 0.1", "DSC, volumes with lesions"):
        difference = result.differences[name]
        assert difference.estimate.n == 1 and math.isnan(difference.estimate.low) and math.isnan(difference.p_value)
    row = paired_table(result, "new", "old").rows[2]
    assert row[:3] == ("lesion sensitivity, IoU >= 0.1", "1.000", "n/a")


def test_other_volumes_or_other_truths_are_refused(rng):
    with pytest.raises(ValueError, match="1 differ, such as c5"):
        compare_cases([case(n, 1) for n in (4, 5)], [case(4, 1)], rng=rng)
    other = compare_case(np.ones((40, 1, 1)), np.ones((40, 1, 1)), AFFINE, case="c4", patient="p4")
    with pytest.raises(ValueError, match=r"c4: .* different truths"):
        compare_cases([case(4, 1)], [other], rng=rng)
