"""The front door: `volseg info | predict | evaluate | validate | synth | train | demo | bundles | bmseg`.

Flags in, exit code out: 0 fine, 1 the data or a study failed, 2 asked wrongly. Each command has its own file. torch
and MONAI are imported only by the commands that need them, so `volseg info` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from volseg import __version__
from volseg.cli import bmseg, bundles, demo, evaluate, info, predict, synth, synth_sites, train, validate
from volseg.cli.shared import FORMATTER, check_device, refuse
from volseg.errors import VolsegError

RESEARCH_ONLY = "Research use only: volseg is not a medical device."

_EXAMPLES = """\
examples:
  volseg info  STUDY                        what is in a file or DICOM folder, and what would be used
  volseg predict STUDY -o out               outline bone lesions; out/<study>/report.html shows them
  volseg predict a.nii.gz b/ c.zip -o out   several studies; finished ones are skipped when run again
  volseg synth CT -o synth --n 10 --seed 1  grow lesions of known mask in the bone of a real CT
  volseg synth cohort --site B -o cohort    synthetic patients of a hospital; `synth gallery` shows them
  volseg train BUNDLE --data synth -o new   train or fine-tune a bundle; goes on where it was cut off
  volseg evaluate --pred out --truth masks  compare predictions with true masks; intervals, figures, one page
  volseg validate --data cohort --train-site B --test-site A    freeze a rule at one site, test it once at another
  volseg bmseg BM-Seg -o bmseg              the 2-D networks on the BM-Seg archive, cross-validated by patient
  volseg demo                               a phantom patient through the whole walk

exit codes: 0 fine, 1 something could not be processed, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(synth_sites.joined(sys.argv[1:] if argv is None else argv))
    if args.command is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if not args.verbose:
        warnings.filterwarnings("ignore")
    # Idle OpenMP threads sleep instead of spinning: two spinning runs on two cores took several times as long each as
    # sharing explains (2026-11-21). Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        check_device(getattr(args, "device", None))
        return int(args.run(args))
    except VolsegError as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("volseg: stopped; studies that were finished are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="volseg",
        description=f"Finds, outlines and explains bone metastases in 3D medical images. {RESEARCH_ONLY}",
        epilog=_EXAMPLES,
        formatter_class=FORMATTER,
    )
    parser.add_argument("--version", action="version", version=f"volseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show warnings and progress of every stage")
    for command in (info, predict, evaluate, validate, synth, synth_sites, train, demo, bundles, bmseg):
        command.add(commands, common)
    return parser
