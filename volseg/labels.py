"""The vocabulary: names, voxel values and SNOMED CT codes. The only place where they are written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "unknown" where nothing tells: lytic and sclerotic are read from Hounsfield units, which MRI does not have.
LesionKind = Literal["lytic", "sclerotic", "mixed", "unknown"]
LESION_KINDS: tuple[LesionKind, ...] = ("lytic", "sclerotic", "mixed")

# T1c is T1 after contrast agent. This order is that of the channels a network sees; the first one there is the
# reference series unless another is asked for.
MriChannel = Literal["T1", "T1c", "T2", "STIR"]
MRI_CHANNELS: tuple[MriChannel, ...] = ("T1", "T1c", "T2", "STIR")


@dataclass(frozen=True)
class Code:
    """A coded concept as DICOM writes it."""

    value: str
    scheme: str
    meaning: str


# Semantic mask of the segmentation bundles.
BACKGROUND = 0
LESION = 1

BONY_METASTASIS = Code("94222008", "SCT", "Bony metastasis")
NEOPLASM_SECONDARY = Code("14799000", "SCT", "Neoplasm, Secondary")
MORPHOLOGICALLY_ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")

# Lytic and sclerotic have no SNOMED CT code in the DICOM dictionaries: a private, declared scheme.
KIND_CODES: dict[LesionKind, Code] = {
    kind: Code(kind.upper(), "99VOLSEG", f"{kind.capitalize()} lesion") for kind in LESION_KINDS
}
