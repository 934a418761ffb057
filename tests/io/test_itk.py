"""NRRD and MetaImage through SimpleITK: LPS turned to RAS once, geometry demanded, damage refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from volseg.errors import InputError
from volseg.io import read_study, read_volume


def itk_image(path: Path, *, compress: bool = True, data: np.ndarray | None = None) -> Path:
    """(4, 3, 2) voxels 0..23 (x fastest), 0.5 x 0.75 x 2 mm, first voxel at LPS (10, 20, 30)."""
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4) if data is None else data)
    if image.GetDimension() == 3:
        image.SetSpacing((0.5, 0.75, 2.0))
        image.SetOrigin((10.0, 20.0, 30.0))
    SimpleITK.WriteImage(image, str(path), compress)
    return path


def code_of(path: Path) -> str:
    with pytest.raises(InputError) as refusal:
        read_study(path)
    assert "\n" not in refusal.value.message
    return refusal.value.code


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
@pytest.mark.parametrize("compress", [True, False])
def test_lps_becomes_ras_once(tmp_path, name, compress) -> None:
    volume = read_study(itk_image(tmp_path / name, compress=compress)).volumes["CT"]
    assert volume.voxels[1, 2, 1] == 1 + 2 * 4 + 12
    expected = [[-0.5, 0, 0, -10], [0, -0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_a_peers_nrrd_lies_on_its_ct(unpacked) -> None:
    folder = unpacked("dicom_misc/dicom_misc.tar.xz") / "dcmqi"
    heart, ct = read_volume(folder / "heart_seg.nrrd")[0], read_volume(folder / "ct-3slice")[0]
    np.testing.assert_allclose(heart.affine, ct.affine, atol=0.01)
    assert heart.voxels.shape == ct.voxels.shape


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_damaged_or_truncated_file_is_refused(tmp_path, name) -> None:
    path = itk_image(tmp_path / name, compress=False)
    path.write_bytes(path.read_bytes()[:-20])
    assert code_of(path) == "itk-damaged"
    path.write_text("<html></html>")
    assert code_of(path) == "itk-damaged"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_a_truncated_compressed_file_is_refused(tmp_path, name) -> None:
    path = itk_image(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-12])
    assert code_of(path) == "itk-damaged"


def test_more_than_one_value_per_voxel_or_two_axes_are_refused(tmp_path) -> None:
    assert code_of(itk_image(tmp_path / "flat.mha", data=np.arange(6, dtype=np.int16).reshape(2, 3))) == "itk-not-3d"
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 3), np.float32), isVector=True)
    SimpleITK.WriteImage(image, str(tmp_path / "v.mha"))
    assert code_of(tmp_path / "v.mha") == "itk-not-3d"


def test_no_orientation_is_refused(tmp_path) -> None:
    path = itk_image(tmp_path / "a.nrrd", compress=False)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(x for x in lines if not x.startswith((b"space", b"kinds"))))
    assert code_of(path) == "itk-no-orientation"


def test_a_header_that_points_out_of_its_folder_is_refused(tmp_path) -> None:
    path = itk_image(tmp_path / "a.mhd", compress=False)
    path.write_text(path.read_text().replace("ElementDataFile = a.raw", "ElementDataFile = ../../etc/passwd"))
    assert code_of(path) == "itk-data-file-outside"


def test_a_header_that_claims_the_moon_is_refused(tmp_path) -> None:
    path = itk_image(tmp_path / "a.mha", compress=True)
    path.write_bytes(path.read_bytes().replace(b"DimSize = 4 3 2", b"DimSize = 2000 2000 2000"))
    assert code_of(path) == "itk-size-implausible"


def test_nan_voxels_are_refused(tmp_path) -> None:
    data = np.zeros((2, 3, 4), np.float32)
    data[0, 0, 0] = np.nan
    assert code_of(itk_image(tmp_path / "a.mha", data=data)) == "voxels-not-finite"
