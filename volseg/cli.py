"""The front door: `volseg info | predict | evaluate | validate | synth | train | demo | bundles`.

Flags in, exit code out: 0 fine, 1 the data or a study failed, 2 asked wrongly. torch and MONAI are imported only by the
commands that need them, so `volseg info` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg import __version__
from volseg.errors import UsageError, VolsegError

if TYPE_CHECKING:
    from volseg.inference.bundle import LoadedBundle

RESEARCH_ONLY = "Research use only: volseg is not a medical device."

_EXAMPLES = """\
examples:
  volseg info  STUDY                        what is in a file or DICOM folder, and what would be used
  volseg predict STUDY -o out               outline bone lesions; out/<study>/report.html shows them
  volseg predict a.nii.gz b/ c.zip -o out   several studies; finished ones are skipped when run again
  volseg synth CT -o synth --n 10 --seed 1  grow lesions of known mask in the bone of a real CT
  volseg train BUNDLE --data synth -o new   train or fine-tune a bundle; goes on where it was cut off
  volseg evaluate --pred out --truth masks  compare predictions with true masks; intervals, figures, one page
  volseg validate --data cohort --train-site B --test-site A    freeze a rule at one site, test it once at another
  volseg demo                               a phantom patient through the whole walk

exit codes: 0 fine, 1 something could not be processed, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
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
        return int(args.run(args))
    except VolsegError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("volseg: stopped; studies that were finished are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="volseg",
        description=f"Finds, outlines and explains bone metastases in 3D medical images. {RESEARCH_ONLY}",
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"volseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show warnings and progress of every stage")

    info = commands.add_parser(
        "info", parents=[common], formatter_class=formatter,
        help="what is in a file or folder, and what would be used",
        description="Reads headers only. Lists every image series found, which one volseg would use, and why the\n"
        "others would be left. Says what would be refused, with its reason code.",
    )  # fmt: skip
    info.add_argument("input", help="NIfTI, NRRD, MHA, DICOM file, DICOM folder or zip")
    info.add_argument("--json", action="store_true", help="machine-readable output")
    info.set_defaults(run=_info)

    predict = commands.add_parser(
        "predict", parents=[common], formatter_class=formatter,
        help="outline bone lesions in one or many studies",
        description="Writes OUT/<study>/: lesions.nii.gz (lesion numbers on the source grid), lesions.csv,\n"
        "result.json, preview.png and report.html. A study without lesions is a success. Studies that are\n"
        "already there are skipped, so a long run can be stopped and started again.",
    )  # fmt: skip
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="NIfTI, NRRD, MHA, DICOM file, DICOM folder or zip")
    predict.add_argument("-o", "--out", required=True, type=Path, help="folder for the results")
    predict.add_argument(
        "--bundle", action="append", default=None, metavar="BUNDLE",
        help="bundle name or folder (default: the bone CT SegMamba); given more than once, each writes\n"
        "OUT/<study>/<bundle>/ and OUT/<study>/side_by_side.html shows them together",
    )  # fmt: skip
    predict.add_argument("--trust-bundle", action="store_true", help="run a bundle that did not come with volseg")
    predict.add_argument("--series", metavar="UID", help="which DICOM series to use (a UID or its last digits)")
    predict.add_argument("--name", help="folder name of the result (one input only)")
    predict.add_argument("--probability", action="store_true", help="also write probability.nii.gz")
    predict.add_argument("--all-windows", action="store_true", help="search the whole volume, not only where bone is")
    predict.add_argument("--overlap", type=_fraction, metavar="F", help="overlap of windows, 0 <= F < 1")
    predict.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default=None,
        help="auto: bfloat16 where the processor has it (default: what the bundle says)",
    )  # fmt: skip
    predict.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    predict.add_argument("--overwrite", action="store_true", help="replace results that are already there")
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(run=_predict)

    synth = commands.add_parser(
        "synth", parents=[common], formatter_class=formatter,
        help="grow synthetic lesions in real CTs or phantoms",
        description="Each case is a CT with lytic, sclerotic and mixed lesions of exactly known mask grown in its\n"
        "bone, written as imagesTr / labelsTr / datalist.json with the parameters of every lesion. The same\n"
        "seed gives the same cases; a run that was cut off goes on. Use the input 'phantom' for a computed\n"
        "patient.",
    )  # fmt: skip
    synth.add_argument("inputs", nargs="+", metavar="CT", help="CT volume or DICOM folder, or the word 'phantom'")
    synth.add_argument("-o", "--out", required=True, type=Path, help="folder for the cases")
    synth.add_argument("--n", type=_positive, default=10, help="cases per CT (default: 10)")
    synth.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    synth.add_argument("--lesions", type=_range, default=(1, 6), metavar="A-B", help="lesions per case (default: 1-6)")
    synth.add_argument("--distractors", type=_range, default=(0, 2), metavar="A-B",
                       help="benign look-alikes per case, labelled background (default: 0-2)")  # fmt: skip
    synth.add_argument(
        "--healthy", type=_fraction, default=0.1, help="fraction of cases without lesions (default: 0.1)"
    )
    synth.add_argument("--block-mm", type=float, help="crop a cube of this size round the bone (default: whole CT)")
    synth.add_argument("--section", choices=("training", "validation", "testing"), default="training",
                       help="section of datalist.json (default: training)")  # fmt: skip
    synth.add_argument("--series", metavar="UID", help="which DICOM series to use")
    synth.set_defaults(run=_synth)

    _evaluation_parsers(commands, common)

    train = commands.add_parser(
        "train", parents=[common], formatter_class=formatter,
        help="train a bundle on your cases",
        description="Runs the bundle's own train.json on DATA (a folder with datalist.json, as `volseg synth`\n"
        "writes it) and writes OUT/model.pt. The state is kept after every epoch: the same command goes on where it\n"
        "stopped, and on one CPU thread ends in the same bits as an uninterrupted run. Many GPUs: see the\n"
        "bundle's model card.",
    )  # fmt: skip
    train.add_argument("bundle", help="bundle name or folder")
    train.add_argument("--data", required=True, type=Path, help="folder with datalist.json, imagesTr, labelsTr")
    train.add_argument("-o", "--out", required=True, type=Path, help="folder for weights and state")
    train.add_argument("--from", dest="start_from", metavar="WEIGHTS", help="begin with these weights, or 'shipped'")
    train.add_argument("--epochs", type=_positive, help="epochs in all (default: what the bundle says)")
    train.add_argument("--iterations", type=_positive, help="iterations per epoch")
    train.add_argument("--batch-size", type=_positive, help="crops per iteration")
    train.add_argument("--learning-rate", type=float, help="peak learning rate")
    train.add_argument("--seed", type=int, help="seed of weights, crops and augmentations")
    train.add_argument("--precision", choices=("float32", "bfloat16"), help="of the network's arithmetic")
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    train.add_argument("--set", action="append", default=[], metavar="ID=VALUE",
                       help="override any entry of train.json, value as JSON: --set 'roi_size=[64,64,64]'")  # fmt: skip
    train.add_argument("--trust-bundle", action="store_true", help="train a bundle that did not come with volseg")
    train.set_defaults(run=_train)

    demo = commands.add_parser(
        "demo", parents=[common], help="a phantom patient through the whole walk", formatter_class=formatter,
        description="Makes a phantom patient with known lesions, runs the main job on it, compares the result with\n"
        "the known truth and says where the report lies. Needs no data.",
    )  # fmt: skip
    demo.add_argument("-o", "--out", type=Path, default=Path("demo"), help="folder for the demo (default: demo)")
    demo.add_argument("--seed", type=int, default=3, help="which phantom patient (default: 3)")
    demo.set_defaults(run=_demo)

    bundles = commands.add_parser("bundles", parents=[common], help="list the bundles that came with volseg")
    bundles.set_defaults(run=_bundles)
    return parser


