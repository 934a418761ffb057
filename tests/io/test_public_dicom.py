"""Every public DICOM folder against what dcm2niix makes of it: the same voxels and affine, or a refusal by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from volseg.errors import InputError
from volseg.geometry import spacing_mm, to_ras, voxel_to_ras_mm
from volseg.io import read_study

HARD, MISC = "dicom_hard_d2n/d2n_dicom.tar.xz", "dicom_misc/dicom_misc.tar.xz"
STS, J2K = "sts015_ct_mr_pet/STS_015_dicom.tar.xz", "totalseg_dicom_j2k"
slow = pytest.mark.slow

# (key in PEER_REFERENCE.json, archive, folder in it)
EQUAL = [
    ("dicom_hard_d2n/generic/compressed_rle/001", HARD, "generic/compressed_rle/001"),
    ("dicom_hard_d2n/generic/compressed_jpegls/001", HARD, "generic/compressed_jpegls/001"),
    ("dicom_hard_d2n/generic/compressed_j2k/001", HARD, "generic/compressed_j2k/001"),
    ("dicom_hard_d2n/generic/compressed_jpeg/001", HARD, "generic/compressed_jpeg/001"),
    ("dicom_hard_d2n/generic/anatomical/002_non_isotropic", HARD, "generic/anatomical/002_non_isotropic"),
    ("dicom_hard_d2n/failing/slicecount/001", HARD, "failing/slicecount/001"),
    ("dicom_hard_d2n/siemens_multiframe/001", HARD, "siemens_multiframe/001"),
    ("dicom_misc/dcmqi", MISC, "dcmqi"),
    ("dicom_misc/dcmqi/ct-3slice", MISC, "dcmqi/ct-3slice"),
    ("sts015_ct_mr_pet/STS_015/CT/image", STS, "STS_015/CT/image"),
    ("sts015_ct_mr_pet/STS_015/MR_T1/image", STS, "STS_015/MR_T1/image"),
    ("sts015_ct_mr_pet/STS_015/PET/image", STS, "STS_015/PET/image"),
    ("totalseg_dicom_j2k/example_ct_dicom", J2K, "example_ct_dicom"),
    pytest.param("vhf_pelvis_1mm/vhf", "vhf_pelvis_1mm/vhf_pelvis_150slices_dicom.tar.xz", "vhf", marks=slow),
    # Padding -3024 is kept as the peer keeps it; the intensity window clips it later.
    pytest.param("rider_chest_0p8mm/rider", "rider_chest_0p8mm/rider_95slices_dicom.tar.xz", "rider", marks=slow),
    pytest.param(
        "lidc0314_chest_1mm/LIDC-IDRI-0314", "lidc0314_chest_1mm/LIDC-IDRI-0314_dicom.tar.xz", "LIDC-IDRI-0314",
        marks=slow,
    ),
]  # fmt: skip

# (archive, folder, code, what the peer does instead)
REFUSED = [
    (
        HARD,
        "failing/sliceincrement/001",
        "dicom-missing-slice",
        "reads 5 mm throughout, and a guess of 6 slices of 4 mm",
    ),
    (HARD, "failing/sliceorientation/001", "dicom-mixed-geometry", "splits one series into two volumes of 2 slices"),
    (MISC, "dcm_qa_12bit", "dicom-no-image", "unfolds Siemens MR mosaics, which is not for a CT tool"),
    (MISC, "pydicom-data", "dicom-no-positions", "reads an RCBF map, a secondary capture and a SEG as images"),
    (MISC, "highdicom", "dicom-single-slice", "writes a volume of one slice"),
    (STS, "STS_015/CT/mask", "dicom-none-found", "finds nothing either: a structure set"),
    (STS, "STS_015/MR_T1/mask", "dicom-none-found", "finds nothing either: a structure set"),
    (STS, "STS_015/PET/mask", "dicom-none-found", "finds nothing either: a structure set"),
]


@pytest.fixture(scope="session")
def peer(shared: Path) -> dict:
    return json.loads((shared / "data" / "PEER_REFERENCE.json").read_text())


def folder_of(archive: str, inner: str, shared: Path, unpacked) -> Path:
    return shared / "data" / archive / inner if archive == J2K else unpacked(archive) / inner


def canonical_sha256(voxels: np.ndarray, affine: np.ndarray) -> str:
    turned, _ = to_ras(voxels, affine)
    digest = hashlib.sha256()
    for plane in turned:
        digest.update(np.ascontiguousarray(plane, dtype="<f4").tobytes())
    return digest.hexdigest()


def volume_of(folder: Path, **options):
    (volume,) = read_study(folder, **options).volumes.values()
    return volume


@pytest.mark.parametrize(("key", "archive", "inner"), EQUAL)
def test_public_folder_gives_the_peers_voxels_and_affine(key, archive, inner, shared, unpacked, peer) -> None:
    volume = volume_of(folder_of(archive, inner, shared, unpacked))
    sha256 = canonical_sha256(volume.voxels, volume.affine)
    theirs = [v for v in peer[key]["volumes"] if v["sha256_scaled_float32_RAS_Corder"] == sha256]
    assert theirs, "voxels differ from the peer's"
    shape = theirs[0]["shape"]
    _, expected = to_ras(np.broadcast_to(np.int8(0), shape), np.array(theirs[0]["affine"]))
    turned, ours = to_ras(volume.voxels, volume.affine)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in turned.shape])).reshape(3, 8).T
    apart = np.linalg.norm(voxel_to_ras_mm(ours, corners) - voxel_to_ras_mm(expected, corners), axis=1)
    assert apart.max() < 0.01  # the reference is written to five decimals per axis


@pytest.mark.parametrize(("archive", "inner", "code", "peer_does"), REFUSED)
def test_public_folder_is_refused_where_the_peer_guesses(archive, inner, code, peer_does, shared, unpacked) -> None:
    with pytest.raises(InputError) as refusal:
        read_study(folder_of(archive, inner, shared, unpacked))
    assert refusal.value.code == code


def test_a_tilted_gantry_keeps_the_peers_voxels_but_has_the_positions_of_the_headers(unpacked, peer) -> None:
    """The peer's plain file says slices 4.85 mm apart along z; the headers say 5 mm along z, planes tilted by 14°."""
    folder = unpacked(HARD) / "failing/gantrytilting/001"
    study = read_study(folder)
    volume = study.volumes["CT"]
    hashes = [
        v["sha256_scaled_float32_RAS_Corder"] for v in peer["dicom_hard_d2n/failing/gantrytilting/001"]["volumes"]
    ]
    assert canonical_sha256(volume.voxels, volume.affine) == hashes[0]
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 5], atol=1e-6)
    assert any("14.0 degrees" in note for note in study.notes)


def test_a_map_the_peer_reads_is_read_only_when_it_is_asked_for(unpacked, peer) -> None:
    volume = volume_of(unpacked(MISC) / "pydicom-data", series_uid="14401")
    hashes = [v["sha256_scaled_float32_RAS_Corder"] for v in peer["dicom_misc/pydicom-data"]["volumes"]]
    assert canonical_sha256(volume.voxels, volume.affine) in hashes


def test_a_series_of_one_modality_among_three_is_used_and_the_others_are_named(unpacked) -> None:
    study = read_study(unpacked(STS) / "STS_015", name="STS")
    assert list(study.volumes) == ["CT"]
    np.testing.assert_allclose(spacing_mm(study.volumes["CT"].affine), [0.9765625, 0.9765625, 3.27], atol=1e-4)
    assert sum("CT is preferred" in note for note in study.notes) == 2
