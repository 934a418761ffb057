"""A training that can be cut off: its whole state after every epoch, written at once or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

_LOG = logging.getLogger(__name__)


class ResumableState:
    """Ignite handler: loads `path` before the run if it is there, writes it after every `interval` epochs.

    Besides what `state` names (objects with state_dict), the engine's own epoch and iteration are kept, so the run goes
    on with the next epoch. The file is replaced atomically, and after the epoch's validation: a run that was killed
    while validating repeats the epoch. Chance is `EpochSeed`'s: with it a resumed run sees the same crops.

    A schedule in closed form (LambdaLR, so WarmupCosineSchedule) is taken up at its place, but with the rates and the
    length that it was built with now: more epochs or another learning rate count. Other schedules need their past, and
    go on as they were.
    """

    def __init__(self, path: str | Path, state: Mapping[str, Any], *, interval: int = 1) -> None:
        self.path = Path(path)
        self.state = dict(state)
        self.interval = interval
        self._saving = False

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer (MONAI calls this)."""
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.STARTED, self._save_last)

    def _save_last(self, engine: Engine) -> None:
        # Handlers run in the order of their attachment. It is the load that must come early in a bundle's list (before
        # the average begins); by now the ValidationHandler is attached, too, and saving comes after it.
        if not self._saving:  # an engine may be run twice
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._save)
            self._saving = True

    def _load(self, engine: Engine) -> None:
        if not self.path.is_file():
            return
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        # Schedules last: an optimizer's state brings the rates of the run before.
        for name, part in sorted(self.state.items(), key=lambda item: isinstance(item[1], LRScheduler)):
            # A part that the state does not know gets an empty one: a network refuses it, a new kind of part may not.
            state = saved.get(name, {})
            if isinstance(part, LambdaLR):
                _take_up(part, state)
            else:
                unwrapped(part).load_state_dict(state)
        engine.state.epoch = int(saved["epoch"])
        engine.state.iteration = int(saved["iteration"])
        _LOG.info("going on after epoch %d of %s", engine.state.epoch, engine.state.max_epochs)

    def _save(self, engine: Engine) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
            return
        saved = {name: unwrapped(part).state_dict() for name, part in self.state.items()}
        saved |= {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        torch.save(saved, partial)
        partial.replace(self.path)


class BestSaver(CheckpointSaver):
    """MONAI's saver of the best epoch's weights, for the evaluator, with a state for `ResumableState`.

    MONAI's own knows its best score in memory only: the first epoch validated after a resume would replace the file,
    however bad it is. `arguments` are CheckpointSaver's.
    """

    def __init__(
        self, save_dir: str, save_dict: dict[str, Any], *, key_metric_filename: str = "model_best.pt", **arguments: Any
    ) -> None:
        super().__init__(
            save_dir, save_dict, save_key_metric=True, key_metric_filename=key_metric_filename, **arguments
        )
        self.path = Path(save_dir) / key_metric_filename
        self.evaluator: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator (MONAI calls this)."""
        super().attach(engine)
        self.evaluator = engine

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and what the evaluator says of it; nothing where nothing was validated."""
        assert self._key_metric_checkpoint is not None
        scores = self._key_metric_checkpoint.state_dict()["_saved"]
        if self.evaluator is None or not scores:
            return {}
        best: Any = self.evaluator.state  # a MONAI engine's
        return {
            "scores": [(float(score), name) for score, name in scores],
            "best_metric": float(best.best_metric),
            "best_metric_epoch": int(best.best_metric_epoch),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with a best score; a state without one, or weights that are gone, begin anew."""
        if self.evaluator is None or not state_dict or not self.path.is_file():
            return
        super().load_state_dict({"_saved": state_dict["scores"]})
        best: Any = self.evaluator.state
        best.best_metric, best.best_metric_epoch = state_dict["best_metric"], state_dict["best_metric_epoch"]


def _take_up(schedule: LambdaLR, state: Mapping[str, Any]) -> None:
    """Go to the place that `state` names; the rates are computed anew, as step() computed them."""
    for group, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
        group["initial_lr"] = rate
    schedule.last_epoch = int(state["last_epoch"]) - 1
    schedule._step_count = int(state["_step_count"])  # not one less: step() would warn of its first call
    schedule.step()
    schedule._step_count -= 1


def unwrapped(part: Any) -> Any:
    """The network inside DistributedDataParallel, so that one process can go on where several stopped."""
    return part.module if isinstance(part, DistributedDataParallel) else part
