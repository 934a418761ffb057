"""`volseg bundles`: what came with volseg."""

from __future__ import annotations

import argparse

from volseg.cli.shared import Commands


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    bundles = commands.add_parser("bundles", parents=[common], help="list the bundles that came with volseg")
    bundles.set_defaults(run=_bundles)


def _bundles(args: argparse.Namespace) -> int:
    from volseg.inference.bundle import find_bundle, shipped_bundles

    for name in shipped_bundles():
        files = find_bundle(name)
        print(f"{name} {files.version}\n  {files.metadata.get('description', '')}\n  {files.root}")
    return 0
