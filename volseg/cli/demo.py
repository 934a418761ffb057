"""`volseg demo`: a phantom patient through the whole walk."""

from __future__ import annotations

import argparse
from pathlib import Path

from volseg.cli.shared import FORMATTER, Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    demo = commands.add_parser(
        "demo", parents=[common], help="a phantom patient through the whole walk", formatter_class=FORMATTER,
        description="Makes a phantom patient with known lesions, runs the main job on it, compares the result with\n"
        "the known truth and says where the report lies. Needs no data.",
    )  # fmt: skip
    demo.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder for the demo (default: demo)")
    demo.add_argument("--seed", type=int, default=3, help="which phantom patient (default: 3)")
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from volseg.demo import run_demo

    return run_demo(args.out, seed=args.seed, say=print)
