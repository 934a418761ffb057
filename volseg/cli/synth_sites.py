"""`volseg synth cohort` and `volseg synth gallery`: synthetic hospitals, and a page to judge lesions by.

The second word makes the command: `volseg.cli` joins the two before argparse sees them, because argparse cannot tell a
sub-command from the first of `volseg synth`'s inputs. A CT that is called so is given as ./cohort.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from volseg.cli.shared import FORMATTER, Commands, positive, whole_range

WORDS = ("cohort", "gallery")


def joined(argv: Sequence[str]) -> list[str]:
    """["synth", "cohort", ...] -> ["synth cohort", ...]; anything else as it is."""
    if len(argv) > 1 and argv[0] == "synth" and argv[1] in WORDS:
        return [f"synth {argv[1]}", *argv[2:]]
    return list(argv)


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    _add_cohort(commands, common)
    _add_gallery(commands, common)


def _add_cohort(commands: Commands, common: argparse.ArgumentParser) -> None:
    cohort = commands.add_parser(
        "synth cohort", parents=[common], formatter_class=FORMATTER,
        help="synthetic patients of one hospital",
        description="Patients of one site: its voxel size, point spread, noise and prevalences, lesions whose kind\n"
        "and size depend on the primary with a stated Bayes AUC. Writes imagesTr, labelsTr, parameters, datalist.json\n"
        "and patients.csv as `volseg validate --data` reads them; another site goes into the same folder. The same\n"
        "seed gives the same patients; a run that was cut off goes on.\n\n"
        "  volseg synth cohort --site B --patients 40 --seed 7 --ct phantom -o cohort\n"
        "  volseg synth cohort --site A --patients 40 --seed 8 --ct phantom -o cohort --section testing",
    )  # fmt: skip
    cohort.add_argument("--site", required=True, help="A, B, C, or one of --site-file")
    cohort.add_argument("--site-file", type=Path, metavar="JSON", help='your own sites: {"sites": [{"name": ...}]}')
    cohort.add_argument("--patients", type=positive, default=40, help="how many (default: 40)")
    cohort.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    cohort.add_argument("--ct", default="phantom", metavar="DIR",
                        help="a healthy CT, a folder of such, or the word 'phantom' (default)")  # fmt: skip
    cohort.add_argument("--share-ct", action="store_true",
                        help="allow CTs that already serve another site or section of this folder")  # fmt: skip
    cohort.add_argument("--bayes-auc", type=float, default=0.80,
                        help="best possible AUC of the primary, patients with lesions (default: 0.80)")  # fmt: skip
    cohort.add_argument("--lesions", type=whole_range, default=(1, 4), metavar="A-B",
                        help="lesions per patient that has any (default: 1-4)")  # fmt: skip
    cohort.add_argument("--distractors", type=whole_range, default=(0, 2), metavar="A-B",
                        help="benign look-alikes per patient, labelled background (default: 0-2)")  # fmt: skip
    cohort.add_argument("--block-mm", type=float, default=128.0,
                        help="cube cut from a real CT round its bone, 0 for the whole CT (default: 128)")  # fmt: skip
    cohort.add_argument("--section", choices=("training", "validation", "testing"), default="training",
                        help="section of datalist.json (default: training)")  # fmt: skip
    cohort.add_argument("-o", "--out", required=True, type=Path, help="folder for the cohort")
    cohort.set_defaults(run=_cohort)


def _add_gallery(commands: Commands, common: argparse.ArgumentParser) -> None:
    gallery = commands.add_parser(
        "synth gallery", parents=[common], formatter_class=FORMATTER,
        help="a page to judge synthetic lesions by, beside real ones",
        description="One HTML page: first a shuffled blind part (synthetic or real?) whose answers stand at its end,\n"
        "then every synthetic lesion with and without its contour, and the bone before it grew where CASES is a CT.\n"
        "REAL is a folder of NIfTI patches with a CSV of boxes (as BLDS has it) or of cases with masks.",
    )  # fmt: skip
    gallery.add_argument("cases", metavar="CASES",
                         help="a folder that `volseg synth` wrote, a CT to grow in, or the word 'phantom'")  # fmt: skip
    gallery.add_argument("--real", type=Path, metavar="DIR", help="real lesions to stand beside them")
    gallery.add_argument("--n", type=positive, default=12, help="synthetic lesions (default: 12)")
    gallery.add_argument("--seed", type=int, default=0, help="which ones, and in what order (default: 0)")
    gallery.add_argument("-o", "--out", required=True, type=Path, help="folder for gallery.html and its answers")
    gallery.set_defaults(run=_gallery)


def _cohort(args: argparse.Namespace) -> int:
    from volseg.synthetic import CohortOptions, find_site, write_cohort
    from volseg.synthetic.cohort import find_cts

    options = CohortOptions(
        patients=args.patients, seed=args.seed, bayes_auc=args.bayes_auc, lesions=args.lesions,
        distractors=args.distractors, section=args.section, block_mm=args.block_mm or None,
    )  # fmt: skip
    site = find_site(args.site, args.site_file)
    write_cohort(site, find_cts(args.ct), args.out, options, share_cts=args.share_ct, say=print)
    return 0


def _gallery(args: argparse.Namespace) -> int:
    from volseg.synthetic import GalleryOptions, write_gallery

    print(f"gallery in {write_gallery(args.cases, args.out, GalleryOptions(args.n, args.seed), real=args.real)}")
    return 0
