"""Synthetic MRI cases on disk: computed phantoms, and lesions grown in real examinations."""

from volseg.synth_mri.phantoms import MRI_PHANTOM, MriSynthOptions, mri_case, write_mri_cases
from volseg.synth_mri.real import MarrowMask, grow_mri_case, grow_mri_lesions, write_grown_mri

__all__ = [
    "MRI_PHANTOM",
    "MarrowMask",
    "MriSynthOptions",
    "grow_mri_case",
    "grow_mri_lesions",
    "mri_case",
    "write_grown_mri",
    "write_mri_cases",
]
