"""What reporting guidelines ask, filled as far as a machine can know; the rest is TODO and stays visible.

CLAIM 2024 (Tejani et al., 44 items), TRIPOD+AI (Collins et al. 2024, 27 items), STARD-AI (Sounderajah et al. 2025, 40
items): the numbers are theirs, the words are ours. Submit the official forms; this tells what to write into them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from volseg.evaluation.tables import Table

TODO = "TODO"


@dataclass(frozen=True)
class ChecklistItem:
    """One item of one guideline. `fact` names what would answer it; `answer` is TODO where nobody knows yet."""

    checklist: str
    item: str
    topic: str
    fact: str
    answer: str = TODO

    @property
    def filled(self) -> bool:
        return self.answer != TODO


def fill_checklists(facts: Mapping[str, str]) -> list[ChecklistItem]:
    """Every item, answered where `facts` holds its key with some text.

    Raises ValueError for a fact that no item asks for: it would be lost.
    """
    text = resources.files(__package__).joinpath("checklists.csv").read_text("utf-8")
    items = [ChecklistItem(**row) for row in csv.DictReader(text.splitlines())]
    unknown = sorted(set(facts) - {item.fact for item in items})
    if unknown:
        raise ValueError(f"no checklist item asks for: {', '.join(unknown)}")
    return [
        ChecklistItem(item.checklist, item.item, item.topic, item.fact, facts.get(item.fact, "").strip() or TODO)
        for item in items
    ]


def checklist_tables(items: Sequence[ChecklistItem]) -> list[Table]:
    """One table per guideline, in the guideline's own order."""
    tables = []
    for name in dict.fromkeys(item.checklist for item in items):
        rows = [item for item in items if item.checklist == name]
        filled = sum(item.filled for item in rows)
        tables.append(
            Table(
                name,
                ("item", "asks for", "answer"),
                tuple((item.item, item.topic, item.answer) for item in rows),
                f"{filled} of {len(rows)} filled by machine; topics in our words, numbers as in the guideline.",
            )
        )
    return tables
