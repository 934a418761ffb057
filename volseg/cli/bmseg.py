"""`volseg bmseg`: train and test on BM-Seg under a named protocol. `volseg bmseg-synth`: a folder of its shape."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from volseg.cli.shared import FORMATTER, Commands, asked_precision, check_output, positive

PROTOCOLS = ("bmseg-patient", "bmseg-eh", "bmseg-mfp")
BUNDLES = ("bmseg_bmsmm_net_segmentation", "bmseg_mfp_deeplabv3plus_segmentation")


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    bmseg = commands.add_parser(
        "bmseg", parents=[common], formatter_class=FORMATTER,
        help="BM-Seg: cross-validated training and evaluation of the 2-D networks",
        description="DATA is the unpacked BM-Seg archive: the folders 'image', 'bone mask', 'lesion mask', and beside\n"
        "them slices.csv (columns slice, patient), since the archive does not say whose slice is whose. Every picture\n"
        "is checked first. Each fold is trained by the bundle's own train.json, the epoch chosen on its validation\n"
        "slices, its test slices predicted once. OUT/bmseg.html shows our figures beside the published ones of the\n"
        "same kind; tables/ and bmseg.json hold them, <bundle>/fold_<k>/ weights and masks. Finished folds are kept;\n"
        "a training that was cut off goes on (the best epoch is then sought among the later ones).\n\n"
        "protocols:\n"
        "  bmseg-patient  folds over patients: the honest one. Refused where patients are unknown.\n"
        "  bmseg-eh       the public split of EH-AttUNet++, over images. LEAKY: for comparison with papers only.\n"
        "  bmseg-mfp      our reading of MFP-DeepLabv3+'s, over images. LEAKY: for comparison with papers only.\n\n"
        "  volseg bmseg BM-Seg --check                               look at every picture, train nothing\n"
        "  volseg bmseg BM-Seg -o bmseg                              both networks, by patient (wants a GPU)\n"
        "  volseg bmseg BM-Seg -o eh --protocol bmseg-eh --bundle bmseg_bmsmm_net_segmentation\n"
        "  volseg bmseg-synth -o toy --patients 5 --slices 4         without the archive: minutes on a CPU\n"
        "  volseg bmseg toy -o out --folds 3 --crop 64 --epochs 2 --iterations 10",
    )  # fmt: skip
    bmseg.add_argument("data", type=Path, metavar="DATA", help="folder that holds image, bone mask, lesion mask")
    bmseg.add_argument("-o", "--out", type=Path, default=Path("bmseg"), help="folder (default: bmseg)")
    bmseg.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="default: %(default)s")
    bmseg.add_argument("--bundle", action="append", metavar="BUNDLE",
                       help=f"name or folder; may be repeated (default: {' and '.join(BUNDLES)})")  # fmt: skip
    bmseg.add_argument("--folds", type=positive, default=5, help="default: 5, as in the papers")
    bmseg.add_argument("--pattern", metavar="REGEX",
                       help="finds the patient in a slice's name, in place of slices.csv: '^(P[0-9]+)_'")  # fmt: skip
    bmseg.add_argument("--grey-rgb", action="store_true", help="take RGB pictures whose three channels agree as grey")
    bmseg.add_argument("--crop", type=positive, default=256, metavar="PIXELS",
                       help="edge of training crops and test windows, a multiple of 16 (default: 256)")  # fmt: skip
    bmseg.add_argument("--epochs", type=positive, help="per fold (default: what the bundle says)")
    bmseg.add_argument("--iterations", type=positive, help="per epoch")
    bmseg.add_argument("--batch-size", type=positive, help="crops per iteration")
    bmseg.add_argument("--learning-rate", type=float, help="peak learning rate")
    bmseg.add_argument("--seed", type=int, default=0, help="of weights and augmentations (default: 0)")
    bmseg.add_argument("--from", dest="start_from", metavar="WEIGHTS",
                       help="begin with these weights, or 'shipped' (synthetic lesions, 1.5 mm pixels)")  # fmt: skip
    bmseg.add_argument("--precision", choices=("auto", "float32", "bfloat16"),
                       help="of the arithmetic in training; auto: bf16 where this machine computes it")  # fmt: skip
    bmseg.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    bmseg.add_argument("--resamples", type=positive, default=2000, help="bootstrap resamples (default: 2000)")
    bmseg.add_argument("--check", action="store_true", help="check the pictures and stop")
    bmseg.add_argument("--trust-bundle", action="store_true", help="train a bundle that did not come with volseg")
    bmseg.add_argument("--quiet", action="store_true", help="no progress bar")
    bmseg.set_defaults(run=_bmseg)

    synth = commands.add_parser(
        "bmseg-synth", parents=[common], formatter_class=FORMATTER,
        help="a BM-Seg-shaped folder of synthetic slices",
        description="Writes image, bone mask, lesion mask, slices.csv and datalist.json: axial slices of computed\n"
        "patients with grown lesions, or (--from) of the cases that `volseg synth` wrote. Same seed, same files; a\n"
        "run that was cut off goes on. Nothing measured on it says how well real metastases are found.\n\n"
        "  volseg bmseg-synth -o toy --patients 23 --slices 66       as many as BM-Seg has\n"
        "  volseg synth CT -o cases --n 20 && volseg bmseg-synth --from cases -o slices --slices 5\n"
        "  volseg train bmseg_bmsmm_net_segmentation --data slices -o new",
    )  # fmt: skip
    synth.add_argument("-o", "--out", required=True, type=Path, help="folder for the pictures")
    synth.add_argument("--patients", type=positive, default=23, help="computed patients (default: 23)")
    synth.add_argument("--slices", type=positive, default=20, help="per patient, or per case (default: 20)")
    synth.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    synth.add_argument("--from", dest="cases", type=Path, metavar="CASES", help="cut cases of `volseg synth` instead")
    synth.add_argument("--spacing-mm", type=float, default=1.5, help="pixel edge with --from (default: 1.5)")
    synth.add_argument("--quiet", action="store_true", help="no progress bar")
    synth.set_defaults(run=_synth)


def _bmseg(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from volseg.io.bmseg import check_bmseg

    with tqdm(desc="checking", unit="slice", disable=True if args.quiet else None, file=sys.stderr) as bar:

        def tick(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found, report = check_bmseg(args.data, pattern=args.pattern, grey_rgb=args.grey_rgb, tick=tick)
    if args.check:
        print(report.text)
        return 1 if report.problems else 0
    report.refuse_if_bad()
    for note in report.notes:
        print(note)
    check_output(args.out, [str(args.data)])
    from volseg.bmseg import BmSegOptions, run_protocol
    from volseg.inference.bundle import find_bundle

    bundles = [find_bundle(name, trust=args.trust_bundle) for name in dict.fromkeys(args.bundle or BUNDLES)]
    options = BmSegOptions(
        protocol=args.protocol, folds=args.folds, crop=args.crop, epochs=args.epochs, iterations=args.iterations,
        batch_size=args.batch_size, learning_rate=args.learning_rate, seed=args.seed, start_from=args.start_from,
    )  # fmt: skip
    page = run_protocol(
        found, bundles, args.out, options, device=args.device, precision=asked_precision(args),
        resamples=args.resamples, grey_rgb=args.grey_rgb, progress=False if args.quiet else None, say=print,
    )  # fmt: skip
    print(f"report in {page}")
    return 0


def _synth(args: argparse.Namespace) -> int:
    from volseg.synth_slices import cut_cases, write_bmseg_like

    progress = False if args.quiet else None
    if args.cases is not None:
        written = cut_cases(args.cases, args.out, args.slices, args.seed, spacing_mm=args.spacing_mm, progress=progress)
    else:
        written = write_bmseg_like(args.out, args.patients, args.slices, args.seed, progress=progress)
    print(f"{len(written)} SYNTHETIC slices in {args.out}")
    return 0
