"""`volseg evaluate`: compare predicted masks with true ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from volseg.cli.shared import FORMATTER, Commands, check_output, fraction, not_negative, positive


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    evaluate = commands.add_parser(
        "evaluate", parents=[common, figures_parser()], formatter_class=FORMATTER,
        help="compare predicted masks with true ones",
        description="Compares masks of the same names, lesion by lesion and patient by patient, and writes OUT/\n"
        "evaluation.html, evaluation.json, cases.csv, lesions.csv, tables/ and figures/. Every figure carries n and\n"
        "a 95 % interval over patients, but for average precision, Brier score and expected calibration error (ECE),\n"
        "which have no interval. A volume that cannot be compared is an error, not a gap. Compared volumes are kept,\n"
        "so a long run can be stopped and started again.\n\n"
        "  volseg predict images/*.nii.gz -o out\n"
        "  volseg evaluate --pred out --truth labelsTr --patients patients.csv -o evaluation",
    )  # fmt: skip
    evaluate.add_argument("--pred", required=True, type=Path, metavar="DIR",
                          help="what volseg predict wrote (its scores are used), or masks")  # fmt: skip
    evaluate.add_argument("--truth", required=True, type=Path, metavar="DIR",
                          help="true masks of the same names, or a decathlon folder with labelsTr")  # fmt: skip
    evaluate.add_argument("--against", type=Path, metavar="DIR",
                          help="predictions of a second model: paired comparison on the same patients")  # fmt: skip
    evaluate.add_argument("-o", "--out", type=Path, default=Path("evaluation"), help="folder (default: evaluation)")
    evaluate.set_defaults(run=_evaluate)


def figures_parser() -> argparse.ArgumentParser:
    """The flags that `evaluate` and `validate` share."""
    figures = argparse.ArgumentParser(add_help=False)
    figures.add_argument("--patients", type=Path, metavar="CSV",
                         help="patients.csv: patient, site, and as known origin, age, sex, scanner, split")  # fmt: skip
    figures.add_argument("--iou", type=fraction, default=0.1, metavar="F",
                         help="from which overlap a lesion counts as found (default: 0.1)")  # fmt: skip
    figures.add_argument("--tolerance-mm", type=not_negative, default=2.0, metavar="MM", help="of the NSD (default: 2)")
    figures.add_argument("--labels", choices=("auto", "mask", "instances"), default="auto",
                         help="instances: values number lesions; mask: number 26-connected parts; auto: instances "
                         "where there are two or more values (default)")  # fmt: skip
    figures.add_argument("--resamples", type=positive, default=2000, help="bootstrap resamples (default: 2000)")
    figures.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    figures.add_argument("--missing-is-empty", action="store_true",
                         help="count a truth without prediction as a volume in which nothing was found")  # fmt: skip
    figures.add_argument("--quiet", action="store_true", help="no progress bar")
    return figures


def _evaluate(args: argparse.Namespace) -> int:
    from volseg.evaluate import evaluate_folders

    check_output(args.out, [str(args.pred), str(args.truth)])
    page = evaluate_folders(
        args.pred, args.truth, args.out, evaluate_options(args), against=args.against, patients_csv=args.patients,
        progress=False if args.quiet else None, say=print,
    )  # fmt: skip
    print(f"report in {page}")
    return 0


def evaluate_options(args: argparse.Namespace) -> Any:
    from volseg.evaluate import EvaluateOptions

    return EvaluateOptions(
        iou=args.iou, tolerance_mm=args.tolerance_mm, labels=args.labels, resamples=args.resamples, seed=args.seed,
        missing_is_empty=args.missing_is_empty,
    )  # fmt: skip
