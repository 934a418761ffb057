"""The front door: `volseg info | predict | synth | demo | bundles`.

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
