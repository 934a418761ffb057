"""`volseg validate`: freeze a rule at one site, test it once at another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.cli.evaluate import evaluate_options, figures_parser
from volseg.cli.shared import FORMATTER, Commands, add_switches, check_switches, load, not_negative
from volseg.errors import UsageError

if TYPE_CHECKING:
    from volseg.inference.bundle import LoadedBundle


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    validate = commands.add_parser(
        "validate", parents=[common, figures_parser()], formatter_class=FORMATTER,
        help="freeze a rule at one site, test it once at another",
        description="Checks a cohort (datalist.json + patients.csv) for leaks, missing files, wrong labels and grids,\n"
        "all at once; predicts the training site, freezes weights and thresholds in OUT/frozen.json; then predicts\n"
        "and tests the other site, once: a second test with another rule is refused. Writes OUT/validation.html\n"
        "with training beside external figures, subgroups and the worst volumes.\n\n"
        "  volseg validate --data cohort --train-site B --test-site A -o validation\n"
        "  volseg validate --data cohort --check -o validation      only the check of the files",
    )  # fmt: skip
    validate.add_argument("--data", required=True, type=Path, metavar="DIR",
                          help="folder with datalist.json and patients.csv, or a datalist")  # fmt: skip
    validate.add_argument("--train-site", metavar="SITE", help="where thresholds are chosen")
    validate.add_argument("--test-site", metavar="SITE", help="where they are tested")
    validate.add_argument("--check", action="store_true", help="check the cohort's files and stop")
    validate.add_argument("--pred", type=Path, metavar="DIR",
                          help="predictions that exist (default: OUT/predictions, made with --bundle)")  # fmt: skip
    validate.add_argument("--bundle", help="bundle name or folder (default: the bone CT SegMamba)")
    validate.add_argument("--trust-bundle", action="store_true", help="run a bundle that did not come with volseg")
    add_switches(validate)
    validate.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    validate.add_argument("--false-positives", type=not_negative, default=2.0, metavar="N",
                          help="per volume, at which the lesion score is frozen (default: 2)")  # fmt: skip
    validate.add_argument("-o", "--out", type=Path, default=Path("validation"), help="folder (default: validation)")
    validate.set_defaults(run=_validate, overlap=None, all_windows=False, precision=None)


def _validate(args: argparse.Namespace) -> int:
    from volseg.evaluate import ValidateOptions, checked_cohort, validate_sites

    progress = False if args.quiet else None
    if args.check:
        checked_cohort(args.data, args.out, patients_csv=args.patients, progress=progress, say=print)
        return 0
    if not (args.train_site and args.test_site):
        raise UsageError("sites-missing", "name both --train-site and --test-site (or --check to check files only)")
    predict = None if args.pred else _predict_into(args)
    page = validate_sites(
        args.data, args.out,
        ValidateOptions(args.train_site, args.test_site, args.false_positives, evaluate_options(args)),
        predictions=args.pred, predict=predict, patients_csv=args.patients,
        progress=progress, say=print,
    )  # fmt: skip
    print(f"report in {page}")
    return 0


def _predict_into(args: argparse.Namespace) -> Any:
    """(case, folder) -> the result of one image there; the bundle is loaded for the first."""
    from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle
    from volseg.inference.reads import MR, modality_of
    from volseg.io import read_study
    from volseg.io.mri_study import read_mri_study
    from volseg.pipeline import OutputOptions, analyse_study, write_results

    bundle = args.bundle or DEFAULT_BUNDLE
    check_switches(args, [find_bundle(bundle, trust=args.trust_bundle)])
    loaded: list[LoadedBundle] = []

    def predict(case: Any, folder: Path) -> None:
        if not loaded:
            loaded.append(load(bundle, args))
        read = read_mri_study if modality_of(loaded[0].files.metadata) == MR else read_study
        study = read(case.image, name=case.name)
        write_results(analyse_study(study, loaded[0]), folder, OutputOptions())

    return predict
