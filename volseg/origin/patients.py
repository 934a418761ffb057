"""Lesion logits -> one logit per patient. Mean (default), gated attention, or noisy-or as a named baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from volseg.errors import InputError
from volseg.origin.cohort import Cohort
from volseg.origin.head import (
    HeadOptions,
    LesionHead,
    Parameters,
    fit_head,
    lesion_logits,
    minimise,
    penalty,
    tensors,
)

Pooling = Literal["mean", "attention", "noisy_or"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ATTENTION_NAMES = ("attention_value", "attention_gate", "attention_score")


@dataclass(frozen=True)
class ModelOptions:
    """`attention_size` and `attention_l2` are the gated attention's width and the precision of its prior.

    The prior's middle is no attention, that is the mean: with the few patients there are it must be strong.
    """

    head: HeadOptions = field(default_factory=HeadOptions)
    pooling: Pooling = "mean"
    attention_size: int = 4
    attention_l2: float = 10.0


@dataclass(frozen=True, eq=False)
class OriginModel:
    """A lesion head and how its logits become the patient's. `attention` is empty unless that is the pooling."""

    head: LesionHead
    pooling: Pooling = "mean"
    attention: Parameters = field(default_factory=dict)

    def patient_logits(self, cohort: Cohort) -> NDArray[np.float64]:
        """(P,) log-odds of lung, uncalibrated; NaN for a patient without lesions."""
        z, owner = torch.from_numpy(self.head.standardise(cohort.table)), torch.from_numpy(cohort.patient_of)
        logits = lesion_logits(tensors(self.head.parameters), z)
        patients = len(cohort.patients)
        if self.pooling == "noisy_or":
            pooled = noisy_or(logits, owner, patients)
        else:
            weights = equal_weights(owner, patients)
            if self.pooling == "attention":
                weights = attention_weights(tensors(self.attention), z, owner, patients)
            pooled = _summed(weights * logits, owner, patients)
        return np.where(cohort.counts > 0, pooled.numpy(), np.nan)

    def to_json(self) -> dict[str, Any]:
        attention = {name: value.tolist() for name, value in self.attention.items()}
        return {"head": self.head.to_json(), "pooling": self.pooling, "attention": attention}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> OriginModel:
        if document["pooling"] not in POOLINGS:
            raise InputError(
                "origin-model", f"pooling {document['pooling']!r} is not known; there are {', '.join(POOLINGS)}"
            )
        attention = {k: np.asarray(v, dtype=np.float64) for k, v in document["attention"].items()}
        return cls(LesionHead.from_json(document["head"]), document["pooling"], attention)


def fit_model(cohort: Cohort, options: ModelOptions = ModelOptions()) -> OriginModel:
    """Fit the lesion head; with attention, then head and attention together on the patients' answers.

    Patients without lesions teach nothing here. Errors as `fit_head`.
    """
    head = fit_head(cohort, options.head)
    if options.pooling != "attention":
        return OriginModel(head, options.pooling)
    some = cohort.subset(cohort.counts > 0)
    z, owner = torch.from_numpy(head.standardise(some.table)), torch.from_numpy(some.patient_of)
    truth, patients = torch.from_numpy(some.lung.astype(np.float64)), len(some.patients)
    rng = np.random.default_rng(options.head.seed)
    features, width = len(head.names), options.attention_size
    attention = {
        "attention_value": rng.normal(0, features**-0.5, (features, width)),
        "attention_gate": rng.normal(0, features**-0.5, (features, width)),
        "attention_score": rng.normal(0, 0.1, width),
    }

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        weights = attention_weights(parameters, z, owner, patients)
        pooled = _summed(weights * lesion_logits(parameters, z), owner, patients)
        judged = {k: v for k, v in parameters.items() if k in head.parameters}
        attending = {k: v for k, v in parameters.items() if k in ATTENTION_NAMES}
        prior = penalty(judged, options.head.precision) + penalty(attending, options.attention_l2)
        return binary_cross_entropy_with_logits(pooled, truth, reduction="sum") + prior

    found = minimise(loss, {**head.parameters, **attention})
    return OriginModel(
        LesionHead(head.names, head.mean, head.scale, {k: v for k, v in found.items() if k in head.parameters}),
        "attention",
        {k: found[k] for k in ATTENTION_NAMES},
    )


def equal_weights(owner: Tensor, patients: int) -> Tensor:
    """(N,) 1 / (lesions of the patient): ten lesions that agree say what one says."""
    return 1.0 / torch.bincount(owner, minlength=patients)[owner].double()


def attention_weights(parameters: Mapping[str, Tensor], z: Tensor, owner: Tensor, patients: int) -> Tensor:
    """Gated attention (Ilse, Tomczak and Welling, ICML 2018, eq. 9): (N, F) -> (N,) weights, 1 in sum per patient.

    a_k is proportional to exp(w.(tanh(V z_k) * sigmoid(U z_k))). They weigh lesion logits; with a linear head that
    equals their classifier on the weighted mean of the lesions' features.
    """
    gated = torch.tanh(z @ parameters["attention_value"]) * torch.sigmoid(z @ parameters["attention_gate"])
    score = gated @ parameters["attention_score"]
    highest = torch.full((patients,), -torch.inf, dtype=score.dtype).scatter_reduce(0, owner, score.detach(), "amax")
    raised = torch.exp(score - highest[owner])
    return raised / _summed(raised, owner, patients)[owner]


def noisy_or(logits: Tensor, owner: Tensor, patients: int) -> Tensor:
    """Logit of 1 - product of (1 - p_k): lung if any lesion is. (N,) -> (P,). A baseline, not a recommendation.

    It inflates with lesion count: ten lesions of p = .2 give .89 though every one speaks against lung.
    """
    surprise = _summed(softplus(logits), owner, patients)  # -log of the product
    return surprise + torch.log(-torch.expm1(-surprise))


def _summed(values: Tensor, owner: Tensor, patients: int) -> Tensor:
    return torch.zeros(patients, dtype=values.dtype).index_add(0, owner, values)
