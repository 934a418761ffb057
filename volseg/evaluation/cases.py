"""Two masks of one volume -> everything later tables need, small enough to keep as JSON. Knows no file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from volseg.evaluation.detection import DetectionCase
from volseg.evaluation.matching import instance_ious, match_optimally
from volseg.evaluation.overlap import Overlap, overlap
from volseg.evaluation.surface import NSD_TOLERANCE_MM, surface_distances
from volseg.geometry import TOUCHING, voxel_volume_mm3
from volseg.measure import longest_axial_diameter_mm

Labels = Literal["auto", "mask", "instances"]


@dataclass(frozen=True)
class LesionRecord:
    """One lesion of either map. `score` is nan for true lesions, `kind` empty where it is not known."""

    id: int
    volume_mm3: float
    longest_axial_diameter_mm: float
    score: float = math.nan
    kind: str = ""


@dataclass(frozen=True)
class CaseResult:
    """One volume, compared. `ious[t][p]` between true lesion t and predicted lesion p.

    `scored` is False where the predictions came without scores (all 1): then a FROC curve has a single point.
    """

    case: str
    patient: str
    overlap: Overlap
    hd95_mm: float
    assd_mm: float
    nsd: float
    nsd_tolerance_mm: float
    true_lesions: tuple[LesionRecord, ...]
    predicted_lesions: tuple[LesionRecord, ...]
    ious: tuple[tuple[float, ...], ...]
    scored: bool = True

    @property
    def has_lesions(self) -> bool:
        return bool(self.true_lesions)

    @property
    def patient_score(self) -> float:
        """How sure the model is that there is any lesion: its highest lesion score, 0 without one."""
        return max((lesion.score for lesion in self.predicted_lesions), default=0.0)

    def iou_matrix(self) -> NDArray[np.float64]:
        return np.array(self.ious, dtype=np.float64).reshape(len(self.true_lesions), len(self.predicted_lesions))

    def detection(self) -> DetectionCase:
        """As `detection.froc` wants it."""
        scores = np.array([lesion.score for lesion in self.predicted_lesions], dtype=np.float64)
        sizes = np.array([lesion.longest_axial_diameter_mm for lesion in self.true_lesions], dtype=np.float64)
        return DetectionCase(self.iou_matrix(), scores, sizes, self.patient)

    def found(self, iou: float) -> NDArray[np.bool_]:
        """(T,): which true lesions are hit, with every prediction counted and the summed IoU largest."""
        found = np.zeros(len(self.true_lesions), dtype=bool)
        found[[row for row, _ in match_optimally(self.iou_matrix(), iou)]] = True
        return found

    def at_score(self, threshold: float) -> CaseResult:
        """Without the predicted lesions of a lower score. Only lesion figures follow: masks are not cut again."""
        kept = [n for n, lesion in enumerate(self.predicted_lesions) if lesion.score >= threshold]
        return replace(
            self,
            predicted_lesions=tuple(self.predicted_lesions[n] for n in kept),
            ious=tuple(tuple(row[n] for n in kept) for row in self.ious),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types only: nan is None, inf the word "inf"."""
        encoded: dict[str, Any] = _encode(asdict(self))
        return encoded

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CaseResult:
        """Inverse of `to_json`. Raises KeyError or TypeError for a document of another shape."""
        fields = dict(document)
        for name in ("hd95_mm", "assd_mm", "nsd"):
            fields[name] = _number(fields[name])
        for name in ("true_lesions", "predicted_lesions"):
            fields[name] = tuple(LesionRecord(**{**one, "score": _number(one["score"])}) for one in fields[name])
        fields["ious"] = tuple(tuple(row) for row in fields["ious"])
        fields["overlap"] = Overlap(**fields["overlap"])
        return cls(**fields)


def compare_case(
    predicted: NDArray,
    truth: NDArray,
    affine: ArrayLike,
    *,
    case: str,
    patient: str,
    scores: Mapping[int, float] | None = None,
    kinds: Mapping[int, str] | None = None,
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> CaseResult:
    """Compare two instance maps (X, Y, Z) on one grid; see `as_instances` for plain masks.

    `scores` by predicted id (None: every prediction scores 1), `kinds` by true id. Raises ValueError if the shapes
    differ or a predicted lesion has no score.
    """
    distances = surface_distances(predicted, truth, affine)
    _, predicted_ids, ious = instance_ious(predicted, truth)
    lacking = [] if scores is None else [int(i) for i in predicted_ids if int(i) not in scores]
    if lacking:
        raise ValueError(f"{case}: predicted lesion {lacking[0]} has no score ({len(lacking)} without)")
    return CaseResult(
        case=case,
        patient=patient,
        overlap=overlap(predicted, truth, affine),
        hd95_mm=distances.hd95_mm,
        assd_mm=distances.assd_mm,
        nsd=distances.nsd(tolerance_mm),
        nsd_tolerance_mm=tolerance_mm,
        true_lesions=_records(truth, affine, kinds=kinds or {}),
        predicted_lesions=_records(
            predicted, affine, scores=dict.fromkeys(predicted_ids, 1.0) if scores is None else scores
        ),
        ious=tuple(tuple(float(v) for v in row) for row in ious),
        scored=scores is not None,
    )


def as_instances(mask: NDArray, labels: Labels = "auto") -> NDArray:
    """A map of lesion numbers. "instances" keeps the values, "mask" numbers 26-connected components.

    "auto" takes a map with two or more different values above 0 as instances, one with a single value as a mask.
    """
    if labels == "instances":
        return mask
    inside = mask > 0
    if labels == "auto" and inside.any():
        values = mask[inside]
        if values.min() != values.max():
            return mask
    return np.asarray(ndimage.label(inside, structure=TOUCHING)[0])


def _records(
    instances: NDArray,
    affine: ArrayLike,
    *,
    scores: Mapping[int, float] | None = None,
    kinds: Mapping[int, str] | None = None,
) -> tuple[LesionRecord, ...]:
    """Lesions in id order, each measured in its own box."""
    ids, inverse = np.unique(instances[instances > 0], return_inverse=True)
    # find_objects allocates up to the largest number: number them densely first.
    dense = np.zeros(instances.shape, np.int32)
    dense[instances > 0] = inverse + 1
    records = []
    for n, (id_, box) in enumerate(zip(ids, ndimage.find_objects(dense), strict=True), start=1):
        mask = dense[box] == n
        records.append(
            LesionRecord(
                id=int(id_),
                volume_mm3=float(np.count_nonzero(mask) * voxel_volume_mm3(affine)),
                longest_axial_diameter_mm=longest_axial_diameter_mm(mask, affine),
                score=float(scores[int(id_)]) if scores else math.nan,
                kind=str((kinds or {}).get(int(id_), "")),
            )
        )
    return tuple(records)


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
