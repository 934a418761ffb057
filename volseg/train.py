"""`volseg train`: a bundle's own train.json through MONAI, resumable, with the overrides people ask for most."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from volseg.errors import InputError, UsageError, VolsegError
from volseg.inference.bundle import BundleFiles
from volseg.inference.datasets import listed_cases
from volseg.inference.quiet import quiet
from volseg.io.cohort import DATALIST
from volseg.report.files import write_whole
from volseg.training.identity import IDENTITY, identity_of, refuse_another
from volseg.training.logs import attach_mlflow, attach_tensorboard, check_installed

log = logging.getLogger(__name__)
LONGEST = 300  # characters of an error that is not ours


@dataclass(frozen=True)
class TrainOptions:
    """What to change in train.json. None keeps what the bundle says.

    `start_from`: weights to begin with ("shipped": the bundle's own). `ema_decay`: of the averaged weights that are
    validated and saved instead of the last ones, 0 for none. `case_list`: a datalist to take the place of the data's
    own, as `volseg.folds.write_fold` writes it. `tensorboard`, `mlflow`: also log there. `overrides`: config entries by
    id.
    """

    epochs: int | None = None
    iterations_per_epoch: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    precision: str | None = None
    device: str | None = None
    start_from: str | None = None
    ema_decay: float | None = None
    case_list: Path | None = None
    tensorboard: bool = False
    mlflow: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def train_bundle(
    files: BundleFiles,
    data: Path,
    out: Path,
    options: TrainOptions = TrainOptions(),
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train `files` on `data` (a folder with datalist.json, or that file) and return `out`/model.pt.

    The state is kept in `out`/training_state.pt after every epoch; the same call goes on from there, and on one
    CPU thread ends in the bits of an uninterrupted run. A finished training is not begun again. More epochs, another
    learning rate or another machine go on with it; `out`/training.json says what else it is.

    Raises:
        InputError: no such data or weights; files of the datalist that are missing, cases without a label; whatever
            else the training fails with, as training-failed.
        UsageError: an override the config does not know; `out` holds the training of something else.
    """
    folder = dataset_folder(data)
    for name in ("tensorboard", "mlflow"):
        if getattr(options, name):
            check_installed(name)
    listed = str(options.case_list or folder)
    cases = _labelled(listed_cases(listed, "training"), "training")
    config = files.root / "configs" / "train.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    changes = _changes(files, options, known)
    validation = [] if "val_cases" in options.overrides else listed_cases(listed, "validation", required=False)
    _labelled(validation, "validation")
    identity = identity_of(files.name, {"training": cases, "validation": validation}, changes, known)
    changes |= {"bundle_root": str(files.root), "dataset_dir": str(folder)}
    epochs = int(changes.get("epochs", known["epochs"]))
    done = finished_epochs(out / "training_state.pt")
    if done:
        refuse_another(out, identity)
    say(f"{files.name}: {len(cases)} training cases, {epochs} epochs into {out}")
    if done >= epochs and (out / "model.pt").is_file():
        say(f"{files.name}: already trained for {done} epochs; ask for more with --epochs, or choose another folder")
        return out / "model.pt"
    if done:
        say(f"{files.name}: going on after epoch {done}")
    quiet()
    with _in_one_line(files.name):
        workflow = ConfigWorkflow(
            config_file=str(config), workflow_type="train", logging_file=False, ckpt_dir=str(out), **changes
        )
        workflow.initialize()
        _watch(workflow, options, files.name, out)
        if not done:  # an older version's folder stays without it: how that one was begun is not known
            write_whole(out / IDENTITY, json.dumps(identity, indent=1))
        workflow.run()
        workflow.finalize()
    return out / "model.pt"


@contextlib.contextmanager
def _in_one_line(name: str) -> Iterator[None]:
    """What fails under MONAI's config parser comes out wrapped, once per entry: say the first cause alone.

    Raises:
        VolsegError: the refusal that lies below.
        InputError: training-failed, with what lies below; `volseg train -v` prints where.
    """
    try:
        yield
    except Exception as error:
        for below in _chain(error, lambda e: e.__cause__ or e.__context__):
            if isinstance(below, VolsegError):
                raise below from error
        *_, below = _chain(error, lambda e: e.__cause__)
        log.info("%s", name, exc_info=error)
        said = " ".join(str(below).split())[:LONGEST]
        raise InputError("training-failed", f"{name}: {type(below).__name__}: {said} (-v shows where)") from error


def _chain(error: BaseException, before: Callable[[BaseException], BaseException | None]) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = before(at)


def _labelled(cases: list[dict[str, str]], section: str) -> list[dict[str, str]]:
    """`cases`, all of which have a label. Raises InputError("label-missing") naming some that have none."""
    without = [Path(case["image"]).name for case in cases if "label" not in case]
    if without:
        some = ", ".join(without[:3])
        raise InputError("label-missing", f"{len(without)} {section} cases of {DATALIST} have no label, {some} say")
    return cases


def _watch(workflow: ConfigWorkflow, options: TrainOptions, name: str, out: Path) -> None:
    """Hang the loggers that were asked for onto the trainer, and onto the evaluator where there is one to run."""
    if not (options.tensorboard or options.mlflow):
        return
    trainer = workflow.parser.get_parsed_content("train#trainer")
    validated = bool(workflow.parser.get_parsed_content("val_cases"))
    evaluator = workflow.parser.get_parsed_content("validate#evaluator") if validated else None
    if options.tensorboard:
        attach_tensorboard(trainer, evaluator, out / "tensorboard")
    if options.mlflow:
        attach_mlflow(trainer, evaluator, out, name)


def dataset_folder(data: Path) -> Path:
    """The folder of a data set, from the folder itself or its datalist.json."""
    folder = data.parent if data.is_file() else data
    if data.is_file() and data.name != DATALIST:
        raise InputError("datalist-name", f"{data}: the list of cases is called {DATALIST}; see data/README.md")
    if not folder.is_dir():
        raise InputError("path-missing", f"{data} does not exist; `volseg synth` makes a data set to try")
    return folder.resolve()


def finished_epochs(state: Path) -> int:
    """How many epochs a training state holds; 0 where there is none."""
    if not state.is_file():
        return 0
    try:
        return int(torch.load(state, map_location="cpu", weights_only=True, mmap=True)["epoch"])
    except (RuntimeError, KeyError, EOFError, ValueError) as error:
        raise InputError("state-broken", f"{state} cannot be read ({error}); remove it to start anew") from error


def _changes(files: BundleFiles, options: TrainOptions, known: Mapping[str, Any]) -> dict[str, Any]:
    changes = {
        name: value
        for name in (
            "epochs", "iterations_per_epoch", "batch_size", "learning_rate", "seed", "precision", "ema_decay"
        )
        if (value := getattr(options, name)) is not None
    }  # fmt: skip
    if "ema_decay" in changes and "ema_decay" not in known:
        raise UsageError("override-unknown", f"{files.name} keeps no averaged weights: its train.json has no ema_decay")
    if options.case_list is not None:
        changes["case_list"] = str(options.case_list.resolve())
        changes["train_cases"] = "$listed_cases(@case_list, 'training')"
        changes["val_cases"] = "$listed_cases(@case_list, 'validation', required=False)"
    if options.device is not None:
        changes["device"] = f"$torch.device('{options.device}')"
    if options.start_from is not None:
        weights = files.weights if options.start_from == "shipped" else Path(options.start_from)
        if not weights.is_file():
            raise InputError("weights-missing", f"{weights} does not exist; --from takes a file or the word 'shipped'")
        changes["finetune_from"] = str(weights.resolve())
    given = {"dataset_dir": "--data", "ckpt_dir": "-o", "bundle_root": "the bundle's name"}
    for key in given.keys() & options.overrides.keys():
        raise UsageError("override-unknown", f"{key} is given by {given[key]}, not by --set")
    unknown = [key for key in options.overrides if key.replace("::", "#").split("#")[0] not in known]
    if unknown:
        raise UsageError("override-unknown", f"train.json of {files.name} has no entry {', '.join(unknown)}")
    return changes | dict(options.overrides)
