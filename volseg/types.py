"""The nouns that pass between rooms. Frozen; numpy only; no torch, no MONAI, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from volseg.geometry import Affine
from volseg.labels import LesionKind


@dataclass(frozen=True, eq=False)
class Volume:
    """One image. `voxels` (X, Y, Z) in the source's own order (HU for CT), `affine` voxel -> RAS+ mm."""

    voxels: NDArray
    affine: Affine
    channel: str = "CT"
    series_uid: str | None = None

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3:
            raise ValueError(f"a Volume holds three axes, not {self.voxels.ndim}")


@dataclass(frozen=True, eq=False)
class Study:
    """One examination of one patient. `name` is safe as a folder name and carries no patient data.

    `notes` says in words what the reader decided: which series was used and why the others were left, what was odd.
    `asked` is what the reader was told to use, if anything: {"series": UID}, or of MRI {channel: UID or path}.
    `fingerprint` is that of the files it was read from, as `volseg.io.fingerprint` takes it; "" where nobody did.
    """

    name: str
    volumes: Mapping[str, Volume]
    site: str = ""
    source: str = ""
    notes: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class Lesion:
    """One lesion, measured. `id` is its voxel value in the instance mask.

    `score` is the mean lesion probability inside the mask; `box` is the half-open voxel box (x0, y0, z0, x1, y1, z1)
    on the source grid; diameters are between voxel centers plus one voxel, in the axial plane. In MRI the HU are NaN
    and `kind` is "unknown". `p_lung` is the calibrated probability that its tumour started in the lung, None where that
    was not asked.
    """

    id: int
    score: float
    center_ras_mm: tuple[float, float, float]
    volume_mm3: float
    longest_axial_diameter_mm: float
    mean_hu: float
    min_hu: float
    max_hu: float
    kind: LesionKind
    box: tuple[int, int, int, int, int, int]
    p_lung: float | None = None


@dataclass(frozen=True)
class PatientOrigin:
    """Did the tumour start in the lung? `p_lung` is calibrated on the training patients, `threshold` frozen with it.

    `from_prior`: no lesion was found, so `p_lung` is the training patients' share of lung and says nothing about this
    patient. `clinical_p_lung` is the answer of the clinical-only baseline (kind, size, count, location), if it stands
    beside; `method` says how lesions became one number.
    """

    p_lung: float
    n_lesions: int
    from_prior: bool
    threshold: float
    method: str = ""
    clinical_p_lung: float | None = None

    @property
    def verdict(self) -> Literal["lung", "not lung", "no lesion"]:
        """What the frozen threshold says; nothing where there is only a prior."""
        if self.from_prior:
            return "no lesion"
        return "lung" if self.p_lung >= self.threshold else "not lung"


@dataclass(frozen=True)
class Provenance:
    """What made a result: enough to repeat it."""

    bundle: str
    bundle_version: str
    weights_sha256: str
    volseg_version: str
    torch_version: str
    monai_version: str
    device: str
    precision: str
    # Entries of the bundle's config that were set to something else, by id: {"adapt": True}, {"inferer#overlap": 0.25}.
    settings: Mapping[str, Any] = field(default_factory=dict)
    # Other bundles that had a say (--ensemble), by name with the sha256 of their weights.
    other_weights: Mapping[str, str] = field(default_factory=dict)
    study_fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class PatientResult:
    """Everything known about one study, sealed. Whatever comes after this only reads.

    `instances` (X, Y, Z) uint16 and `probability` (X, Y, Z) float32 lie on the source grid: same shape, same affine.
    `marrow_hu` is (median, robust standard deviation) of the patient's own normal marrow, NaN where none was found;
    `bone_volume_mm3` is NaN where bone was not looked for, as in MRI.
    `origin` is None where nobody asked where the tumour started.
    """

    study: Study
    instances: NDArray[np.uint16]
    probability: NDArray[np.float32]
    lesions: tuple[Lesion, ...]
    provenance: Provenance
    marrow_hu: tuple[float, float] = (float("nan"), float("nan"))
    bone_volume_mm3: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    origin: PatientOrigin | None = None

    @property
    def in_hounsfield(self) -> bool:
        """Whether voxel values mean something: HU in CT, arbitrary signals elsewhere."""
        return self.image.channel == "CT"

    @property
    def image(self) -> Volume:
        """The volume the masks lie on (the study's first)."""
        return next(iter(self.study.volumes.values()))
