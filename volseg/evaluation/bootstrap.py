"""Intervals by resampling patients. Lesions follow their patient; chance comes in by the door.

A statistic is a function of row numbers: it is called with the rows of one resample (repeats included) and returns a
number or a vector. So one loop serves means over patients, pooled lesion sensitivities, curves and differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from volseg.evaluation.estimate import Difference, Estimate, wilson

Statistic = Callable[[NDArray[np.int64]], ArrayLike]
Method = Literal["percentile", "bca"]
RESAMPLES = 2000
MOST_UNDEFINED = 0.05  # of the resamples; beyond that an interval would describe the defined ones only


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows grouped by patient, patients grouped by stratum (one stratum unless told)."""

    rows: tuple[NDArray[np.int64], ...]
    strata: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, patients: Sequence[object] | NDArray, strata: Sequence[object] | NDArray | None = None) -> Clusters:
        """`patients` and `strata` hold one entry per row. Raises ValueError if a patient lies in two strata."""
        names, inverse = np.unique(np.asarray(patients), return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        rows = tuple(np.split(order, np.cumsum(np.bincount(inverse, minlength=names.size))[:-1])) if names.size else ()
        if strata is None:
            return cls(rows, (np.arange(names.size),))
        labels = np.asarray(strata)
        if labels.shape != inverse.shape:
            raise ValueError(f"{labels.size} strata for {inverse.size} rows")
        for name, members in zip(names, rows, strict=True):
            if np.unique(labels[members]).size > 1:
                raise ValueError(f"patient {name} lies in two strata: {sorted(set(labels[members].tolist()))}")
        of_patient = labels[[members[0] for members in rows]] if rows else labels
        return cls(rows, tuple(np.flatnonzero(of_patient == s) for s in np.unique(of_patient)))

    @property
    def n(self) -> int:
        return len(self.rows)

    def resamples(self, rng: np.random.Generator, count: int) -> Iterator[NDArray[np.int64]]:
        """Row numbers of `count` resamples: as many patients as there are, drawn with replacement in each stratum."""
        single = all(members.size == 1 for members in self.rows)
        flat = np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64)
        for _ in range(count):
            drawn = np.concatenate([stratum[rng.integers(stratum.size, size=stratum.size)] for stratum in self.strata])
            yield flat[drawn] if single else np.concatenate([self.rows[patient] for patient in drawn])

    def without_each(self) -> Iterator[NDArray[np.int64]]:
        """Row numbers with one patient left out, for every patient."""
        for left_out in range(self.n):
            yield np.concatenate([members for n, members in enumerate(self.rows) if n != left_out])


def replicates(
    statistic: Statistic, clusters: Clusters, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """The statistic of every resample: (resamples,) or (resamples, k)."""
    return np.array([statistic(rows) for rows in clusters.resamples(rng, resamples)], dtype=np.float64)


def bootstrap(
    statistic: Statistic,
    patients: Sequence[object] | NDArray,
    *,
    rng: np.random.Generator,
    strata: Sequence[object] | NDArray | None = None,
    resamples: int = RESAMPLES,
    method: Method = "percentile",
    level: float = 0.95,
    unit: str = "patients",
) -> Estimate:
    """A statistic of all rows with its interval over patients.

    Args:
        statistic: row numbers -> number.
        patients: who each row belongs to; `n` of the estimate counts them.
        strata: resampled apart (truth with and without lesion, origin): one entry per row, constant in a patient.
        method: percentile, or BCa (bias-corrected and accelerated, Efron 1987), better for skewed statistics.

    The interval is nan with fewer than two patients, where all resamples that define the statistic give one number (no
    spread was seen, which is not certainty), or where more than 5 % of the resamples leave it undefined. Infinite
    values are ranked, never averaged.
    """
    clusters = Clusters.of(patients, strata)
    everything = np.concatenate(clusters.rows) if clusters.rows else np.zeros(0, np.int64)
    value = float(np.asarray(statistic(np.sort(everything)))) if everything.size else math.nan
    name = f"{'BCa' if method == 'bca' else 'percentile'} bootstrap over {unit}, {resamples} resamples"
    if clusters.n < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, clusters.n, unit, name, level)
    drawn = replicates(statistic, clusters, rng=rng, resamples=resamples)
    if _all_alike(drawn):
        return Estimate(value, math.nan, math.nan, clusters.n, unit, f"{name}, all alike", level)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if method == "bca":
        tails = _bca_tails(value, drawn, statistic, clusters, tails)
    low, high = quantiles(drawn, tails)
    return Estimate(value, low, high, clusters.n, unit, name, level)


