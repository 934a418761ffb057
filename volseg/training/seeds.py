"""Chance that can be taken up again: every epoch starts from a seed of its own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd


class EpochSeed:
    """Ignite handler: seeds torch, numpy, random and the data set's transforms at the start of every epoch.

    The seed is drawn from (`seed`, epoch, rank). A run that was killed and goes on with epoch n (ResumableState) so
    sees the crops, augmentations and dropout that the uninterrupted run saw in epoch n: on one CPU thread both end in
    the same bits.
    """

    def __init__(self, seed: int, dataset: Any) -> None:
        self.seed, self.dataset = int(seed), dataset

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer (MONAI calls this)."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reseed)

    def _reseed(self, engine: Engine) -> None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        drawn = int(np.random.SeedSequence([self.seed, engine.state.epoch, rank]).generate_state(1)[0])
        torch.manual_seed(drawn)
        np.random.seed(drawn)  # noqa: NPY002  MONAI's and ignite's own code draws from the global generator
        random.seed(drawn)
        set_rnd(self.dataset, drawn)  # in this process; loaders' workers are seeded from torch
