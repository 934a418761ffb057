"""Law: data/README.md explains every reason code with which volseg refuses data, and none that does not exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CODES = "<!-- codes: kept complete by tests/test_data_readme.py -->"


def codes_in_source() -> dict[str, str]:
    """Reason code -> `file:line` of every `InputError("code", ...)` and `_refuse("code", ...)` in the package."""
    found = {}
    for file in sorted((REPOSITORY / "volseg").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("InputError", "_refuse") and node.args:
                code = node.args[0]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    found.setdefault(code.value, f"{file.relative_to(REPOSITORY)}:{node.lineno}")
    return found


def codes_in_readme() -> set[str]:
    text = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8").split(CODES)[1]
    first_cells = re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)
    return {code for cell in first_cells for code in re.findall(r"`([^`]+)`", cell)}


def test_every_refusal_is_explained():
    missing = {code: where for code, where in codes_in_source().items() if code not in codes_in_readme()}
    assert not missing, f"data/README.md explains nothing of: {missing}"


def test_every_explained_refusal_exists():
    assert codes_in_readme() - codes_in_source().keys() == set()


def test_codes_are_kebab_case():
    assert [code for code in codes_in_source() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)] == []
