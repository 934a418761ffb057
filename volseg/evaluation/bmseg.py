"""Which slices train, choose the epoch and are tested: three named BM-Seg protocols. Names enter, splits leave.

`bmseg-patient` is the headline. The other two repeat what was published, leaks included, and say LEAKY wherever they
are printed: neighbouring slices of one patient look alike, so a network is tested on what it has nearly seen.

Sources: the public code of EH-AttUNet++ (Afnouch et al. 2023, doi 10.1016/j.eswa.2023.120376), read for its split
only, and MFP-DeepLabv3+ (Gu et al. 2024, doi 10.18280/ts.410218).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UsageError

FOLDS = 5
EH_SEED = 42  # as in the public code
MFP_SEED = 0  # unpublished; ours
MFP_HELD_OUT = 0.1

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Row numbers, each tuple in order. The best epoch is chosen on `validation`, figures come from `test`."""

    number: int
    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class Protocol:
    """`how` slices are divided, and how that `leaks` ("" if it does not)."""

    name: str
    how: str
    leaks: str
    divide: Callable[[Sequence[str], Sequence[str], int], tuple[Split, ...]]

    @property
    def leaky(self) -> bool:
        return bool(self.leaks)

    @property
    def label(self) -> str:
        """The only name under which figures may be printed."""
        return f"{self.name} (LEAKY, paper-comparable)" if self.leaky else self.name

    def splits(self, names: Sequence[str], patients: Sequence[str], *, folds: int = FOLDS) -> tuple[Split, ...]:
        """Divide slices; `patients` has one entry per slice, "" where unknown. The same for every order of the slices.

        Raises UsageError: patients unknown or too few for `bmseg-patient`, too few slices, names that repeat.
        """
        if len(names) != len(patients):
            raise ValueError(f"{len(patients)} patients for {len(names)} slices")
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UsageError("slice-twice", f"{self.name}: slice {twice[0]!r} is listed {names.count(twice[0])} times")
        if folds < 3 or len(names) < 2 * folds:
            told = f"{self.name}: {folds} folds of {len(names)} slices; at least 3 folds of 2 slices are needed"
            raise UsageError("too-few-slices", told)
        return self.divide(names, patients, folds)

    def describe(self) -> str:
        """One line for a log, a table's note, a model card."""
        return f"{self.label}: {self.how}" + (f" How it leaks: {self.leaks}" if self.leaky else "")


@dataclass(frozen=True)
class Leak:
    """What a split lets through. `unknown` counts test slices nobody owns."""

    patients: tuple[str, ...]
    test_slices: int
    of_test: int
    unknown: int
    chosen_on_test: bool

    def text(self) -> str:
        """What was found in this very split, in words."""
        if self.unknown == self.of_test:
            shared = "whose slices these are is unknown"
        else:
            shared = (
                f"{self.test_slices} of {self.of_test} test slices belong to patients that were trained on "
                f"({len(self.patients)} patients)"
            )
        return shared + ("; the best epoch is chosen on test slices" if self.chosen_on_test else "")


def find_leak(split: Split, patients: Sequence[str]) -> Leak:
    """Count test slices whose patient is also in training or validation; `patients` has one entry per slice."""
    chosen_on_test = bool(set(split.validation) & set(split.test))
    seen = {patients[row] for row in (*split.train, *(() if chosen_on_test else split.validation))} - {""}
    hit = [row for row in split.test if patients[row] in seen]
    return Leak(
        patients=tuple(sorted({patients[row] for row in hit})),
        test_slices=len(hit),
        of_test=len(split.test),
        unknown=sum(not patients[row] for row in split.test),
        chosen_on_test=chosen_on_test,
    )


