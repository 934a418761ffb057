"""Disk -> nouns, and masks -> disk. Strict: what another reader repairs in silence is refused here by name.

Imports no torch; MONAI's door is `volseg.io.monai_reader`.
"""

from volseg.io.inspect import Inspection, format_table, inspect, to_dict
from volseg.io.itk import read_itk
from volseg.io.mri_study import parse_channels, read_mri_study
from volseg.io.nifti import read_nifti, write_nifti
from volseg.io.study import read_study, read_volume

__all__ = [
    "Inspection",
    "format_table",
    "inspect",
    "parse_channels",
    "read_itk",
    "read_mri_study",
    "read_nifti",
    "read_study",
    "read_volume",
    "to_dict",
    "write_nifti",
]
