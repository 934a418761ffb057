"""BM-Seg tables: published rows stand only in their own block, and LEAKY stands wherever it is due."""

from __future__ import annotations

import math

import pytest

from volseg.evaluation.bmseg import protocol
from volseg.evaluation.bmseg_tables import PUBLISHED, Ours, Published, block_table, bmseg_tables
from volseg.evaluation.overlap import Overlap
from volseg.evaluation.slices import SliceResult, summarise_slices


@pytest.fixture
def runs(rng):
    # Three patients, 8 pixels each in the union and 12 of all 24 hit.
    cases = {
        "a": Overlap(4, 2, 2, 92, math.nan),
        "b": Overlap(3, 3, 2, 92, math.nan),
        "c": Overlap(5, 1, 2, 92, math.nan),
    }
    summary = summarise_slices(
        [SliceResult(f"{p}1", p, case, case) for p, case in cases.items()], rng=rng, resamples=50
    )
    return [
        Ours("net", "synthetic", protocol("bmseg-patient"), summary),
        Ours("net", "synthetic", protocol("bmseg-eh"), summary),
    ]


def test_each_family_and_level_has_its_own_table(runs):
    tables = {table.title: table for table in bmseg_tables(runs)}
    assert set(tables) == {
        f"{family}, {level}"
        for family in ("Lesion only", "Bone only", "Mean over lesion and background")
        for level in ("pooled", "per patient")
    }
    lesion, means = tables["Lesion only, pooled"], tables["Mean over lesion and background, pooled"]
    assert lesion.columns[2:6] == ("IoU, %", "F1 (Dice), %", "sensitivity, %", "precision, %")
    assert means.columns[2:6] == ("mIoU, %", "mPA, %", "mPrecision, %", "mean Dice, %")
    assert [row[0] for row in lesion.rows] == ["net", "net", "BMSMM-Net (published)"]
    assert lesion.rows[0][2].startswith("50.00 (") and lesion.rows[2][2:6] == ("83.60", "91.07", *["not reported"] * 2)
    assert not any("BMSMM" in row[0] for row in means.rows)
    assert ("MFP-DeepLabv3+ (published)", "83.97", "93.90", "87.97", "90.50") in [
        (row[0], *row[2:6]) for row in means.rows
    ]
    assert len(means.rows) == 2 + 11
    for title in tables:
        if "per patient" in title:
            assert not any("published" in row[0] for row in tables[title].rows)


def test_a_row_of_another_block_is_refused(runs):
    stray = next(row for row in PUBLISHED if row.method == "MFP-DeepLabv3+")
    with pytest.raises(ValueError, match=r"MFP-DeepLabv3.* class-mean pooled; it has no place among lesion pooled"):
        block_table(("lesion", "pooled"), runs, [stray])
    level = Published("x", ("lesion", "per patient"), "?", {"iou": 1.0})
    with pytest.raises(ValueError, match="no place"):
        block_table(("lesion", "pooled"), runs, [level])


def test_leaky_rows_say_so_in_the_row_and_below_the_table(runs):
    for table in bmseg_tables(runs):
        clean, leaky = table.rows[:2]
        assert "LEAKY" not in " ".join(clean) and "bmseg-eh (LEAKY, paper-comparable)" in leaky[1]
        assert "How it leaks: neighbouring slices" in table.note
    means = bmseg_tables(runs)[2]
    assert all("LEAKY" in row[1] for row in means.rows if "published" in row[0])


def test_figures_on_synthetic_data_are_not_to_be_compared(runs):
    assert "cannot be compared" in bmseg_tables(runs)[0].note
    on_real = [Ours("net", "BM-Seg", run.protocol, run.summary) for run in runs]
    assert "cannot be compared" not in bmseg_tables(on_real)[0].note


def test_published_families_obey_or_break_the_identity_as_their_block_says():
    for row in PUBLISHED:
        names = ("iou", "dice") if row.block[0] != "class-mean" else ("miou", "mdice")
        if names[1] in row.percent:
            iou, dice = (row.percent[name] / 100 for name in names)
            off = abs(2 * iou / (1 + iou) - dice)
            assert (off < 0.0002) == (row.block[0] != "class-mean"), row.method
