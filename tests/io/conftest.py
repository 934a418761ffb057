"""DICOM and NIfTI files written by the tests: small, anisotropic, every voxel value computable on paper."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
ROWS, COLUMNS, GAP_MM = 6, 5, 2.5
STUDY, SERIES = "1.2.826.0.1.3680043.10.1", "1.2.826.0.1.3680043.10.1.1"


def stored_value(k: int) -> np.ndarray:
    """Slice k (rows, columns): 1000 + 100 k + 10 row + column."""
    return (1000 + 100 * k + 10 * np.arange(ROWS)[:, None] + np.arange(COLUMNS)).astype(np.uint16)


def ct_slice(k: int, **changes: object) -> Dataset:
    """CT slice k: 0.5 mm columns, 0.75 mm rows, 2.5 mm apart, HU = stored - 1024. None removes an attribute."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, generate_uid(entropy_srcs=[SERIES, str(k), str(changes)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, SERIES, f"{STUDY}.9"
    ds.PatientID, ds.PatientName, ds.Modality, ds.SeriesNumber = "P1", "Doe^Jane", "CT", 3
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = k + 1
    ds.ImagePositionPatient = [-10.0, 20.0, 100.0 + GAP_MM * k]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [0.75, 0.5], 5
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = stored_value(k).tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def save_dicom(ds: Dataset, path: Path, *, syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID or "1.2.3"
    ds.file_meta.TransferSyntaxUID = syntax
    if preamble:
        ds.save_as(path, enforce_file_format=True)
    else:
        del ds.file_meta
        ds.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., Path]:
    """Callable: write CT slices `ks` (0..3) with changes (values, or functions of k) into a folder; return it."""

    def write(ks=range(4), folder: str = "ct", prefix: str = "s", **changes: object) -> Path:
        for n, k in enumerate(ks):
            own = {key: value(k) if callable(value) else value for key, value in changes.items()}
            save_dicom(ct_slice(k, **own), tmp_path / folder / f"{prefix}{n:03d}")
        return tmp_path / folder

    return write


@pytest.fixture
def multiframe(tmp_path: Path) -> Callable[..., Path]:
    """Callable: an enhanced multi-frame CT with frames at heights `ks` (in the file's order)."""

    def write(ks=(2, 0, 3, 1)) -> Path:
        drop = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
        ds = ct_slice(0, **dict.fromkeys(drop))
        ds.SOPClassUID, ds.NumberOfFrames = ENHANCED_CT, len(ks)
        shared, plane, measures, value = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.75, 0.5]
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1024, "HU"
        shared.PlaneOrientationSequence = Sequence([plane])
        shared.PixelMeasuresSequence = Sequence([measures])
        shared.PixelValueTransformationSequence = Sequence([value])
        ds.SharedFunctionalGroupsSequence = Sequence([shared])
        own = []
        for k in ks:
            frame, position = Dataset(), Dataset()
            position.ImagePositionPatient = [-10.0, 20.0, 100.0 + GAP_MM * k]
            frame.PlanePositionSequence = Sequence([position])
            own.append(frame)
        ds.PerFrameFunctionalGroupsSequence = Sequence(own)
        ds.PixelData = b"".join(stored_value(k).tobytes() for k in ks)
        return save_dicom(ds, tmp_path / "enhanced.dcm")

    return write


@pytest.fixture
def ct_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Callable: write an 8 x 7 x 6 CT as NIfTI; `edit(header)` changes raw header fields just before writing."""

    def write(name="ct.nii.gz", data: np.ndarray | None = None, affine: np.ndarray | None = None, edit=None) -> Path:
        if data is None:
            data = (np.arange(8 * 7 * 6).reshape(8, 7, 6) * 3 - 1000).astype(np.int16)
        matrix = np.diag([0.8, 0.9, 2.0, 1.0]) if affine is None else affine
        image = nib.Nifti1Image(data, matrix)
        image.set_qform(matrix, code=1)
        image.set_sform(matrix, code=1)
        nib.save(image, tmp_path / name)
        if edit is not None:
            rewrite_header(tmp_path / name, edit)
        return tmp_path / name

    return write


def rewrite_header(path: Path, edit: Callable[[np.ndarray], None]) -> None:
    """Change header fields in place, without anything nibabel would check or repair."""
    import gzip

    packed = path.name.endswith(".gz")
    raw = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    fields = np.frombuffer(bytearray(raw[:348]), dtype=nib.Nifti1Header.template_dtype).copy()
    edit(fields[0])
    out = fields.tobytes() + raw[348:]
    path.write_bytes(gzip.compress(out) if packed else out)
