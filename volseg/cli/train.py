"""`volseg train`: train a bundle on your cases."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from volseg.cli.shared import (
    FORMATTER,
    Commands,
    above_zero,
    asked_precision,
    check_output,
    fraction,
    from_zero,
    positive,
)
from volseg.errors import UsageError


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
    train.add_argument("--learning-rate", type=above_zero, help="peak learning rate")
    train.add_argument("--seed", type=from_zero, help="seed of weights, crops and augmentations")
    train.add_argument("--precision", choices=("auto", "float32", "bfloat16"),
                       help="of the arithmetic; auto: bf16 where this machine computes it")  # fmt: skip
    train.add_argument("--ema", type=fraction, metavar="DECAY",
                       help="average the weights, and validate and save that (.999 is common; 0: do not)")  # fmt: skip
    train.add_argument("--folds", type=positive, metavar="N",
                       help="cross-validation over patients: deal the training section into N folds")  # fmt: skip
    train.add_argument(
        "--fold", type=int, metavar="K", help="which of them to validate on, 0 to N-1; see OUT/fold.json"
    )
    train.add_argument("--tensorboard", action="store_true", help="also log to OUT/tensorboard, if it is installed")
    train.add_argument(
        "--mlflow", action="store_true", help="also log to OUT/mlruns.db or MLFLOW_TRACKING_URI, if it is installed"
    )
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    train.add_argument("--set", action="append", default=[], metavar="ID=VALUE",
                       help="override any entry of train.json, value as JSON: --set 'roi_size=[64,64,64]'")  # fmt: skip
    train.add_argument("--trust-bundle", action="store_true", help="train a bundle that did not come with volseg")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from volseg.inference.bundle import find_bundle
    from volseg.train import TrainOptions, dataset_folder, train_bundle

    check_output(args.out, [])
    overrides: dict[str, Any] = {}
    for item in args.set:
        key, _, value = item.partition("=")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    options = TrainOptions(
        epochs=args.epochs, iterations_per_epoch=args.iterations, batch_size=args.batch_size,
        learning_rate=args.learning_rate, seed=args.seed, precision=asked_precision(args), device=args.device,
        start_from=args.start_from, overrides=overrides, ema_decay=args.ema, tensorboard=args.tensorboard,
        mlflow=args.mlflow, case_list=_fold(args, dataset_folder(args.data)),
    )  # fmt: skip
    weights = train_bundle(find_bundle(args.bundle, trust=args.trust_bundle), args.data, args.out, options, say=print)
    print(f"weights in {weights}")
    return 0


def _fold(args: argparse.Namespace, data: Path) -> Path | None:
    """OUT/fold.json where folds were asked for."""
    from volseg.folds import FoldOptions, write_fold

    if args.folds is None and args.fold is None:
        return None
    if args.folds is None or args.fold is None:
        raise UsageError("fold-wrong", "--folds N and --fold K go together")
    fold = write_fold(data, args.out, FoldOptions(args.folds, args.fold))
    print(f"fold {args.fold} of {args.folds}: who is in it stands in {fold}")
    return fold
