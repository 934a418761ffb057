"""`volseg train`: train a bundle on your cases."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from volseg.cli.shared import FORMATTER, Commands, positive


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    train = commands.add_parser(
        "train", parents=[common], formatter_class=FORMATTER,
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
    train.add_argument("--epochs", type=positive, help="epochs in all (default: what the bundle says)")
    train.add_argument("--iterations", type=positive, help="iterations per epoch")
    train.add_argument("--batch-size", type=positive, help="crops per iteration")
    train.add_argument("--learning-rate", type=float, help="peak learning rate")
    train.add_argument("--seed", type=int, help="seed of weights, crops and augmentations")
    train.add_argument("--precision", choices=("float32", "bfloat16"), help="of the network's arithmetic")
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    train.add_argument("--set", action="append", default=[], metavar="ID=VALUE",
                       help="override any entry of train.json, value as JSON: --set 'roi_size=[64,64,64]'")  # fmt: skip
    train.add_argument("--trust-bundle", action="store_true", help="train a bundle that did not come with volseg")
    train.set_defaults(run=_train)


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
