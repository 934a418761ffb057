"""What several judges say of one voxel as one probability: the mean of their log odds, none of them boundless."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-4
MOST = math.log((1 - LEAST_PROBABILITY) / LEAST_PROBABILITY)


def bounded_logit(probability: Tensor) -> Tensor:
    """Log odds, float32, with every probability held to 1e-4..1 - 1e-4: nobody overrules the others by being sure."""
    return torch.logit(probability.float(), LEAST_PROBABILITY)


def mean_probability(probabilities: Tensor, dim: int = 0) -> Tensor:
    """Probabilities of judges along `dim` -> the probability whose log odds are the mean of theirs, float32."""
    return torch.sigmoid(bounded_logit(probabilities).mean(dim=dim))
