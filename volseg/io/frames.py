"""DICOM headers -> frames. Enters: one file. Leaves: one `Frame` per image plane, classic or enhanced multi-frame.

Positions and orientations stay in DICOM's LPS here; `stack.py` turns them into a RAS affine. No pixel is read.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydicom
from pydicom.uid import UID

from volseg.errors import InputError
from volseg.io.files import shown

# Objects that carry no grey image, or one that is not the scan itself.
NOT_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC", "FID", "RWV", "PLAN"}
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# What tells volumes of one series apart, where positions repeat (PS3.3 C.7.6.16, C.8.3, C.8.13).
_SPLITS = {
    "echo time": ("EchoTime", "EffectiveEchoTime"),
    "b-value": ("DiffusionBValue",),
    "temporal position": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "trigger time": ("TriggerTime", "NominalCardiacTriggerDelayTime"),
    "acquisition": ("AcquisitionNumber", "FrameAcquisitionNumber"),
    "stack": ("StackID",),
    "image type": ("ImageType", "FrameType"),
}
_TAGS = [
    *("SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("PatientID", "PatientName", "IssuerOfPatientID", "Modality", "SeriesNumber", "SeriesDescription"),
    *("ContrastBolusAgent", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("BurnedInAnnotation", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ProtocolName", "SequenceName", "PulseSequenceName", "AcquisitionContrast", "ScanningSequence", "ScanOptions"),
    *("RepetitionTime", "InversionTime", "InversionTimes", "ContrastBolusAgentSequence", "FrameOfReferenceUID"),
    *(keyword for keywords in _SPLITS.values() for keyword in keywords),
]


@dataclass(frozen=True)
class MrTags:
    """What an MR header says of its pulse sequence; '' and None where it is silent. Times in ms.

    `names` are the protocol's and the sequence's; `techniques` the values of ScanningSequence (SE, GR, IR ...) and
    AcquisitionContrast; `options` those of ScanOptions (FS is fat saturation).
    """

    names: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    tr_ms: float | None = None
    te_ms: float | None = None
    ti_ms: float | None = None


@dataclass(frozen=True)
class Frame:
    """One image plane. Lengths in mm, directions and position in LPS; None where the header is silent."""

    path: Path
    index: int
    patient: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class: str
    modality: str
    series_number: str
    description: str
    contrast: str
    image_type: tuple[str, ...]
    transfer_syntax: str
    rows: int
    columns: int
    row_spacing_mm: float | None
    column_spacing_mm: float | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    slope: float
    intercept: float
    has_rescale: bool
    photometric: str
    splits: tuple[tuple[str, str], ...]
    burned_in: bool = False
    frame_of_reference: str = ""
    mr: MrTags = MrTags()
    rescale_type: str = ""


def looks_like_dicom(path: Path) -> bool:
    """Whether the first bytes are DICOM's: the preamble's magic, or a first element of group 0002 or 0008."""
    with path.open("rb") as f:
        head = f.read(132)
    return head[128:132] == b"DICM" or _bare(head)


def _bare(head: bytes) -> bool:
    if len(head) < 8:
        return False
    orders: tuple[Literal["little"], Literal["big"]] = ("little", "big")
    for order in orders:
        group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
        if group in (2, 8) and element <= 0x60:
            explicit = head[4:6].isalpha() and head[4:6].isupper()
            length = int.from_bytes(head[4:8], order)
            if explicit or length <= 1024:
                return True
    return False


def read_dataset(path: Path, *, pixels: bool = False) -> Any:
    """One file by pydicom, with or without preamble. Raises InputError dicom-file-damaged."""
    try:
        if pixels:  # in threads: the list of warning filters is global, so pixels.py silences them once for all
            ds = pydicom.dcmread(path, force=True)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ds = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=_TAGS)
    except Exception as e:  # pydicom raises many kinds on a garbled file
        raise InputError(
            "dicom-file-damaged", f"{shown(path.name)}: not readable as DICOM ({shown(e)}); copy or export it again"
        ) from e
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        syntax = ("1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1") if little else "1.2.840.10008.1.2.2"
        ds.file_meta.TransferSyntaxUID = UID(syntax)
    return ds


def is_dicomdir(path: Path) -> bool:
    """Whether a DICOM file is the index of others, which lies beside them on a disc."""
    return named_dicomdir(path) or _sop_class(read_dataset(path)) == _MEDIA_DIRECTORY


def named_dicomdir(path: Path) -> bool:
    return path.name.upper() == "DICOMDIR"


def read_frames(path: Path) -> list[Frame]:
    """All image planes of one file; empty for objects without an image (structure sets, reports, DICOMDIR).

    Raises:
        InputError: dicom-file-damaged, also where an image's header ends before it says how large the image is.
    """
    ds = read_dataset(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not _number(ds.get("Rows")) or not _number(ds.get("Columns")):
                if not named_dicomdir(path):
                    _check_whole(ds, path)
                return []
            count = int(_number(ds.get("NumberOfFrames")) or 1)
            per_frame = list(ds.get("PerFrameFunctionalGroupsSequence") or [])
            shared = (ds.get("SharedFunctionalGroupsSequence") or [None])[0]
            if len(per_frame) != count:
                per_frame = [None] * count
            return [_frame(path, i, ds, shared, own) for i, own in enumerate(per_frame)]
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as e:
            raise InputError(
                "dicom-file-damaged", f"{shown(path.name)}: the header cannot be understood ({shown(e)})"
            ) from e


def _check_whole(ds: Any, path: Path) -> None:
    """A file without Rows and Columns is passed over, and its slice with it, unless it is cut off inside its header.

    Some binary files begin as a DICOM file without preamble may; without one tag that is known they are none.
    """
    sop_class = _sop_class(ds)
    if "Image Storage" in UID(sop_class).name or (not sop_class and (ds.preamble or len(ds))):
        raise InputError(
            "dicom-file-damaged",
            f"{shown(path.name)}: the header ends before the image's Rows and Columns; copy or export it again",
        )


def _sop_class(ds: Any) -> str:
    """What the object is; where the header ends early, the file's first lines still say so."""
    return str(ds.get("SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID") or "").strip()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        found = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(math.isfinite(v) for v in found) else None


