"""The front door: `volseg info | predict | evaluate | validate | synth | train | demo | bundles | bmseg`.

Flags in, exit code out: 0 fine, 1 the data or a study failed, 2 asked wrongly. Each command has its own file. torch
and MONAI are imported only by the commands that need them, so `volseg info` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

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
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # no text stream of Python's own
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = _parser()
    args = parser.parse_args(synth_sites.joined(sys.argv[1:] if argv is None else argv))
    if args.command is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    # pydicom tells oddities of every file anew; what matters of them stands in the notes. A filter, because importing
    # pydicom 3.0 sets the level back.
    of_pydicom = logging.getLogger("pydicom")
    (of_pydicom.removeFilter if args.verbose else of_pydicom.addFilter)(_is_error)
    if not args.verbose:
        warnings.filterwarnings("ignore")
    # Idle OpenMP threads sleep instead of spinning: two spinning runs on two cores took several times as long each as
    # sharing explains (2026-11-21). Must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _sigterm_as_exit():
            check_device(getattr(args, "device", None))
            return int(args.run(args))
    except VolsegError as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("volseg: stopped; studies that were finished are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM (a container or a queue that stops) leaves as SystemExit(143): what is unpacked or half written goes.

    Only in the main thread, where signals arrive, and only where nobody else sees to the signal.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def leave(number: int, _frame: object) -> None:
        if os.getpid() != process:  # a worker that was forked: what lies there is its parent's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the tidying
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
