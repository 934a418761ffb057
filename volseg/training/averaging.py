"""An exponential moving average of the weights, kept beside the network while it is trained.

A(t) = d A(t-1) + (1 - d) W(t) after every iteration. It smooths the last steps' noise, which is most of what a training
of few steps and small batches ends with (Polyak and Juditsky, SIAM J. Control Optim. 1992, average plainly).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from volseg.training.checkpoint import unwrapped


class AveragedWeights:
    """Ignite handler. `network` is trained by somebody else; `averaged` is what to validate and to save.

    decay 0 keeps no average at all: `averaged` is the network itself. Early on the decay is (1 + t) / (10 + t) where
    that is less, so that the average is not full of the first weights (as TensorFlow's does). Buffers are copied, not
    averaged. It has a state for `ResumableState`; attach it after that.

    Raises ValueError for a decay outside 0 <= decay < 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay:g} lies outside 0 <= decay < 1; 0 keeps no average, .999 is common")
        self.network, self.decay, self.steps = network, float(decay), 0
        self.averaged = network
        if decay:
            self.averaged = copy.deepcopy(unwrapped(network)).requires_grad_(False)

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer (MONAI calls this)."""
        if self.decay:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def state_dict(self) -> dict[str, Any]:
        """The average and how many steps it has seen; nothing where none is kept."""
        return {"steps": self.steps, "weights": self.averaged.state_dict()} if self.decay else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with an average; a state without one (of a training that kept none) begins a new one."""
        if self.decay and state:
            self.averaged.load_state_dict(state["weights"])
            self.steps = int(state["steps"])

    def _start(self, _: Engine) -> None:
        if self.steps == 0:  # after weights were loaded to fine-tune from
            self.averaged.load_state_dict(self._trained())

    @torch.no_grad()
    def _update(self, _: Engine) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        learnt = {name for name, _ in self.averaged.named_parameters()}
        trained = self._trained()
        for name, value in self.averaged.state_dict().items():
            if name in learnt:
                value.lerp_(trained[name].to(value.dtype), 1 - decay)
            else:
                value.copy_(trained[name])

    def _trained(self) -> dict[str, Tensor]:
        return dict(unwrapped(self.network).state_dict())


class AverageHandler:
    """Attaches an average that is named elsewhere in a config: MONAI reads `_target_` of every handler in a list."""

    def __init__(self, average: AveragedWeights) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer (MONAI calls this)."""
        self.average.attach(engine)
