"""NIfTI: read to the last byte and checked, written whole or not at all. Every refusal has its reason code."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import InputError
from volseg.geometry import axis_codes, spacing_mm
from volseg.io import read_nifti, read_study, read_volume, write_nifti

AFFINE = np.diag([0.8, 0.9, 2.0, 1.0])


def code_of(path: Path | str) -> str:
    with pytest.raises(InputError) as refusal:
        read_study(path)
    assert "\n" not in refusal.value.message and len(refusal.value.message) < 400
    return refusal.value.code


def setting(**fields):
    def edit(header) -> None:
        for name, value in fields.items():
            header[name] = value

    return edit


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_voxels_and_affine_are_those_of_the_file(ct_nifti, name) -> None:
    volume = read_study(ct_nifti(name)).volumes["CT"]
    np.testing.assert_array_equal(volume.voxels, np.arange(336).reshape(8, 7, 6) * 3 - 1000)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
    assert volume.voxels.dtype == np.int16


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_grey_type_keeps_its_values(ct_nifti, kind) -> None:
    data = np.arange(336).reshape(8, 7, 6).astype(np.float64) % 120
    voxels = read_study(ct_nifti(data=data.astype(kind))).volumes["CT"].voxels
    np.testing.assert_array_equal(voxels, data)
    assert voxels.dtype == {"uint8": np.uint8, "float32": np.float32, "float64": np.float32}.get(kind, np.int16)


def test_big_endian_is_read(tmp_path) -> None:
    data = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(data, AFFINE, header), tmp_path / "big.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "big.nii")[0].voxels, data)


def test_nifti2_is_read(tmp_path) -> None:
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nib.save(nib.Nifti2Image(data, AFFINE), tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(read_nifti(tmp_path / "two.nii.gz")[0].voxels, data)


@pytest.mark.parametrize(
    ("slope", "inter", "first"), [(0, 5, -1000), (np.nan, 5, -1000), (2, 24, -1976), (0.5, 0, -500)]
)
def test_scl_slope_follows_the_standard(ct_nifti, slope, inter, first) -> None:
    voxels = read_study(ct_nifti(edit=setting(scl_slope=slope, scl_inter=inter))).volumes["CT"].voxels
    assert voxels[0, 0, 0] == first
    assert voxels.dtype == (np.float32 if slope == 0.5 else np.int16)


def test_slope_without_a_finite_intercept_is_refused(ct_nifti) -> None:
    assert code_of(ct_nifti(edit=setting(scl_slope=2, scl_inter=np.nan))) == "nifti-scaling"


def test_left_handed_and_oblique_grids_are_valid(ct_nifti) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = np.array([[-c, -s, 0, 5], [-s, c, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]) @ AFFINE
    volume = read_study(ct_nifti(affine=oblique)).volumes["CT"]
    np.testing.assert_allclose(volume.affine, oblique, atol=1e-5)
    assert axis_codes(volume.affine) == "LAS"
    np.testing.assert_allclose(spacing_mm(volume.affine), [0.8, 0.9, 2.0], rtol=1e-5)


def test_a_trailing_axis_of_length_one_is_no_fourth_axis(ct_nifti) -> None:
    data = np.arange(336, dtype=np.int16).reshape(8, 7, 6, 1)
    assert read_study(ct_nifti(data=data)).volumes["CT"].voxels.shape == (8, 7, 6)


def test_only_a_qform_is_enough(ct_nifti) -> None:
    volume = read_study(ct_nifti(edit=setting(sform_code=0))).volumes["CT"]
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)


# --- the stream


def test_a_missing_path_is_refused(tmp_path) -> None:
    assert code_of(tmp_path / "no.nii.gz") == "path-missing"
    assert code_of(tmp_path / ("n" * 5000)) == "path-missing"
    assert code_of("a\0b.nii") == "path-missing"


def test_an_empty_file_is_refused(tmp_path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    assert code_of(tmp_path / "empty.nii.gz") == "file-empty"


def test_a_link_to_itself_is_refused(tmp_path) -> None:
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    assert code_of(tmp_path / "loop.nii") == "path-missing"


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    assert code_of(tmp_path / "pipe.nii") == "path-not-a-file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_refused(ct_nifti) -> None:
    path = ct_nifti()
    path.chmod(0)
    assert code_of(path) == "path-unreadable"


@pytest.mark.parametrize("keep", [0.3, 0.9, -4])
def test_a_truncated_gzip_is_refused(ct_nifti, keep) -> None:
    path = ct_nifti()
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)] if keep > 0 else raw[:keep])
    assert code_of(path) == "gzip-truncated"


def test_any_flipped_byte_is_refused(ct_nifti, rng) -> None:
    """Noise does not compress, so most bytes are voxels stored as they are: only the checksum tells."""
    path = ct_nifti(data=rng.integers(-1000, 1000, (8, 7, 6)).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 2 // 3] ^= 0x10
    path.write_bytes(raw)
    assert code_of(path) == "gzip-damaged"


def test_a_damaged_checksum_is_refused(ct_nifti) -> None:
    path = ct_nifti()
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)
    assert code_of(path) == "gzip-damaged"


@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
@pytest.mark.parametrize("left", [352, 500, 100])
def test_a_file_cut_after_or_in_the_header_is_refused(ct_nifti, name, left) -> None:
    path = ct_nifti(name)
    raw = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    path.write_bytes(gzip.compress(raw[:left]) if name.endswith("gz") else raw[:left])
    assert code_of(path) == "nifti-truncated"


def test_a_web_page_is_refused(tmp_path) -> None:
    for name, code in (("page.nii.gz", "nifti-not-gzip"), ("page.nii", "nifti-not-nifti")):
        (tmp_path / name).write_text("<html><body>sign in</body></html>" * 20)
        with pytest.raises(InputError, match="a web page"):
            read_study(tmp_path / name)
        assert code_of(tmp_path / name) == code


def test_gzip_named_nii_is_refused_with_the_name_it_wants(ct_nifti) -> None:
    path = ct_nifti()
    path.rename(path.with_name("ct.nii"))
    with pytest.raises(InputError, match=r"name it ct\.nii\.gz"):
        read_study(path.with_name("ct.nii"))
    assert code_of(path.with_name("ct.nii")) == "nifti-is-gzip"


def test_a_gzip_bomb_is_refused_before_memory_is_taken(ct_nifti) -> None:
    path = ct_nifti(edit=setting(dim=[3, 900, 1000, 1000, 1, 1, 1, 1]))
    assert code_of(path) == "nifti-size-implausible"


def test_bytes_without_end_after_the_image_are_refused(ct_nifti) -> None:
    path = ct_nifti()
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(1 << 25)))
    assert code_of(path) == "nifti-trailing-bytes"


# --- the header


@pytest.mark.parametrize(
    ("dim", "code"),
    [
        ([3, 32767, 32767, 32767, 1, 1, 1, 1], "nifti-too-large"),
        ([3, 2000, 2000, 2000, 1, 1, 1, 1], "nifti-too-large"),
        ([3, 8, -7, 6, 1, 1, 1, 1], "nifti-bad-dimensions"),
        ([3, 8, 0, 6, 1, 1, 1, 1], "nifti-bad-dimensions"),
        ([2, 8, 42, 1, 1, 1, 1, 1], "nifti-not-3d"),
        ([4, 8, 7, 3, 2, 1, 1, 1], "nifti-not-3d"),
        ([5, 8, 7, 3, 1, 2, 1, 1], "nifti-not-3d"),
        ([3, 8, 42, 1, 1, 1, 1, 1], "single-slice"),
    ],
)
def test_dimensions_that_are_no_volume_are_refused(ct_nifti, dim, code) -> None:
    assert code_of(ct_nifti(edit=setting(dim=dim))) == code


@pytest.mark.parametrize(("datatype", "word"), [(128, "RGB"), (2304, "RGBA"), (32, "complex64"), (7, "unknown type 7")])
def test_voxels_that_are_no_grey_values_are_refused(ct_nifti, datatype, word) -> None:
    path = ct_nifti(edit=setting(datatype=datatype))
    with pytest.raises(InputError, match=word):
        read_study(path)
    assert code_of(path) == "nifti-datatype"


def test_no_orientation_at_all_is_refused(ct_nifti) -> None:
    assert code_of(ct_nifti(edit=setting(sform_code=0, qform_code=0))) == "nifti-no-orientation"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"srow_x": [np.nan, 0, 0, 0]}, "affine-not-finite"),
        ({"srow_x": [0.8, 0, 0, np.inf]}, "affine-not-finite"),
        ({"srow_y": [0.8, 0, 0, 0], "srow_x": [0.8, 0.9, 0, 0]}, "affine-singular"),
        ({"srow_z": [0, 0, 0, 0]}, "spacing-impossible"),
        ({"srow_z": [0, 0, 500, 0]}, "spacing-impossible"),
        ({"pixdim": [1, 0.8, 0.9, 3, 0, 0, 0, 0]}, "nifti-sform-pixdim"),
        ({"qoffset_x": 40}, "nifti-sform-qform"),
        ({"sform_code": 0, "pixdim": [1, 0.8, 0.9, 1e-6, 0, 0, 0, 0]}, "spacing-impossible"),
        ({"sform_code": 0, "quatern_b": np.nan}, "affine-not-finite"),
    ],
)
def test_an_affine_that_cannot_be_right_is_refused(ct_nifti, fields, code) -> None:
    if code == "affine-singular":  # spacing stays 1.13, 0.9, 2 mm: only the directions collapse
        fields = fields | {"srow_y": [0.8, 0.9, 0, 0], "pixdim": [1, 1.1314, 1.2728, 2, 0, 0, 0, 0]}
    assert code_of(ct_nifti(edit=setting(**fields))) == code


def test_a_registered_image_uses_the_sform_and_says_so(ct_nifti) -> None:
    study = read_study(ct_nifti(edit=setting(sform_code=2, qoffset_x=40)))
    assert any("40.0 mm away" in note for note in study.notes)


# --- the voxels


def test_nan_and_inf_voxels_are_refused_with_their_counts(ct_nifti) -> None:
    data = np.zeros((8, 7, 6), np.float32)
    data[0, 0, :3], data[1, 1, 1] = np.nan, -np.inf
    path = ct_nifti(data=data)
    with pytest.raises(InputError, match="3 NaN and 1 Inf voxels of 336"):
        read_study(path)
    assert code_of(path) == "voxels-not-finite"


def test_a_constant_image_is_refused_but_an_empty_mask_can_be_read(ct_nifti) -> None:
    path = ct_nifti(data=np.zeros((8, 7, 6), np.uint8))
    assert code_of(path) == "voxels-constant"
    assert read_volume(path)[0].voxels.max() == 0


def test_what_is_unlike_ct_is_said(ct_nifti) -> None:
    offset = read_study(ct_nifti(data=np.arange(336, dtype=np.int16).reshape(8, 7, 6) * 9))
    assert any("-1024 offset" in note for note in offset.notes)
    windowed = read_study(ct_nifti(data=(np.arange(336) % 256).astype(np.uint8).reshape(8, 7, 6)))
    assert any("windowed to 8 bits" in note for note in windowed.notes)
    assert read_study(ct_nifti()).notes == ()


# --- writing


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii"])
def test_what_is_written_is_read_back(tmp_path, kind, name) -> None:
    voxels = np.arange(60).reshape(3, 4, 5).astype(kind)
    path = write_nifti(tmp_path / name, voxels, AFFINE, dtype=kind)
    image = nib.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    assert image.get_data_dtype() == kind
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), AFFINE, rtol=1e-6)
    np.testing.assert_array_equal(read_volume(path)[0].voxels, voxels)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_sheared_grid_is_written_and_read_back(tmp_path) -> None:
    tilted = np.array([[0.8, 0, 0, 5], [0, 0.9, 0.5, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    path = write_nifti(tmp_path / "t.nii.gz", np.eye(4, dtype=np.uint8)[None].repeat(2, 0), tilted, dtype="uint8")
    np.testing.assert_allclose(read_volume(path)[0].affine, tilted, rtol=1e-6)


def test_the_same_voxels_give_the_same_bytes(tmp_path) -> None:
    voxels = np.arange(60).reshape(3, 4, 5)
    paths = [write_nifti(tmp_path / f"{n}.nii.gz", voxels, AFFINE, dtype="uint16") for n in "ab"]
    assert len({hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}) == 1


def test_values_that_do_not_fit_are_not_written(tmp_path) -> None:
    for voxels in (np.full((2, 2, 2), 300), np.full((2, 2, 2), -1), np.full((2, 2, 2), 0.5)):
        with pytest.raises(ValueError, match="fit"):
            write_nifti(tmp_path / "x.nii.gz", voxels, AFFINE, dtype="uint8")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    path = write_nifti(tmp_path / "m.nii.gz", np.ones((2, 3, 4)), AFFINE, dtype="uint8")
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left") as refusal:
        write_nifti(path, np.zeros((2, 3, 4)), AFFINE, dtype="uint8")
    assert refusal.value.code == "write-failed"
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.nii.gz"]


def test_a_missing_folder_is_a_refusal(tmp_path) -> None:
    with pytest.raises(InputError) as refusal:
        write_nifti(tmp_path / "none" / "m.nii.gz", np.ones((2, 3, 4)), AFFINE, dtype="uint8")
    assert refusal.value.code == "write-failed"


def test_files_are_as_readable_as_any_other(tmp_path) -> None:
    path = write_nifti(tmp_path / "m.nii.gz", np.ones((2, 3, 4)), AFFINE, dtype="uint8")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
