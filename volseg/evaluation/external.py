"""Fit at one site, freeze, test once at another. Enters: answers to a yes-or-no question. Leaves: what they are worth.

The rule (weights and threshold) is chosen on the training site alone and carries a hash; the test applies it as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volseg.evaluation.bootstrap import RESAMPLES, paired_bootstrap
from volseg.evaluation.calibration import Calibration, calibration
from volseg.evaluation.classification import (
    Decisions,
    McNemar,
    auc,
    clustered_metrics,
    compare_aucs,
    decide,
    mcnemar,
    youden_threshold,
)
from volseg.evaluation.estimate import Difference, Estimate

Level = Literal["patient", "lesion"]
UNITS = {"patient": "patients", "lesion": "lesions"}


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per patient or per lesion: whose it is, the truth (0 or 1), the score (nan: no answer), the site.

    `groups` holds further columns (scanner, lesion kind, size) for subgroups. `probabilities` is False where scores
    only rank, whatever their range (mere masks score 1): they have no calibration.
    """

    patients: NDArray
    labels: NDArray
    scores: NDArray[np.float64]
    sites: NDArray
    level: Level = "patient"
    groups: Mapping[str, NDArray] = field(default_factory=dict)
    probabilities: bool = True

    def __post_init__(self) -> None:
        n = len(self.patients)
        columns = {"labels": self.labels, "scores": self.scores, "sites": self.sites, **self.groups}
        for name, column in columns.items():
            if len(column) != n:
                raise ValueError(f"{len(column)} {name} for {n} rows")
        if self.level == "patient" and np.unique(self.patients).size != n:
            twice = sorted({str(p) for p in self.patients if np.count_nonzero(self.patients == p) > 1})
            raise ValueError(f"patient {twice[0]} has more than one row at patient level")

    def where(self, rows: NDArray[np.bool_]) -> Predictions:
        """Some of the rows."""
        return replace(
            self,
            patients=self.patients[rows],
            labels=self.labels[rows],
            scores=self.scores[rows],
            sites=self.sites[rows],
            groups={name: column[rows] for name, column in self.groups.items()},
        )

    def joined(self, other: Predictions) -> Predictions:
        """The rows of both, with the groups that both have; probabilities if those of both are."""
        shared = [name for name in self.groups if name in other.groups]
        return Predictions(
            patients=np.concatenate([self.patients, other.patients]),
            labels=np.concatenate([self.labels, other.labels]),
            scores=np.concatenate([self.scores, other.scores]),
            sites=np.concatenate([self.sites, other.sites]),
            level=self.level,
            groups={name: np.concatenate([self.groups[name], other.groups[name]]) for name in shared},
            probabilities=self.probabilities and other.probabilities,
        )

    def at_site(self, site: str) -> Predictions:
        """The rows of one site. ValueError, naming the sites there are, if it has none."""
        rows = self.sites == site
        if not rows.any():
            raise ValueError(f"no patient of site {site}; there are: {', '.join(sorted(set(map(str, self.sites))))}")
        return self.where(rows)


