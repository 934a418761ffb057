"""A number that is fit to be printed: its value, its interval, and how many of what it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """`value` with its interval `low` to `high`; `n` counts `unit` (patients, lesions, volumes).

    nan is a number that is not defined (nothing to count), inf one that is unbounded (a missed surface).
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = "patients"
    method: str = ""
    level: float = 0.95

    def text(self, digits: int = 3) -> str:
        """`"0.842 (0.781 to 0.903)"`; the value alone where there is no interval; "n/a" where there is no value."""
        if math.isnan(self.value):
            return "n/a"
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class Difference:
    """First minus second on the same patients: `estimate` with its interval, `p_value` two-sided."""

    estimate: Estimate
    p_value: float


def undefined(n: int, unit: str = "patients", method: str = "") -> Estimate:
    """Nothing can be said, and `n` tells why."""
    return Estimate(math.nan, math.nan, math.nan, n, unit, method)


def wilson(successes: int, n: int, *, unit: str = "patients", level: float = 0.95) -> Estimate:
    """A proportion of independent units with Wilson's score interval (1927). nan, 0 to 1, for n = 0."""
    _check_counts(successes, n)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0, unit, "Wilson", level)
    z = float(stats.norm.ppf(0.5 + level / 2))
    p, shrink = successes / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the limits are exactly 0 and 1; rounding must not leave 1e-17 beside them.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Estimate(p, low, high, n, unit, "Wilson", level)


def clopper_pearson(successes: int, n: int, *, unit: str = "patients", level: float = 0.95) -> Estimate:
    """A proportion with the exact interval of Clopper and Pearson (1934): never too narrow, often too wide."""
    _check_counts(successes, n)
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0, unit, "Clopper-Pearson", level)
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return Estimate(successes / n, low, high, n, unit, "Clopper-Pearson", level)


def _check_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
