"""Where a training may be watched: TensorBoard and MLflow, each only if it is installed and asked for."""

from __future__ import annotations

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
        TensorBoardStatsHandler(
            writer, iteration_log=False, global_epoch_transform=lambda _: trainer.state.epoch
        ).attach(evaluator)


def attach_mlflow(trainer: Engine, evaluator: Engine | None, folder: Path, experiment: str) -> None:
    """The same for MLflow, in `folder` as files (its own default, a database, wants more packages)."""
    uri = folder.resolve().as_uri()
    MLFlowHandler(uri, experiment_name=experiment, tag_name="train_loss", output_transform=_loss).attach(trainer)
    if evaluator is not None:
        MLFlowHandler(
            uri, experiment_name=experiment, iteration_log=False,
            global_epoch_transform=lambda _: trainer.state.epoch,
        ).attach(evaluator)  # fmt: skip


def _loss(output: Any) -> Any:
    return from_engine(["loss"], first=True)(output) if isinstance(output, list) else output["loss"]
