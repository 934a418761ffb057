"""Tables people quote: every cell can be traced, units and n stand beside it, what is missing is counted."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from volseg.evaluation.cases import compare_case
from volseg.evaluation.estimate import Estimate, wilson
from volseg.evaluation.external import Predictions, performance, subgroups
from volseg.evaluation.lesion_summary import summarise_lesions
from volseg.evaluation.segmentation import summarise_segmentation
from volseg.evaluation.tables import (
    SeedRow,
    Table,
    harmless,
    lesion_dice,
    lesion_table,
    patient_table,
    performance_table,
    seed_table,
    segmentation_table,
    subgroup_table,
    table1,
)

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def cases():
    def one(name, truth, predicted):
        t, p = np.zeros((40, 2, 2), np.uint16), np.zeros((40, 2, 2), np.uint16)
        for n, (a, b) in enumerate(truth, 1):
            t[a:b] = n
        for n, (a, b) in enumerate(predicted, 1):
            p[a:b] = n
        return compare_case(p, t, AFFINE, case=name, patient=name)

    return [one("a", [(0, 10), (20, 24)], [(0, 10)]), one("b", [(0, 6)], [(2, 8)]), one("c", [], [])]


def rows_of(table: Table, *first: str) -> list[str]:
    """Cells after the named first cells, of the one row that starts with them."""
    (row,) = [r for r in table.rows if r[: len(first)] == first]
    return list(row[len(first) :])


def test_the_seeds_table_names_cohort_level_and_unit(cases, rng):
    summary = summarise_segmentation(cases, rng=rng, resamples=100)
    dice = lesion_dice(cases, rng=rng, resamples=100)
    assert dice.value == pytest.approx((1 + 0 + 2 * 4 / 12) / 3) and dice.n == 3 and dice.unit == "lesions"
    table = seed_table(
        [
            SeedRow("training (B)", "patient", "any lesion", "3 patients", summary.positive["dice"], summary.patients),
            SeedRow("training (B)", "lesion", "found", "3 lesions", dice, {"sensitivity": wilson(2, 3)}),
        ]
    )
    assert table.columns[4:] == ("DSC", "sensitivity", "specificity", "AUC", "accuracy")
    assert table.rows[0][5] == wilson(2, 2).text() and table.rows[0][6] == wilson(1, 1).text()
    assert table.rows[1][6:] == ("n/a", "n/a", "n/a") and table.rows[1][4].startswith("0.556 (")


def test_lesion_dice_without_lesions_is_not_a_number(cases, rng):
    assert math.isnan(lesion_dice(cases[2:], rng=rng).value)


def test_segmentation_patients_and_lesions_become_tables(cases, rng):
    summary = summarise_segmentation(cases, rng=rng, resamples=100)
    table = segmentation_table(summary, 2.0)
    assert rows_of(table, "with lesions", "NSD at 2 mm, mean")[1] == "2 patients"
    assert rows_of(table, "without lesions", "volumes left unmarked, share")[0].startswith("1.000")
    assert rows_of(patient_table(summary), "accuracy")[1] == "3 patients"
    lesions = lesion_table(summarise_lesions(cases, rng=rng, resamples=100))
    assert rows_of(lesions, "sensitivity", "IoU >= 0.1") == [
        rows_of(lesions, "sensitivity", "any overlap")[0],
        "3 lesions",
    ]
    assert rows_of(lesions, "sensitivity at 8 FP per volume", "IoU >= 0.1")[0].startswith("0.667")
    assert "without scores" in lesions.note


def test_performance_and_subgroups_become_tables(rng):
    n = 40
    labels = np.arange(n) % 2
    scores = np.clip(0.4 + 0.2 * labels + rng.normal(0, 0.2, n), 0, 1)
    scores[3] = math.nan
    rows = Predictions(
        np.array([f"p{i}" for i in range(n)]),
        labels,
        scores,
        np.full(n, "A"),
        groups={"sex": np.array(["f", "m"])[labels]},
    )
    result = performance(rows, 0.5, rng=rng)
    table = performance_table({"external (A)": result}, "Origin")
    assert rows_of(table, "without an answer") == ["1"] and rows_of(table, "rows (patients)") == ["40 (40)"]
    assert rows_of(table, "AUC") == [result.metrics["auc"].text()] and "Wilson" in table.note
    groups = subgroup_table(subgroups(rows, 0.5, rng=rng))
    assert [row[:3] for row in groups.rows] == [("sex", "f", "20 (0)"), ("sex", "m", "20 (20)")]
    assert groups.rows[0][3] == "n/a"  # one class: no AUC


def test_the_table_says_how_many_rows_are_certain_and_that_there_is_no_slope(rng):
    labels = np.arange(40) % 2
    scores = np.clip(0.4 + 0.2 * labels + rng.normal(0, 0.1, 40), 0.01, 0.99)
    unsure = Predictions(np.array([f"p{i}" for i in range(40)]), labels, scores, np.full(40, "A"))
    sure = replace(unsure, scores=np.where(np.arange(40) < 3, 0.0, scores))
    columns = {"B": unsure, "A": sure, "masks": replace(sure, probabilities=False)}
    table = performance_table({name: performance(rows, 0.5, rng=rng) for name, rows in columns.items()}, "Any lesion")
    assert rows_of(table, "rows of exactly 0 or 1") == ["0", "3", "n/a"]
    slope, brier = rows_of(table, "calibration slope"), rows_of(table, "Brier score")
    assert slope[0] != "n/a" and slope[1:] == ["n/a", "n/a"] and "n/a" not in brier[:2] and brier[2] == "n/a"
    assert "no log odds" in table.note and "; ." not in table.note
    alone = performance_table({"A": performance(sure, 0.5, rng=rng)}, "Any lesion")
    assert "Wald" not in alone.note and "; ." not in alone.note


def test_table_1_counts_what_is_missing():
    table = table1(
        [
            {"patient": "p1", "site": "A", "age": 50, "sex": "F", "scanner": ""},
            {"patient": "p2", "site": "A", "age": 60, "sex": "M", "scanner": "x"},
            {"patient": "p3", "site": "B", "age": None, "sex": "F", "scanner": "x"},
        ]
    )
    assert table.columns == ("", "A", "B")
    assert rows_of(table, "patients") == ["2", "1"]
    assert rows_of(table, "age, median (quartiles)") == ["55 (52.5 to 57.5)", "n/a"]
    assert rows_of(table, "age, not recorded") == ["0", "1"]
    assert rows_of(table, "sex: F") == ["1 (50 %)", "1 (100 %)"]
    assert rows_of(table, "scanner: not recorded") == ["1 (50 %)", "0 (0 %)"]
    with pytest.raises(ValueError, match="no patient"):
        table1([])


def test_table_1_does_not_miss_what_cannot_be():
    records = [{"patient": "p1", "site": "A", "size": 9}, {"patient": "p2", "site": "A", "size": None}]
    assert [row[0] for row in table1(records).rows] == ["patients", "size, median (quartiles)", "size, not recorded"]
    assert len(table1(records, not_for_all=["size"]).rows) == 2


def test_a_csv_can_be_read_back_and_runs_no_formula():
    table = Table("t", ("a", "b"), (("=1+1", "1, 2"), ("-0.5 (-1 to 0)", 'say "x"')))
    read = list(csv.reader(io.StringIO(table.to_csv())))
    assert read == [["a", "b"], ["'=1+1", "1, 2"], ["-0.5 (-1 to 0)", 'say "x"']]


def test_site_names_in_the_header_run_no_formula():
    records = [{"patient": "p1", "site": '=HYPERLINK("x")'}, {"patient": "p2", "site": "-2+3+cmd|' /C calc'!A0"}]
    header = next(csv.reader(io.StringIO(table1(records).to_csv())))
    assert header == ["", "'-2+3+cmd|' /C calc'!A0", '\'=HYPERLINK("x")']


@pytest.mark.parametrize("cell", ["=1", "+1", "@x", "\t=1", "\r=1", "\n=1", "-1+2", "-x", "-1 (0 to 1)+cmd", "-"])
def test_what_a_spreadsheet_would_run_is_prefixed(cell):
    assert harmless(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "-7", "-0.5", "-1.2e-05", "-0.5 (-1.0 to 0.2)", "-3 (-inf to inf)", "a=b"])
def test_numbers_stay_numbers(cell):
    assert harmless(cell) == cell


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="1 cells under 2 columns"):
        Table("t", ("a", "b"), (("x",),))


@pytest.mark.parametrize(
    ("value", "words"), [(0.12345, "0.123"), (12.345, "12.3"), (-4321.5, "-4322"), (math.inf, "inf"), (math.nan, "n/a")]
)
def test_numbers_carry_the_digits_they_deserve(value, words):
    from volseg.evaluation.tables import number, text

    assert number(value) == words
    assert text(Estimate(value, math.nan, math.nan, 1)) == words and text(None) == "n/a"