def band(
    statistic: Statistic,
    clusters: Clusters,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise percentile limits (k,), (k,) of a statistic that returns a vector: a curve on fixed abscissae."""
    drawn = replicates(statistic, clusters, rng=rng, resamples=resamples)
    limits = [quantiles(column, ((1 - level) / 2, (1 + level) / 2)) for column in drawn.T]
    return np.array([low for low, _ in limits]), np.array([high for _, high in limits])


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    patients: Sequence[object] | NDArray,
    *,
    rng: np.random.Generator,
    strata: Sequence[object] | NDArray | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> Difference:
    """Compare two models (or two readers) on the same patients: every resample draws both together.

    The p value is twice the smaller share of resampled differences on one side of 0 (ties on both), never below
    2 / (resamples + 1), for a bootstrap cannot see further, nor below 2 / 2**n of n patients: were the models equal,
    all n would lean to one side so often by chance (the sign-flip test, Fisher 1935). The interval is nan as in
    `bootstrap`; where no resample differs at all, p is 1.
    """

    def difference(rows: NDArray[np.int64]) -> float:
        return float(np.asarray(first(rows))) - float(np.asarray(second(rows)))

    clusters = Clusters.of(patients, strata)
    everything = np.sort(np.concatenate(clusters.rows)) if clusters.rows else np.zeros(0, np.int64)
    value = difference(everything) if everything.size else math.nan
    name = f"paired bootstrap over patients, {resamples} resamples"
    if clusters.n < 2 or math.isnan(value):
        return Difference(Estimate(value, math.nan, math.nan, clusters.n, "patients", name, level), math.nan)
    drawn = replicates(difference, clusters, rng=rng, resamples=resamples)
    low, high = quantiles(drawn, ((1 - level) / 2, (1 + level) / 2))
    defined = drawn[~np.isnan(drawn)]
    side = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    p_value = math.nan
    if not math.isnan(low):
        p_value = min(1.0, max(2 * (side + 1) / (defined.size + 1), 2 * 0.5**clusters.n))
    if _all_alike(drawn):
        low, high, name = math.nan, math.nan, f"{name}, all alike"
    return Difference(Estimate(value, low, high, clusters.n, "patients", name, level), p_value)


def clustered_proportion(
    successes: ArrayLike,
    patients: Sequence[object] | NDArray,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    unit: str = "lesions",
) -> Estimate:
    """Share of units (lesions) that succeed, with an interval over patients; `n` counts the units.

    Where all or none succeed every resample agrees and a bootstrap would claim certainty: there Wilson's interval on
    the number of patients stands in, as if the lesions of one patient were one (the cautious end).
    """
    hit = np.asarray(successes, dtype=bool)
    if hit.size == 0:
        return wilson(0, 0, unit=unit, level=level)
    count = np.unique(np.asarray(patients)).size
    if hit.all() or not hit.any():
        bound = wilson(count if hit.all() else 0, count, level=level)
        method = f"Wilson over {count} patients (all {unit} alike)"
        return Estimate(bound.value, bound.low, bound.high, hit.size, unit, method, level)
    over = bootstrap(lambda rows: hit[rows].mean(), patients, rng=rng, resamples=resamples, level=level)
    return Estimate(over.value, over.low, over.high, hit.size, unit, over.method, level)


def quantiles(drawn: NDArray[np.float64], tails: tuple[float, float]) -> tuple[float, float]:
    """Limits taken from the replicates themselves, outwards, so that inf stays inf. nan if too many are nan."""
    defined = drawn[~np.isnan(drawn)]
    if defined.size < (1 - MOST_UNDEFINED) * drawn.size or defined.size == 0 or any(map(math.isnan, tails)):
        return math.nan, math.nan
    low = float(np.quantile(defined, tails[0], method="lower"))
    return low, float(np.quantile(defined, tails[1], method="higher"))


def _all_alike(drawn: NDArray[np.float64]) -> bool:
    """Whether all defined replicates are one number, but for the rounding of sums of different length."""
    defined = drawn[~np.isnan(drawn)]
    return defined.size > 0 and np.allclose(defined, defined[0], rtol=1e-9, atol=1e-12)


def _bca_tails(
    value: float, drawn: NDArray, statistic: Statistic, clusters: Clusters, tails: tuple[float, float]
) -> tuple[float, float]:
    """Efron's adjusted tails: bias from the share of replicates below the value, acceleration from the jackknife.

    In strata the jackknife values are centered stratum by stratum (Davison and Hinkley 1997, section 5.3).
    """
    defined = drawn[~np.isnan(drawn)]
    below = (np.count_nonzero(defined < value) + 0.5 * np.count_nonzero(defined == value)) / max(defined.size, 1)
    if not 0 < below < 1:
        return tails
    left_out = np.array([statistic(rows) for rows in clusters.without_each()], dtype=np.float64)
    influence = np.zeros_like(left_out)
    for stratum in clusters.strata:
        influence[stratum] = (left_out[stratum].mean() - left_out[stratum]) * (stratum.size - 1) / stratum.size
    spread = float(np.sum(influence**2))
    acceleration = float(np.sum(influence**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    bias = float(stats.norm.ppf(below))
    shifted = bias + stats.norm.ppf(tails)
    low, high = stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
    return float(low), float(high)
