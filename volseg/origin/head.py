"""The lesion head: a row of features in, the log-odds that this lesion's tumour started in the lung out.

Logistic regression, or one hidden layer, on standardised features, with a Gaussian prior on the weights. Every patient
counts once, however many lesions there are. Fitted by L-BFGS in float64: the same data give the same head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from volseg.errors import InputError, UsageError
from volseg.origin.cohort import Cohort
from volseg.origin.features import LesionTable

Parameters = dict[str, NDArray[np.float64]]
MOST_DEVIATIONS = 5.0  # one feature far outside the training range must not decide alone


@dataclass(frozen=True)
class HeadOptions:
    """`l2` is the precision of the Gaussian prior on each weight of a standardised feature: larger is plainer.

    None takes 1 for the logistic head and 10 for the MLP, which suit about twenty features and a few hundred patients
    (on cohorts of 400 with a Bayes AUC of .80 the MLP lost .04 at 1 and nothing at 10); pooled deep features want 10
    to 100. `hidden` and `seed` (of the starting weights) matter to the MLP only.
    """

    kind: Literal["logistic", "mlp"] = "logistic"
    l2: float | None = None
    hidden: int = 8
    seed: int = 0

    @property
    def precision(self) -> float:
        if self.l2 is not None:
            return self.l2
        return 1.0 if self.kind == "logistic" else 10.0


@dataclass(frozen=True, eq=False)
class LesionHead:
    """A fitted head. `names`, `mean`, `scale` (F) standardise; `parameters` as `lesion_logits` reads them."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    parameters: Parameters

    def standardise(self, table: LesionTable) -> NDArray[np.float64]:
        """(N, F) in training deviations, by name, within +-5; what is not known (NaN) becomes 0, the mean."""
        z = (table.select(self.names).values - self.mean) / self.scale
        return np.clip(np.nan_to_num(z, nan=0.0, posinf=np.inf, neginf=-np.inf), -MOST_DEVIATIONS, MOST_DEVIATIONS)

    def logits(self, table: LesionTable) -> NDArray[np.float64]:
        """(N,) log-odds of lung, uncalibrated."""
        return lesion_logits(tensors(self.parameters), torch.from_numpy(self.standardise(table))).numpy()

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "parameters": {name: value.tolist() for name, value in self.parameters.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LesionHead:
        return cls(
            names=tuple(document["names"]),
            mean=np.asarray(document["mean"], dtype=np.float64),
            scale=np.asarray(document["scale"], dtype=np.float64),
            parameters={k: np.asarray(v, dtype=np.float64) for k, v in document["parameters"].items()},
        )


def lesion_logits(parameters: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """(N, F) standardised features -> (N,) logits: w.z + b, or w.tanh(V z + c) + b where there is a hidden layer."""
    if "hidden_weight" in parameters:
        z = torch.tanh(z @ parameters["hidden_weight"] + parameters["hidden_bias"])
    return z @ parameters["weight"] + parameters["bias"]


def fit_head(cohort: Cohort, options: HeadOptions = HeadOptions()) -> LesionHead:
    """Fit a head on lesions that carry their patient's answer, each weighing 1 / (lesions of the patient).

    Raises UsageError where only one class has lesions, InputError where a feature is infinite.
    """
    counts = cohort.counts
    seen = cohort.lung[counts > 0]
    if seen.all() or not seen.any():
        raise UsageError(
            "origin-cohort", f"all {seen.size} patients with lesions have the same answer: nothing to learn"
        )
    if np.isinf(cohort.table.values).any():
        column = int(np.flatnonzero(np.isinf(cohort.table.values).any(axis=0))[0])
        raise InputError("origin-features", f"feature {cohort.table.names[column]} holds Inf; use NaN for unknown")
    weight = 1.0 / counts[cohort.patient_of]
    mean, scale = _moments(cohort.table.values, weight)
    start = _start(len(mean), options)
    head = LesionHead(cohort.table.names, mean, scale, start)
    z, share = torch.from_numpy(head.standardise(cohort.table)), torch.from_numpy(weight)
    truth = torch.from_numpy(cohort.lung[cohort.patient_of].astype(np.float64))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = lesion_logits(parameters, z)
        return (share * binary_cross_entropy_with_logits(logits, truth, reduction="none")).sum() + penalty(
            parameters, options.precision
        )

    return LesionHead(head.names, mean, scale, minimise(loss, start))


def penalty(parameters: Mapping[str, Tensor], l2: float) -> Tensor:
    """Minus the log of the Gaussian prior on all weights; biases are free."""
    total = torch.zeros((), dtype=torch.float64)
    for name, value in parameters.items():
        if not name.endswith("bias"):
            total = total + 0.5 * l2 * (value**2).sum()
    return total


def minimise(loss: Callable[[dict[str, Tensor]], Tensor], start: Parameters) -> Parameters:
    """Minimise a scalar loss of named float64 tensors from `start` (L-BFGS-B, gradients by autograd)."""
    sizes = [value.size for value in start.values()]

    def named(flat: NDArray) -> dict[str, NDArray]:
        pieces = np.split(flat, np.cumsum(sizes)[:-1])
        return {name: piece.reshape(value.shape) for (name, value), piece in zip(start.items(), pieces, strict=True)}

    def value_and_slope(flat: NDArray) -> tuple[float, NDArray]:
        parameters = {name: value.requires_grad_() for name, value in tensors(named(flat)).items()}
        with torch.enable_grad():
            value = loss(parameters)
            slopes = torch.autograd.grad(value, list(parameters.values()))
        return value.item(), np.concatenate([slope.numpy().ravel() for slope in slopes])

    flat = np.concatenate([value.ravel() for value in start.values()])
    found = minimize(value_and_slope, flat, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-12})
    return named(found.x)


def tensors(parameters: Mapping[str, NDArray]) -> dict[str, Tensor]:
    """Copies as float64 tensors."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in parameters.items()}


def _moments(values: NDArray, weight: NDArray) -> tuple[NDArray, NDArray]:
    """Weighted mean and deviation (F,) of what is known; 0 and 1 of a column that is never known or never varies."""
    known = np.isfinite(values)
    share = np.where(known, weight[:, None], 0.0)
    total = np.maximum(share.sum(axis=0), 1e-12)
    filled = np.where(known, values, 0.0)
    mean = (share * filled).sum(axis=0) / total
    scale = np.sqrt((share * np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / total)
    # A constant column's deviation is rounding, not information.
    return mean, np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)


def _start(features: int, options: HeadOptions) -> Parameters:
    if options.kind == "logistic":
        return {"weight": np.zeros(features), "bias": np.zeros(())}
    rng = np.random.default_rng(options.seed)
    return {
        "hidden_weight": rng.normal(0, features**-0.5, (features, options.hidden)),
        "hidden_bias": np.zeros(options.hidden),
        "weight": rng.normal(0, options.hidden**-0.5, options.hidden),
        "bias": np.zeros(()),
    }