def protocol(name: str) -> Protocol:
    """One of PROTOCOLS by name. Raises UsageError for any other."""
    if name not in PROTOCOLS:
        raise UsageError("protocol-unknown", f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _by_patient(names: Sequence[str], patients: Sequence[str], folds: int) -> tuple[Split, ...]:
    """Grouped folds: the patient with most slices first, each to the fold with fewest; ties by name."""
    unknown = sum(not patient for patient in patients)
    if unknown:
        raise UsageError(
            "patients-unknown",
            f"bmseg-patient: {unknown} of {len(names)} slices have no patient; add slices.csv (slice, patient) or a "
            "pattern; without it only a LEAKY protocol (bmseg-eh, bmseg-mfp) can run",
        )
    counts = Counter(patients)
    if len(counts) < folds:
        raise UsageError("too-few-patients", f"bmseg-patient: {folds} folds need as many patients, {len(counts)} here")
    load = [0] * folds
    fold_of: dict[str, int] = {}
    for patient, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        fold_of[patient] = load.index(min(load))
        load[fold_of[patient]] += count
    of_row = np.array([fold_of[patient] for patient in patients])
    # The next fold's patients choose the epoch, so that the tested ones choose nothing.
    return tuple(
        Split(
            number=k,
            train=_rows((of_row != k) & (of_row != (k + 1) % folds)),
            validation=_rows(of_row == (k + 1) % folds),
            test=_rows(of_row == k),
        )
        for k in range(folds)
    )


def _as_eh(names: Sequence[str], patients: Sequence[str], folds: int) -> tuple[Split, ...]:
    """scikit-learn's KFold(shuffle=True, random_state=42) over the listed file names, fold for fold."""
    in_fold = _shuffled_folds(len(names), folds, EH_SEED)[_rank(names)]
    return tuple(Split(k, _rows(in_fold != k), _rows(in_fold == k), _rows(in_fold == k)) for k in range(folds))


def _as_mfp(names: Sequence[str], patients: Sequence[str], folds: int) -> tuple[Split, ...]:
    """A tenth of the images held out at random, folds in the others."""
    n, rank = len(names), _rank(names)
    rng = np.random.default_rng(MFP_SEED)
    order = rng.permutation(n)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    held = max(1, round(MFP_HELD_OUT * n))
    fold = np.where(place < held, -1, (place - held) % folds)[rank]
    return tuple(Split(k, _rows((fold >= 0) & (fold != k)), _rows(fold == k), _rows(fold == -1)) for k in range(folds))


def _shuffled_folds(n: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(n,): the fold of every row; the first n % folds folds hold one more. Follows scikit-learn's KFold."""
    order = np.arange(n)
    # The legacy generator on purpose: the published folds were drawn with it, and it is frozen.
    np.random.RandomState(seed).shuffle(order)
    fold = np.empty(n, np.int64)
    for k, members in enumerate(np.array_split(order, folds)):
        fold[members] = k
    return fold


def _rank(names: Sequence[str]) -> NDArray[np.int64]:
    """(n,): where each name stands in a Windows listing, whose order the public split counts in."""
    # With the suffix: "1-2.jpg" stands before "1.jpg".
    order = sorted(range(len(names)), key=lambda row: (f"{names[row]}.jpg".upper(), names[row]))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return rank


def _rows(chosen: NDArray[np.bool_]) -> Rows:
    return tuple(int(row) for row in np.flatnonzero(chosen))


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "bmseg-patient",
            "folds over patients; the next fold's patients choose the epoch; every patient is tested once.",
            "",
            _by_patient,
        ),
        Protocol(
            "bmseg-eh",
            "the public split of EH-AttUNet++: shuffled folds over images (seed 42, names in Windows order). "
            "Only the split: the public code also shrinks masks to 224 x 224 and takes all above 0 as inside, "
            "ours are cut at 127.",
            "neighbouring slices of one patient stand on both sides, and the best epoch is chosen on the test fold.",
            _as_eh,
        ),
        Protocol(
            "bmseg-mfp",
            'our reading of MFP-DeepLabv3+\'s "9:1 random" and "5-fold": a tenth of the images held out for the test, '
            "folds in the others choose the epoch (its seed and file lists are unpublished).",
            "neighbouring slices of one patient stand on both sides.",
            _as_mfp,
        ),
    )
}
