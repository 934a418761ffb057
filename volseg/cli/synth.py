"""`volseg synth`: grow synthetic lesions in real CTs or phantoms."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from volseg.cli.shared import FORMATTER, Commands, fraction, positive, study_name, unique_names, whole_range


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    synth = commands.add_parser(
        "synth", parents=[common], formatter_class=FORMATTER,
        help="grow synthetic lesions in real CTs or phantoms",
        description="Each case is a CT with lytic, sclerotic and mixed lesions of exactly known mask grown in its\n"
        "bone, written as imagesTr / labelsTr / datalist.json with the parameters of every lesion. The same\n"
        "seed gives the same cases; a run that was cut off goes on. Use the input 'phantom' for a computed\n"
        "patient.",
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
    synth.set_defaults(run=_synth)


def _synth(args: argparse.Namespace) -> int:
    if args.inputs == ["mri-phantom"]:
        from volseg.synth_mri import MriSynthOptions, write_mri_cases

        asked = MriSynthOptions(args.n, args.seed, args.lesions, args.distractors, args.healthy, args.section)
        write_mri_cases(args.out, asked, say=print)
        return 0
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