def _frame(path: Path, index: int, ds: Any, shared: Any, own: Any) -> Frame:
    groups = [item for group in (own, shared) if group is not None for item in _items(group)]

    def get(keyword: str) -> Any:
        """The frame's own value, else the shared one, else the file's."""
        for item in groups:
            if keyword in item and item.get(keyword) not in (None, ""):
                return item.get(keyword)
        return ds.get(keyword)

    spacing = _numbers(get("PixelSpacing"), 2)
    slope, intercept = _number(get("RescaleSlope")), _number(get("RescaleIntercept"))
    splits = []
    for name, keywords in _SPLITS.items():
        value = next((v for v in (get(k) for k in keywords) if v not in (None, "")), "")
        splits.append((name, str(value)))
    image_type = ds.get("ImageType") or ()
    uid = str(ds.get("SOPClassUID") or "")
    patient = [str(ds.get(k) or "").strip() for k in ("PatientID", "IssuerOfPatientID")]
    return Frame(
        path=path,
        index=index,
        patient="\n".join(patient) if patient[0] else str(ds.get("PatientName") or ""),
        study_uid=str(ds.get("StudyInstanceUID") or "").strip(),
        series_uid=str(ds.get("SeriesInstanceUID") or "").strip(),
        sop_uid=str(ds.get("SOPInstanceUID") or "").strip(),
        sop_class=uid,
        modality=str(ds.get("Modality") or "").strip().upper() or "OT",
        series_number=str(ds.get("SeriesNumber") or "").strip(),
        description=str(ds.get("SeriesDescription") or "").strip(),
        contrast=_contrast(ds),
        image_type=(image_type,) if isinstance(image_type, str) else tuple(str(v).upper() for v in image_type),
        transfer_syntax=str(ds.file_meta.TransferSyntaxUID),
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        row_spacing_mm=spacing[0] if spacing else None,
        column_spacing_mm=spacing[1] if spacing else None,
        orientation=_numbers(get("ImageOrientationPatient"), 6),
        position=_numbers(get("ImagePositionPatient"), 3),
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        has_rescale=slope is not None or bool(ds.get("ModalityLUTSequence")),
        photometric=str(ds.get("PhotometricInterpretation") or "MONOCHROME2").strip().upper(),
        splits=tuple(splits),
        burned_in=str(ds.get("BurnedInAnnotation") or "").strip().upper() == "YES",
        frame_of_reference=str(ds.get("FrameOfReferenceUID") or "").strip(),
        mr=_mr_tags(get) if str(ds.get("Modality") or "").strip().upper() == "MR" else MrTags(),
        rescale_type=str(get("RescaleType") or "").strip().upper(),
    )


def _contrast(ds: Any) -> str:
    """The agent in words: classic files name it, enhanced ones list it."""
    agents = [item.get("CodeMeaning") or "listed" for item in ds.get("ContrastBolusAgentSequence") or []]
    return str(ds.get("ContrastBolusAgent") or ", ".join(map(str, agents))).strip()


def _mr_tags(get: Callable[[str], Any]) -> MrTags:
    def texts(*keywords: str) -> tuple[str, ...]:
        values = [get(k) for k in keywords]
        parts = [v if isinstance(v, str) or not hasattr(v, "__iter__") else [*v] for v in values if v]
        flat = [t for part in parts for t in (part if isinstance(part, list) else [part])]
        return tuple(str(t).strip() for t in flat if str(t).strip())

    def first_number(*keywords: str) -> float | None:
        values = [get(k) for k in keywords]
        singles = [v[0] if isinstance(v, Sequence) and not isinstance(v, str) and len(v) else v for v in values]
        return next((n for n in map(_number, singles) if n is not None), None)

    return MrTags(
        names=texts("ProtocolName", "SequenceName", "PulseSequenceName"),
        techniques=tuple(t.upper() for t in texts("ScanningSequence", "AcquisitionContrast")),
        options=tuple(t.upper() for t in texts("ScanOptions")),
        tr_ms=first_number("RepetitionTime"),
        te_ms=first_number("EchoTime", "EffectiveEchoTime"),
        ti_ms=first_number("InversionTime", "InversionTimes"),
    )


def _items(group: Any) -> list[Any]:
    """The first item of each functional group's sequence."""
    return [element.value[0] for element in group if element.VR == "SQ" and element.value]
