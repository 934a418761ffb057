"""`volseg info`: what is in a file or folder, and what would be used."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from volseg.cli.shared import FORMATTER, Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    info = commands.add_parser(
        "info", parents=[common], formatter_class=FORMATTER,
        help="what is in a file or folder, and what would be used",
        description="Reads headers only. Lists every image series found, which one volseg would use, and why the\n"
        "others would be left. Says what would be refused, with its reason code.",
    )  # fmt: skip
    info.add_argument("input", help="NIfTI, NRRD, MHA, DICOM file, DICOM folder or zip")
    info.add_argument("--json", action="store_true", help="machine-readable output")
    info.set_defaults(run=_info)


def _info(args: argparse.Namespace) -> int:
    from volseg.io import format_table, inspect, to_dict

    inspection = inspect(Path(args.input))
    print(json.dumps(to_dict(inspection), indent=2) if args.json else format_table(inspection))
    return 0 if inspection.refusal is None else 1
