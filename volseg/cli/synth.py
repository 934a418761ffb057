"""`volseg synth`: grow synthetic lesions in real CTs, in real MRI with a mask of its vertebrae, or in phantoms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from volseg.cli.shared import (
    FORMATTER,
    Commands,
    fraction,
    positive,
    study_name,
    unique_names,
    whole_numbers,
    whole_range,
)
from volseg.errors import UsageError


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    synth = commands.add_parser(
        "synth", parents=[common], formatter_class=FORMATTER,
        help="grow synthetic lesions in real CTs, in real MRI, or in phantoms",
        description="Each case is a CT with lytic, sclerotic and mixed lesions of exactly known mask grown in its\n"
        "bone, written as imagesTr / labelsTr / datalist.json with the parameters of every lesion. The same\n"
        "seed gives the same cases; a run that was cut off goes on. Use the input 'phantom' for a computed\n"
        "patient, 'mri-phantom' for its spine in T1, T1c, T2 and STIR.\n\n"
        "MRI has no bone mask of its own: give one with --marrow, from any source (SPIDER's, say).\n\n"
        "  volseg synth CT -o cases --n 20\n"
        "  volseg synth mri-phantom -o cases --n 100\n"
        "  volseg synth MRI_FOLDER -o cases --marrow vertebrae.nii.gz --marrow-labels 1-25",
    )  # fmt: skip
    synth.add_argument(
        "inputs", nargs="+", metavar="CT", help="CT volume or DICOM folder, or 'phantom' or 'mri-phantom'"
    )
    synth.add_argument("-o", "--out", required=True, type=Path, help="folder for the cases")
    synth.add_argument("--n", type=positive, default=10, help="cases per CT (default: 10)")
    synth.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    synth.add_argument(
        "--lesions", type=whole_range, default=(1, 6), metavar="A-B", help="lesions per case (default: 1-6)"
    )
    synth.add_argument("--distractors", type=whole_range, default=(0, 2), metavar="A-B",
                       help="benign look-alikes per case, labelled background (default: 0-2)")  # fmt: skip
    synth.add_argument("--healthy", type=fraction, default=0.1, help="fraction of cases without lesions (default: 0.1)")
    synth.add_argument("--block-mm", type=float, help="crop a cube of this size round the bone (default: whole CT)")
    synth.add_argument("--section", choices=("training", "validation", "testing"), default="training",
                       help="section of datalist.json (default: training)")  # fmt: skip
    synth.add_argument("--series", metavar="UID", help="which DICOM series to use")
    synth.add_argument("--marrow", type=Path, metavar="MASK",
                       help="MRI: grow lesions where this mask is above 0, in every sequence of the input")  # fmt: skip
    synth.add_argument("--marrow-labels", type=whole_numbers, metavar="A-B,C",
                       help="MRI: which values of --marrow are vertebrae (default: all above 0)")  # fmt: skip
    synth.add_argument("--channel", action="append", default=[], metavar="T1=PATH",
                       help="MRI: the series of a channel (a path, or a series UID's last digits)")  # fmt: skip
    synth.set_defaults(run=_synth)


def _synth(args: argparse.Namespace) -> int:
    if args.inputs == ["mri-phantom"]:
        from volseg.synth_mri import MriSynthOptions, write_mri_cases

        asked = MriSynthOptions(args.n, args.seed, args.lesions, args.distractors, args.healthy, args.section)
        write_mri_cases(args.out, asked, say=print)
        return 0
    if args.marrow is not None:
        return _grown_mri(args)
    if args.channel or args.marrow_labels:
        raise UsageError("mri-option", "--channel and --marrow-labels are for MRI: --marrow MASK is missing")
    from volseg.io import read_study
    from volseg.synth import PHANTOM, SynthOptions, write_cases

    sources: dict[str, Any] = {}
    names = unique_names([item if item == PHANTOM else study_name(item) for item in args.inputs])
    for item, name in zip(args.inputs, names, strict=True):
        study = None if item == PHANTOM else read_study(Path(item), series_uid=args.series, name=name)
        sources[name] = None if study is None else next(iter(study.volumes.values()))
    options = SynthOptions(
        n=args.n, seed=args.seed, lesions=args.lesions, distractors=args.distractors, healthy=args.healthy,
        block_mm=args.block_mm, section=args.section,
    )  # fmt: skip
    write_cases(sources, args.out, options, say=print)
    return 0


def _grown_mri(args: argparse.Namespace) -> int:
    from volseg.io import parse_channels, read_mri_study, read_volume
    from volseg.synth_mri import MarrowMask, MriSynthOptions, write_grown_mri

    if len(args.inputs) > 1 or args.inputs[0] == "phantom":
        raise UsageError("marrow-for-many", "--marrow belongs to one real examination: give one input")
    source = args.inputs[0]
    study = read_mri_study(source, channels=parse_channels(args.channel), name=study_name(source))
    mask, _ = read_volume(args.marrow)
    marrow = MarrowMask.of(mask, args.marrow_labels, args.marrow.name)
    asked = MriSynthOptions(args.n, args.seed, args.lesions, (0, 0), args.healthy, args.section)
    write_grown_mri(study, marrow, args.out, asked, say=print)
    return 0
