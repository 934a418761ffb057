"""`volseg predict`: outline bone lesions in one or many studies, read as the bundle wants them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volseg.cli.done import Asked, already_done, asked_of, refuse_result_above
from volseg.cli.reading import checked_modality, read_for
from volseg.cli.shared import (
    FORMATTER,
    Commands,
    add_switches,
    check_output,
    check_switches,
    fraction,
    load,
    refuse,
    study_name,
    unique_names,
    whole_name,
)
from volseg.errors import UsageError, VolsegError
from volseg.types import Study

if TYPE_CHECKING:
    from volseg.inference.bundle import LoadedBundle


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    predict = commands.add_parser(
        "predict", parents=[common], formatter_class=FORMATTER,
        help="outline bone lesions in one or many studies",
        description="Writes OUT/<study>/: lesions.nii.gz (lesion numbers on the source grid), lesions.csv,\n"
        "result.json, preview.png and report.html. A study without lesions is a success. Results that are\n"
        "already there are kept, so a long run can be stopped and started again; a result of another study,\n"
        "bundle or option under the same name is refused (--name, another -o, or --overwrite).\n\n"
        "A bundle for MRI takes a folder of sequences (DICOM, or files named by their sequence) as one study:\n"
        "  volseg predict MRI_FOLDER --bundle spine_mri_unet_segmentation -o out\n"
        "`volseg info MRI_FOLDER` says which series serves which channel; --channel overrides it. The masks lie on\n"
        "the grid of the reference series, by default the first of T1, T1c, T2, STIR that is there.",
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
    predict.add_argument("--channel", action="append", default=[], metavar="T1=PATH",
                         help="MRI: the series of a channel (a path, or a series UID's last digits)")  # fmt: skip
    predict.add_argument("--reference", metavar="CHANNEL", help="MRI: the sequence whose grid the masks lie on")
    predict.add_argument("--register", action="store_true", help="MRI: move the other sequences rigidly onto it first")
    predict.add_argument("--name", type=whole_name, help="folder name of the result (one input only)")
    predict.add_argument("--probability", action="store_true", help="also write probability.nii.gz")
    predict.add_argument("--all-windows", action="store_true", help="search and report the whole volume, not only bone")
    predict.add_argument("--overlap", type=fraction, metavar="F", help="overlap of windows, 0 <= F < 1")
    predict.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default=None,
        help="auto: bfloat16 where the processor has it (default: what the bundle says)",
    )  # fmt: skip
    add_switches(predict)
    predict.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    predict.add_argument("--overwrite", action="store_true", help="replace results that are already there")
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> int:
    if args.name and len(args.inputs) > 1:
        raise UsageError("name-for-many", "--name names one study; leave it out when there are several inputs")
    out: Path = args.out
    check_output(out, args.inputs)
    names = unique_names([args.name or study_name(item) for item in args.inputs])
    bundles = _asked_bundles(args)
    reads = checked_modality(bundles, args)
    asked = {bundle: asked_of(bundle, args) for bundle in bundles}
    todo = [
        (item, name, todo_here)
        for item, name in zip(args.inputs, names, strict=True)
        if (todo_here := _not_done(out / name, item, asked, overwrite=args.overwrite))
        or _page_is_due(out / name, bundles)
    ]
    loaded: dict[str, LoadedBundle] = {}
    failures: list[int] = []
    for item, name, todo_here in todo:
        start = time.perf_counter()
        try:
            if todo_here:
                study = _read(reads, item, name, args, asked[bundles[0]])
                read_seconds = time.perf_counter() - start
            for bundle, folder in todo_here:
                loaded[bundle] = loaded.get(bundle) or load(bundle, args)
                _analyse_and_write(study, loaded[bundle], folder, args, read_seconds)
                print(f"{name}: report in {folder / 'report.html'} ({time.perf_counter() - start:.0f} s)")
            if len(bundles) > 1:
                from volseg.side_by_side import write_side_by_side

                page = write_side_by_side(out / name, [f.name for f in _folders(out / name, bundles)])
                print(f"{name}: side by side in {page}")
        except VolsegError as error:
            failures.append(refuse(error))
    if len(args.inputs) > 1 and todo:
        print(
            f"{len(todo) - len(failures)} of {len(todo)} studies done"
            + (f", {len(failures)} failed" if failures else "")
        )
    return failures[0] if len(failures) == len(args.inputs) == 1 else int(bool(failures))


def _asked_bundles(args: argparse.Namespace) -> list[str]:
    """The bundles in the order asked for, each once; those of a trusted folder by their path."""
    from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, shipped_bundles

    shipped = shipped_bundles()
    found = {
        one.root: one for one in (find_bundle(b, trust=args.trust_bundle) for b in args.bundle or [DEFAULT_BUNDLE])
    }
    files = list(found.values())
    bundles = [one.name if shipped.get(one.name) == one.root else str(one.root) for one in files]
    check_switches(args, files)
    if len(bundles) > 1:
        roots = [one.root for one in files]
        if len({root.name for root in roots}) < len(roots):
            raise UsageError("bundle-twice", f"two bundles of one name: {', '.join(map(str, roots))}; rename a folder")
    return bundles


def _not_done(folder: Path, item: str, asked: Mapping[str, Asked], *, overwrite: bool) -> list[tuple[str, Path]]:
    """The bundles whose answer on a study is still to be made, and where it goes."""
    if len(asked) > 1:
        refuse_result_above(folder)
    places = zip(asked, _folders(folder, list(asked)), strict=True)
    return [(b, place) for b, place in places if not already_done(place, item, asked[b], overwrite=overwrite)]


def _page_is_due(study: Path, bundles: Sequence[str]) -> bool:
    """Whether all that is missing is the page that shows several bundles' results together."""
    if len(bundles) == 1:
        return False
    from volseg.side_by_side import page_is_due

    return page_is_due(study, [folder.name for folder in _folders(study, bundles)])


def _read(reads: str, item: str, name: str, args: argparse.Namespace, asked: Asked) -> Study:
    """The study and what the next run knows it by. Fingerprint first: files that change while read are others then."""
    from volseg.io.files import recorded

    fingerprint = asked.fingerprint_of(item)
    study = read_for(reads, item, name, args)
    return replace(study, source=recorded(item), asked=asked.series, fingerprint=fingerprint)


def _folders(study: Path, bundles: Sequence[str]) -> list[Path]:
    """Where each bundle's results of one study go: OUT/<study>, or below it with several bundles."""
    return [study] if len(bundles) == 1 else [study / Path(bundle).name for bundle in bundles]


def _analyse_and_write(
    study: Any, bundle: LoadedBundle, folder: Path, args: argparse.Namespace, seconds: float
) -> Path:
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
