"""The heads that ship until there are patients: fitted on synthetic CT, read from and written to `metadata.json`.

They show that the machinery works from picture to probability. What they answer about a real patient is what a painter
of lesions believed about lung cancer: a bundle that ships them must say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from volseg.errors import InputError
from volseg.measure import measure_lesions, normal_marrow_hu
from volseg.origin.cohort import Cohort
from volseg.origin.features import CLINICAL_NAMES, LESION_NAMES, LesionTable, clinical_features, lesion_features
from volseg.origin.frozen import FrozenOrigin, fit_origin
from volseg.origin.head import HeadOptions
from volseg.origin.patients import ModelOptions
from volseg.origin.position import POSITION_NAMES
from volseg.origin.synthetic_ct import SyntheticPatient

IMAGE_KEY, CLINICAL_KEY = "origin", "origin_clinical"
# The phantoms are cut-outs of a trunk: where a lesion lies in them says nothing of where it would lie in a patient.
IMAGE_COLUMNS = tuple(name for name in LESION_NAMES if name not in POSITION_NAMES)
CLINICAL_COLUMNS = tuple(name for name in CLINICAL_NAMES if name not in POSITION_NAMES)
FEW_PATIENTS = ModelOptions(HeadOptions(l2=10.0))


def synthetic_cohorts(patients: Iterable[SyntheticPatient]) -> tuple[Cohort, Cohort]:
    """(image, clinical) features of synthetic patients from their exact masks, columns as shipped."""
    images: dict[str, LesionTable] = {}
    clinical: dict[str, LesionTable] = {}
    lung: dict[str, bool] = {}
    for patient in patients:
        hu, instances, affine = patient.volume.voxels, patient.instances, patient.volume.affine
        marrow_hu = normal_marrow_hu(hu, patient.marrow, instances, affine)
        table = lesion_features(hu, instances, affine, marrow_hu=marrow_hu)
        certain = (instances > 0).astype(np.float32)
        lesions = measure_lesions(instances, hu, affine, probability=certain, marrow_hu=marrow_hu)
        images[patient.name] = table.select(IMAGE_COLUMNS)
        clinical[patient.name] = clinical_features(lesions, table).select(CLINICAL_COLUMNS)
        lung[patient.name] = patient.lung
    return Cohort.gather(images, lung), Cohort.gather(clinical, lung)


def synthetic_heads(
    patients: Iterable[SyntheticPatient], options: ModelOptions = FEW_PATIENTS
) -> tuple[FrozenOrigin, FrozenOrigin]:
    """(image head, clinical-only baseline), both frozen on the same synthetic patients. Errors as `fit_origin`."""
    images, clinical = synthetic_cohorts(patients)
    return fit_origin(images, options)[0], fit_origin(clinical, options)[0]


def heads_document(image: FrozenOrigin, clinical: FrozenOrigin | None = None) -> dict[str, Any]:
    """What a bundle's `metadata.json` gains: the keys `origin` and, with a baseline, `origin_clinical`."""
    document = {IMAGE_KEY: {**image.to_json(), "sha256": image.sha256}}
    if clinical is not None:
        document[CLINICAL_KEY] = {**clinical.to_json(), "sha256": clinical.sha256}
    return document


def read_heads(metadata: Mapping[str, Any]) -> tuple[FrozenOrigin | None, FrozenOrigin | None]:
    """(image head, clinical-only baseline) of a bundle's metadata; None where it has none.

    Raises InputError("origin-model") for a document that is damaged or was changed after it was frozen.
    """
    image, clinical = (_read(metadata.get(key), key) for key in (IMAGE_KEY, CLINICAL_KEY))
    return image, clinical


def _read(document: Mapping[str, Any] | None, key: str) -> FrozenOrigin | None:
    if document is None:
        return None
    frozen = FrozenOrigin.from_json(document)
    if document.get("sha256") != frozen.sha256:
        raise InputError(
            "origin-model",
            f"metadata.json, {key}: sha256 {frozen.sha256[:12]} is not the frozen {str(document.get('sha256'))[:12]}; "
            "weights or threshold were changed by hand: take the bundle's own file",
        )
    return frozen
