"""Law: who may import whom. Reads the source, imports nothing; each violation is named as file:line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "volseg"

# Top to bottom. A module imports only from lines below its own, or from its own room; rooms on one line are strangers.
# `types` stands on `labels`: a Lesion carries a kind from the vocabulary, and the vocabulary needs no noun.
LADDER = (
    ("cli",),
    ("bmseg", "demo", "evaluate", "synthetic"),
    ("folds", "pipeline", "side_by_side", "train", "synth", "synth_mri", "synth_slices"),
    ("io", "inference", "training", "origin", "evaluation", "dicom", "report"),
    ("transforms", "detection", "phantoms", "measure"),
    ("networks",),
    ("ops",),
    ("lesion_parts",),
    ("types",),
    ("labels",),
    ("geometry",),
    ("errors",),
    ("__init__",),
)
LINE = {room: line for line, rooms in enumerate(LADDER) for room in rooms}

# Beyond the ladder: what a room must never see, though it lies below (or outside). Prefixes of dotted names.
HEAVY = ("torch", "monai", "ignite")
FORBIDDEN = {
    "errors": HEAVY,
    "geometry": HEAVY,
    "types": HEAVY,
    "labels": HEAVY,
    "lesion_parts": HEAVY,
    "measure": HEAVY,
    "io": HEAVY,
    "report": (*HEAVY, "volseg.networks", "volseg.detection", "volseg.transforms", "volseg.ops"),
    "dicom": (*HEAVY, "volseg.networks", "volseg.detection", "volseg.transforms", "volseg.ops"),
    "inference": ("volseg.networks",),  # a bundle names its network as a string
    "training": ("volseg.networks",),  # likewise
    "evaluation": ("volseg.networks",),  # a stranger re-derives the figures from saved masks
}
# MONAI's loaders around our readers: imported by bundles, never by volseg.io itself.
EXEMPT = {"io/monai_reader.py", "io/monai_pictures.py"}


def room_of(module: str) -> str:
    """`volseg.io.series` -> `io`; `volseg` and the names it defines itself (`volseg.__version__`) -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in known_rooms() else "__init__"


def known_rooms() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} | set(LINE)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line number, dotted name) of every import anywhere in the file: at the top, in a function, under TYPE_CHECKING.

    `from volseg import geometry` is reported as `volseg.geometry`; relative imports are made absolute;
    `importlib.import_module("name")` counts as an import.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "optional_import") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(source: str, path: str) -> list[str]:
    """What the file at `path` (in the package, as `io/series.py`) may not import: `volseg/<path>:<line>: why`."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(("volseg", *(parts[:-1] if is_package else parts)))
    own = parts[0]
    if own not in LINE:
        return [f"volseg/{path}:1: room `{own}` has no place on the ladder; give it one in tests/test_ladder.py"]
    found = []
    for line, name in sorted(imports(ast.parse(source), module, is_package)):
        if path not in EXEMPT:
            for prefix in FORBIDDEN.get(own, ()):
                if name == prefix or name.startswith(f"{prefix}."):
                    found.append(f"volseg/{path}:{line}: `{own}` never imports {prefix} (it imports {name})")
        if name == "volseg" or name.startswith("volseg."):
            room = room_of(name)
            if room != own and room not in LINE:
                found.append(f"volseg/{path}:{line}: imports {name}, whose room has no place on the ladder")
            elif room != own and LINE[room] <= LINE[own]:
                found.append(f"volseg/{path}:{line}: `{own}` imports {name}, which is not below it on the ladder")
    return list(dict.fromkeys(found))


def test_every_module_imports_only_from_below():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10, f"only {len(files)} files under {PACKAGE}: the test looks in the wrong place"
    found = [
        violation
        for file in files
        for violation in violations(file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix())
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("geometry.py", "import numpy\nimport torch\n", 2),
        ("labels.py", "from torch import nn\n", 1),
        ("types.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from monai.data import MetaTensor\n", 3),
        ("geometry.py", "from volseg.types import Volume\n", 1),
        ("geometry.py", "from volseg import types\n", 1),
        ("measure.py", "def late():\n    import torch.nn.functional\n", 2),
        ("measure.py", "from volseg.transforms import bone\n", 1),
        ("io/study.py", "def late():\n    from monai.transforms import LoadImage\n", 2),
        ("io/study.py", "from ..report import html\n", 1),
        ("io/__init__.py", "from ..cli import main\n", 1),
        ("inference/segment.py", "from volseg.networks.segmamba import SegMamba\n", 1),
        ("inference/bundle.py", "import importlib\nimportlib.import_module('volseg.networks')\n", 2),
        ("report/html.py", "from volseg.transforms.bone import bone_mask\n", 1),
        ("networks/segmamba.py", "import volseg.inference.segment\n", 1),
        ("ops/selective_scan.py", "from volseg import networks\n", 1),
        ("attic/old.py", "import numpy\n", 1),
    ],
)
def test_the_law_can_fail(path: str, source: str, line: int):
    assert [found.split(":")[:2] for found in violations(source, path)] == [[f"volseg/{path}", str(line)]]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli.py", "def predict():\n    from volseg.pipeline import analyse_study\n    import torch\n"),
        ("pipeline.py", "from volseg.io.study import read_study\nfrom volseg.report import html\nimport torch\n"),
        (
            "io/series.py",
            "from volseg.io import nifti\nfrom .study import read_study\nfrom volseg.errors import InputError\n",
        ),
        ("io/monai_reader.py", "from monai.transforms import LoadImaged\nimport torch\n"),
        ("inference/segment.py", "from volseg import __version__\nimport torch\n"),
        ("transforms/synthesis.py", "from . import bone\nfrom ..ops import roi_align3d\n"),
        ("types.py", "from volseg.labels import LesionKind\nimport torchlike\n"),
    ],
)
def test_what_the_law_allows_passes(path: str, source: str):
    assert violations(source, path) == []
