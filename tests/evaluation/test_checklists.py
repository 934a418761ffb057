"""Reporting checklists: complete by number, filled only with what is known."""

from __future__ import annotations

import re

import pytest

from volseg.evaluation.checklists import TODO, checklist_tables, fill_checklists


@pytest.mark.parametrize(
    ("name", "main_items", "rows"), [("CLAIM 2024", 44, 44), ("TRIPOD+AI", 27, 52), ("STARD-AI", 40, 48)]
)
def test_every_item_of_the_guideline_is_there_once_and_in_order(name, main_items, rows):
    items = [item.item for item in fill_checklists({}) if item.checklist == name]
    numbers = [int(re.match(r"\d+", item).group()) for item in items]
    assert sorted(set(numbers)) == list(range(1, main_items + 1)) and numbers == sorted(numbers)
    assert len(items) == len(set(items)) == rows


def test_nothing_is_claimed_that_nobody_said():
    assert not any(item.filled for item in fill_checklists({}))
    assert not any(item.filled for item in fill_checklists({"software": "  "}))


def test_one_fact_answers_every_item_that_asks_for_it():
    items = fill_checklists({"threshold": "frozen at 0.5"})
    assert [(i.checklist, i.item) for i in items if i.filled] == [("TRIPOD+AI", "15"), ("STARD-AI", "15c")]
    table = checklist_tables(items)[1]
    assert table.title == "TRIPOD+AI" and table.note.startswith("1 of 52 filled")
    assert sum(row[2] == TODO for row in table.rows) == 51


def test_a_fact_that_no_item_asks_for_is_refused():
    with pytest.raises(ValueError, match="no checklist item asks for: wether"):
        fill_checklists({"wether": "x"})
