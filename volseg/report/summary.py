"""PatientResult -> the patient in a few numbers. Shared by the JSON, the pictures and the HTML page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from volseg.labels import LESION_KINDS, LesionKind
from volseg.types import Lesion, PatientOrigin, PatientResult

INTENDED_USE = "Research use only. Not a medical device: not for diagnosis or treatment decisions."
MOST_PICTURED = 20


@dataclass(frozen=True)
class PatientSummary:
    """`largest` is None without lesions; `by_kind` counts every kind, zeros included."""

    count: int
    total_volume_mm3: float
    by_kind: dict[LesionKind, int]
    largest: Lesion | None
    marrow_known: bool

    @property
    def total_volume_ml(self) -> float:
        return self.total_volume_mm3 / 1000.0

    @property
    def kinds_in_words(self) -> str:
        """`"2 lytic, 1 mixed"`; empty without lesions."""
        return ", ".join(f"{n} {kind}" for kind, n in self.by_kind.items() if n)

    @property
    def headline(self) -> str:
        """`"3 lesions, 12.4 mL"` or `"No lesion found"`."""
        if self.count == 0:
            return "No lesion found"
        return f"{self.count} lesion{'s' if self.count > 1 else ''}, {volume_in_words(self.total_volume_mm3)}"


def summarise(result: PatientResult) -> PatientSummary:
    """Count, total volume, kinds and the largest lesion by volume."""
    lesions = by_size(result)
    return PatientSummary(
        count=len(lesions),
        total_volume_mm3=float(sum(lesion.volume_mm3 for lesion in lesions)),
        by_kind={kind: sum(lesion.kind == kind for lesion in lesions) for kind in LESION_KINDS},
        largest=lesions[0] if lesions else None,
        marrow_known=math.isfinite(result.marrow_hu[0]),
    )


def by_size(result: PatientResult) -> list[Lesion]:
    """Lesions, largest volume first; equal volumes by id."""
    return sorted(result.lesions, key=lambda lesion: (-lesion.volume_mm3, lesion.id))


def pictured(result: PatientResult) -> list[Lesion]:
    """The lesions that get pictures: the 20 largest."""
    return by_size(result)[:MOST_PICTURED]


def origin_in_words(origin: PatientOrigin) -> str:
    """`"Rather lung: probability 0.73, threshold 0.41"`; without lesions, that it was not answered."""
    if origin.verdict == "no lesion":
        return f"Not answered: no lesion was found; {origin.p_lung:.2f} is the share of lung in training, nothing more"
    return f"Rather {origin.verdict}: probability {origin.p_lung:.2f}, threshold {origin.threshold:.2f}"


def lesions_have_origin(result: PatientResult) -> bool:
    """Whether any lesion says if its tumour started in the lung: only then do tables have a column for it."""
    return any(lesion.p_lung is not None for lesion in result.lesions)


def volume_in_words(volume_mm3: float) -> str:
    """Volume in mL as people say it: `"12.4 mL"`, `"0.35 mL"`."""
    ml = volume_mm3 / 1000.0
    return f"{ml:.2f} mL" if ml < 1 else f"{ml:.1f} mL"
