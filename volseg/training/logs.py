"""Where a training may be watched: TensorBoard and MLflow, each only if it is installed and asked for."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers import MLFlowHandler, TensorBoardStatsHandler, from_engine

from volseg.errors import UsageError

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}


def check_installed(name: str) -> None:
    """Raises UsageError with the line to type where the package is missing."""
    if find_spec(PACKAGES[name]) is None:
        raise UsageError(
            f"{name}-missing", f"--{name} wants a package that is not installed: pip install {PACKAGES[name]}"
        )


def attach_tensorboard(trainer: Engine, evaluator: Engine | None, folder: Path) -> None:
    """Write the loss of every iteration and the metrics of every validation to `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    TensorBoardStatsHandler(writer, tag_name="train_loss", output_transform=_loss).attach(trainer)
    if evaluator is not None:
        epoch = partial(_epoch_of, trainer)
        TensorBoardStatsHandler(writer, iteration_log=False, global_epoch_transform=epoch).attach(evaluator)


def attach_mlflow(trainer: Engine, evaluator: Engine | None, out: Path, experiment: str) -> None:
    """The same for MLflow: to the server that MLFLOW_TRACKING_URI names, else to `out`/mlruns.db.

    (MONAI's own default, plain files, is refused by MLflow 3.)
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(out / 'mlruns.db').resolve()}"
    out.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = {"tracking_uri": uri, "experiment_name": experiment}
    MLFlowHandler(**named, tag_name="train_loss", output_transform=_loss).attach(trainer)
    if evaluator is not None:
        epoch = partial(_epoch_of, trainer)
        MLFlowHandler(**named, iteration_log=False, global_epoch_transform=epoch).attach(evaluator)


def _epoch_of(trainer: Engine, _: Any) -> int:
    return trainer.state.epoch


def _loss(output: Any) -> Any:
    return from_engine(["loss"], first=True)(output) if isinstance(output, list) else output["loss"]