@dataclass(frozen=True)
class FrozenRule:
    """What may not change any more: which weights, which threshold, and how it was chosen."""

    threshold: float
    chosen_by: str
    site: str
    level: Level
    n_rows: int
    n_positive: int
    weights_sha256: str = ""

    @property
    def sha256(self) -> str:
        """Hash of every field: two rules with the same hash decide alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def freeze(training: Predictions, *, site: str, weights_sha256: str = "") -> FrozenRule:
    """Choose the threshold by Youden's index on the training site; rows without a score have no say.

    Give out-of-fold scores: those of a model on its own training patients put the threshold too high.
    Raises ValueError if the site lacks one of the classes.
    """
    at = training.at_site(site)
    scored = ~np.isnan(at.scores)
    return FrozenRule(
        threshold=youden_threshold(at.labels[scored], at.scores[scored]),
        chosen_by="largest sensitivity + specificity at the training site (Youden)",
        site=site,
        level=training.level,
        n_rows=int(scored.sum()),
        n_positive=int(at.labels[scored].sum()),
        weights_sha256=weights_sha256,
    )


@dataclass(frozen=True)
class Performance:
    """AUC, and decisions at one threshold, for one set of rows.

    `calibration` is None for scores that are no probabilities: called so, or outside 0..1.
    """

    level: Level
    n_rows: int
    n_patients: int
    n_positive: int
    threshold: float
    decisions: Decisions
    metrics: Mapping[str, Estimate]
    calibration: Calibration | None

    @property
    def n_undecided(self) -> int:
        return self.decisions.undecided_positive + self.decisions.undecided_negative


def performance(
    predictions: Predictions, threshold: float, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Performance:
    """auc, sensitivity, specificity, accuracy, ppv, npv at `score >= threshold`.

    Patients: DeLong, Wilson, and the model's variance in the calibration. Lesions: Obuchowski, bootstrap over patients,
    and the sandwich variance over patients. Rows without a score stay in the
    denominators of sensitivity, specificity and accuracy as wrong; AUC and calibration cannot use them.
    """
    unit = UNITS[predictions.level]
    y, s, who = predictions.labels, predictions.scores, predictions.patients
    scored = ~np.isnan(s)
    dependent = None if predictions.level == "patient" else who[scored]
    area = auc(y[scored], s[scored], patients=dependent, unit=unit)
    if dependent is None:
        decided = decide(y, s, threshold).metrics(unit=unit)
    else:
        decided = clustered_metrics(y, s, threshold, who, rng=rng, resamples=resamples, unit=unit)
    probable = predictions.probabilities and scored.any() and bool(((s[scored] >= 0) & (s[scored] <= 1)).all())
    return Performance(
        level=predictions.level,
        n_rows=len(y),
        n_patients=int(np.unique(who).size),
        n_positive=int(np.sum(y)),
        threshold=threshold,
        decisions=decide(y, s, threshold),
        metrics={"auc": area, **decided},
        calibration=calibration(y[scored], s[scored], patients=dependent, unit=unit) if probable else None,
    )


@dataclass(frozen=True)
class Subgroup:
    """One value of one column, and the performance there."""

    variable: str
    value: str
    performance: Performance


def subgroups(
    predictions: Predictions,
    threshold: float,
    variables: Iterable[str] | None = None,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> list[Subgroup]:
    """Performance for every value of the columns (all of `groups`, and the site where there are several)."""
    columns = dict(predictions.groups)
    if np.unique(predictions.sites).size > 1:
        columns = {"site": predictions.sites, **columns}
    found = []
    for variable in columns if variables is None else variables:
        values = np.array([str(v) for v in columns[variable]], dtype=object)
        for value in sorted(set(values)):
            part = performance(predictions.where(values == value), threshold, rng=rng, resamples=resamples)
            found.append(Subgroup(variable, value, part))
    return found


@dataclass(frozen=True)
class ExternalValidation:
    """The frozen rule, what it reached where it was fitted (optimistic), and what it reached where it was tested."""

    rule: FrozenRule
    test_site: str
    training: Performance
    test: Performance
    subgroups: tuple[Subgroup, ...]


def validate(
    predictions: Predictions,
    rule: FrozenRule,
    *,
    test_site: str,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> ExternalValidation:
    """Apply a frozen rule at another site.

    Raises ValueError if both sites are one, if a patient was seen at both, or if the rule is for another level.
    """
    if rule.level != predictions.level:
        raise ValueError(f"the rule was frozen at {rule.level} level, the predictions are at {predictions.level} level")
    if rule.site == test_site:
        raise ValueError(f"site {test_site} is the training site: that is not an external validation")
    training, test = predictions.at_site(rule.site), predictions.at_site(test_site)
    both = sorted(set(map(str, training.patients)) & set(map(str, test.patients)))
    if both:
        raise ValueError(
            f"{len(both)} patients are at both sites, among them {both[0]}: the test would not be external"
        )
    return ExternalValidation(
        rule=rule,
        test_site=test_site,
        training=performance(training, rule.threshold, rng=rng, resamples=resamples),
        test=performance(test, rule.threshold, rng=rng, resamples=resamples),
        subgroups=tuple(subgroups(test, rule.threshold, rng=rng, resamples=resamples)),
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows: AUC (paired DeLong), accuracy (paired bootstrap), who was right alone (McNemar).

    `mcnemar` is None at lesion level, where rows of one patient depend on each other.
    """

    auc: Difference
    accuracy: Difference
    mcnemar: McNemar | None


def compare(
    first: Predictions,
    second: Predictions,
    thresholds: tuple[float, float],
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Paired comparison, each model at its own frozen threshold. ValueError if the rows are not the same.

    Rows that either model left without a score are out of the AUC and wrong in the accuracy.
    """
    same = first.level == second.level and np.array_equal(first.patients, second.patients)
    if not (same and np.array_equal(first.labels, second.labels)):
        raise ValueError("the two models were not scored on the same rows: give both in the same order")
    y = first.labels.astype(bool)
    right = [(~np.isnan(p.scores)) & ((p.scores >= t) == y) for p, t in zip((first, second), thresholds, strict=True)]
    scored = ~np.isnan(first.scores) & ~np.isnan(second.scores)
    who = None if first.level == "patient" else first.patients[scored]
    return Comparison(
        auc=compare_aucs(y[scored], first.scores[scored], second.scores[scored], patients=who, unit=UNITS[first.level]),
        accuracy=paired_bootstrap(
            lambda rows: right[0][rows].mean(),
            lambda rows: right[1][rows].mean(),
            first.patients,
            rng=rng,
            resamples=resamples,
        ),
        mcnemar=mcnemar(*right) if first.level == "patient" else None,
    )
