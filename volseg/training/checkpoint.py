"""A training that can be cut off: its whole state after every epoch, written at once or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.nn.parallel import DistributedDataParallel

_LOG = logging.getLogger(__name__)


class ResumableState:
    """Ignite handler: loads `path` before the run if it is there, writes it after every `interval` epochs.

    Besides what `state` names (objects with state_dict), the engine's own epoch and iteration are kept, so the run goes
    on with the next epoch. The file is replaced atomically. Chance is `EpochSeed`'s: with it a resumed run sees the
    same crops.
    """

    def __init__(self, path: str | Path, state: Mapping[str, Any], *, interval: int = 1) -> None:
        self.path = Path(path)
        self.state = dict(state)
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer (MONAI calls this)."""
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._save)

    def _load(self, engine: Engine) -> None:
        if not self.path.is_file():
            return
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.state.items():
            # A part that the state does not know gets an empty one: a network refuses it, a new kind of part may not.
            unwrapped(part).load_state_dict(saved.get(name, {}))
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


def unwrapped(part: Any) -> Any:
    """The network inside DistributedDataParallel, so that one process can go on where several stopped."""
    return part.module if isinstance(part, DistributedDataParallel) else part