def _evaluation_parsers(commands: Any, common: argparse.ArgumentParser) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    figures = argparse.ArgumentParser(add_help=False)
    figures.add_argument("--patients", type=Path, metavar="CSV",
                         help="patients.csv: patient, site, and as known origin, age, sex, scanner, split")  # fmt: skip
    figures.add_argument("--iou", type=_fraction, default=0.1, metavar="F",
                         help="from which overlap a lesion counts as found (default: 0.1)")  # fmt: skip
    figures.add_argument(
        "--tolerance-mm", type=_not_negative, default=2.0, metavar="MM", help="of the NSD (default: 2)"
    )
    figures.add_argument("--labels", choices=("auto", "mask", "instances"), default="auto",
                         help="instances: values number lesions; mask: number 26-connected parts; auto: instances "
                         "where there are two or more values (default)")  # fmt: skip
    figures.add_argument("--resamples", type=_positive, default=2000, help="bootstrap resamples (default: 2000)")
    figures.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    figures.add_argument("--missing-is-empty", action="store_true",
                         help="count a truth without prediction as a volume in which nothing was found")  # fmt: skip
    figures.add_argument("--quiet", action="store_true", help="no progress bar")

    evaluate = commands.add_parser(
        "evaluate", parents=[common, figures], formatter_class=formatter,
        help="compare predicted masks with true ones",
        description="Compares masks of the same names, lesion by lesion and patient by patient, and writes OUT/\n"
        "evaluation.html, evaluation.json, cases.csv, lesions.csv, tables/ and figures/. Every figure carries n and\n"
        "a 95 % interval over patients. A volume that cannot be compared is an error, not a gap. Compared volumes\n"
        "are kept, so a long run can be stopped and started again.\n\n"
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

    validate = commands.add_parser(
        "validate", parents=[common, figures], formatter_class=formatter,
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
    validate.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    validate.add_argument("--false-positives", type=_not_negative, default=2.0, metavar="N",
                          help="per volume, at which the lesion score is frozen (default: 2)")  # fmt: skip
    validate.add_argument("-o", "--out", type=Path, default=Path("validation"), help="folder (default: validation)")
    validate.set_defaults(run=_validate, overlap=None, all_windows=False, precision=None)


def _info(args: argparse.Namespace) -> int:
    from volseg.io import format_table, inspect, to_dict

    inspection = inspect(Path(args.input))
    print(json.dumps(to_dict(inspection), indent=2) if args.json else format_table(inspection))
    return 0 if inspection.refusal is None else 1


def _predict(args: argparse.Namespace) -> int:
    from volseg.io import read_study

    if args.name and len(args.inputs) > 1:
        raise UsageError("name-for-many", "--name names one study; leave it out when there are several inputs")
    out: Path = args.out
    _check_output(out, args.inputs)
    names = _unique_names([args.name or _study_name(item) for item in args.inputs])
    bundles = _asked_bundles(args)
    todo = [
        (item, name)
        for item, name in zip(args.inputs, names, strict=True)
        if not all(_already_done(folder, args.overwrite) for folder in _folders(out, name, bundles))
    ]
    loaded: dict[str, LoadedBundle] = {}
    failures = 0
    for item, name in todo:
        start = time.perf_counter()
        try:
            study = read_study(Path(item), series_uid=args.series, name=name)
            read_seconds = time.perf_counter() - start
            for bundle, folder in zip(bundles, _folders(out, name, bundles), strict=True):
                if len(bundles) > 1 and _already_done(folder, args.overwrite):
                    continue
                loaded[bundle] = loaded.get(bundle) or _load(bundle, args)
                _analyse_and_write(study, loaded[bundle], folder, args, read_seconds)
                print(f"{name}: report in {folder / 'report.html'} ({time.perf_counter() - start:.0f} s)")
            if len(bundles) > 1:
                from volseg.side_by_side import write_side_by_side

                page = write_side_by_side(out / name, [f.name for f in _folders(out, name, bundles)])
                print(f"{name}: side by side in {page}")
        except UsageError:
            raise
        except VolsegError as error:
            failures += 1
            _refuse(error)
    if len(args.inputs) > 1 and todo:
        print(f"{len(todo) - failures} of {len(todo)} studies done" + (f", {failures} failed" if failures else ""))
    return 1 if failures else 0


def _asked_bundles(args: argparse.Namespace) -> list[str]:
    """The bundles in the order asked for, each once; those of a trusted folder by their path."""
    from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle

    bundles = list(dict.fromkeys(args.bundle or [DEFAULT_BUNDLE]))
    if len(bundles) > 1:
        roots = [find_bundle(bundle, trust=args.trust_bundle).root for bundle in bundles]
        if len({root.name for root in roots}) < len(roots):
            raise UsageError("bundle-twice", f"two bundles of one name: {', '.join(map(str, roots))}; rename a folder")
    return bundles


def _folders(out: Path, name: str, bundles: Sequence[str]) -> list[Path]:
    """Where each bundle's results of one study go: OUT/<study>, or below it with several bundles."""
    return [out / name] if len(bundles) == 1 else [out / name / Path(bundle).name for bundle in bundles]


def _analyse_and_write(
    study: Any, bundle: LoadedBundle, folder: Path, args: argparse.Namespace, seconds: float
) -> Path:
    from dataclasses import replace

    from volseg.pipeline import OutputOptions, analyse_study, write_results

    for note in study.notes:
        print(f"{study.name}: {note}")
    result = analyse_study(study, bundle, say=print)
    result = replace(result, seconds={"reading": round(seconds, 3)} | dict(result.seconds))
    count = len(result.lesions)
    total_ml = sum(lesion.volume_mm3 for lesion in result.lesions) / 1000
    found = "no lesion found" if count == 0 else f"{count} lesion{'s' * (count > 1)}, {total_ml:.1f} mL"
    print(f"{study.name}: {found}")
    return write_results(result, folder, OutputOptions(probability=args.probability, overwrite=args.overwrite))


def _load(bundle: str, args: argparse.Namespace) -> LoadedBundle:
    from volseg.inference.bundle import find_bundle, load_bundle
    from volseg.inference.precision import best_precision

    overrides: dict[str, Any] = {"inferer#progress": False if args.quiet else None}
    if args.overlap is not None:
        overrides["inferer#overlap"] = args.overlap
    if args.all_windows:
        overrides["inferer#all_windows"] = True
    if args.precision is not None:
        overrides["inferer#precision"] = best_precision(args.device) if args.precision == "auto" else args.precision
    files = find_bundle(bundle, trust=args.trust_bundle)
    return load_bundle(files, device=args.device, overrides=overrides)


def _synth(args: argparse.Namespace) -> int:
    from volseg.io import read_study
    from volseg.synth import PHANTOM, SynthOptions, write_cases

    sources: dict[str, Any] = {}
    names = _unique_names([item if item == PHANTOM else _study_name(item) for item in args.inputs])
    for item, name in zip(args.inputs, names, strict=True):
        study = None if item == PHANTOM else read_study(Path(item), series_uid=args.series, name=name)
        sources[name] = None if study is None else next(iter(study.volumes.values()))
    options = SynthOptions(
        n=args.n, seed=args.seed, lesions=args.lesions, distractors=args.distractors, healthy=args.healthy,
        block_mm=args.block_mm, section=args.section,
    )  # fmt: skip
    write_cases(sources, args.out, options, say=print)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from volseg.evaluate import evaluate_folders

    _check_output(args.out, [str(args.pred), str(args.truth)])
    page = evaluate_folders(
        args.pred, args.truth, args.out, _evaluate_options(args), against=args.against, patients_csv=args.patients,
        progress=False if args.quiet else None, say=print,
    )  # fmt: skip
    print(f"report in {page}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    from volseg.evaluate import ValidateOptions, checked_cohort, validate_sites

    progress = False if args.quiet else None
    if args.check:
        checked_cohort(args.data, args.out, patients_csv=args.patients, progress=progress, say=print)
        return 0
    if not (args.train_site and args.test_site):
        raise UsageError("sites-missing", "name both --train-site and --test-site (or --check to check files only)")
    page = validate_sites(
        args.data, args.out,
        ValidateOptions(args.train_site, args.test_site, args.false_positives, _evaluate_options(args)),
        predictions=args.pred, predict=None if args.pred else _predict_into(args), patients_csv=args.patients,
        progress=progress, say=print,
    )  # fmt: skip
    print(f"report in {page}")
    return 0


def _evaluate_options(args: argparse.Namespace) -> Any:
    from volseg.evaluate import EvaluateOptions

    return EvaluateOptions(
        iou=args.iou, tolerance_mm=args.tolerance_mm, labels=args.labels, resamples=args.resamples, seed=args.seed,
        missing_is_empty=args.missing_is_empty,
    )  # fmt: skip


def _predict_into(args: argparse.Namespace) -> Any:
    """(case, folder) -> the result of one image there; the bundle is loaded for the first."""
    from volseg.inference.bundle import DEFAULT_BUNDLE
    from volseg.io import read_study
    from volseg.pipeline import OutputOptions, analyse_study, write_results

    loaded: list[LoadedBundle] = []

    def predict(case: Any, folder: Path) -> None:
        study = read_study(case.image, name=case.name)
        if not loaded:
            loaded.append(_load(args.bundle or DEFAULT_BUNDLE, args))
        write_results(analyse_study(study, loaded[0]), folder, OutputOptions())

    return predict


def _train(args: argparse.Namespace) -> int:
    from volseg.inference.bundle import find_bundle
    from volseg.train import TrainOptions, train_bundle

    overrides: dict[str, Any] = {}
    for item in args.set:
        key, _, value = item.partition("=")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    options = TrainOptions(
        epochs=args.epochs, iterations_per_epoch=args.iterations, batch_size=args.batch_size,
        learning_rate=args.learning_rate, seed=args.seed, precision=args.precision, device=args.device,
        start_from=args.start_from, overrides=overrides,
    )  # fmt: skip
    weights = train_bundle(find_bundle(args.bundle, trust=args.trust_bundle), args.data, args.out, options, say=print)
    print(f"weights in {weights}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from volseg.demo import run_demo

    return run_demo(args.out, seed=args.seed, say=print)


def _bundles(args: argparse.Namespace) -> int:
    from volseg.inference.bundle import find_bundle, shipped_bundles

    for name in shipped_bundles():
        files = find_bundle(name)
        print(f"{name} {files.version}\n  {files.metadata.get('description', '')}\n  {files.root}")
    return 0


def _already_done(folder: Path, overwrite: bool) -> bool:
    if overwrite or not folder.exists():
        return False
    if (folder / "result.json").is_file():
        print(f"{folder.name}: already done, skipped (--overwrite to run it again)")
        return True
    raise UsageError("output-exists", f"{folder} exists and is not a finished result; remove it or pass --overwrite")


def _check_output(out: Path, inputs: Sequence[str]) -> None:
    for item in inputs:
        source = Path(item)
        if source.is_dir() and (out.resolve() == source.resolve() or source.resolve() in out.resolve().parents):
            raise UsageError("output-inside-input", f"{out} lies inside the input {source}; choose another folder")
    if out.exists() and not out.is_dir():
        raise UsageError("output-not-a-folder", f"{out} is a file; -o wants a folder")
    parent = next(p for p in (out.resolve(), *out.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UsageError("output-read-only", f"{parent} cannot be written to; choose another folder with -o")


def _study_name(item: str) -> str:
    from volseg.io.files import safe_name, stem_of

    return safe_name(stem_of(Path(item)))


def _unique_names(names: Sequence[str]) -> list[str]:
    """Two inputs of the same name get a number each, in the order given."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def _refuse(error: VolsegError) -> int:
    line = " ".join(str(error).split())
    print(f"volseg: {line}", file=sys.stderr)
    return error.exit_code


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie in [0, 1)")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is negative or not finite")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    value = (int(low), int(high or low))
    if not 0 <= value[0] <= value[1]:
        raise argparse.ArgumentTypeError(f"{text} is not a range such as 1-6")
    return value


if __name__ == "__main__":
    sys.exit(main())
