"""DICOM the tests write themselves: odd but valid series are read right, bad ones are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import compress
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from volseg.errors import InputError
from volseg.geometry import spacing_mm, voxel_to_ras_mm
from volseg.io import read_study

ROWS, COLUMNS, GAP_MM = 6, 5, 2.5


def expected_hu(n: int = 4) -> np.ndarray:
    """HU at (column, row, slice): 1000 + 100 k + 10 j + i - 1024."""
    i, j, k = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), np.arange(n), indexing="ij")
    return 100 * k + 10 * j + i - 24


def ct_of(path, **options):
    return read_study(path, **options).volumes["CT"]


def code_of(path, **options) -> str:
    with pytest.raises(InputError) as refusal:
        read_study(path, **options)
    assert "\n" not in refusal.value.message
    return refusal.value.code


def test_voxel_columns_rows_and_slices_lie_where_the_headers_say(series) -> None:
    volume = ct_of(series())
    np.testing.assert_array_equal(volume.voxels, expected_hu())
    assert volume.voxels.dtype == np.int16
    np.testing.assert_allclose(spacing_mm(volume.affine), [0.5, 0.75, 2.5])  # SliceThickness says 5
    # LPS (-10, 20, 100) is RAS (10, -20, 100); column 2, row 4, slice 1 is 1 mm left, 3 mm back, 2.5 mm up.
    np.testing.assert_allclose(voxel_to_ras_mm(volume.affine, [2, 4, 1]), [10 - 1, -20 - 3, 102.5])


@pytest.mark.parametrize("number", [lambda k: 9 - k, lambda k: 1, None], ids=["reversed", "equal", "absent"])
def test_instance_numbers_do_not_matter(series, number) -> None:
    np.testing.assert_array_equal(ct_of(series(ks=[2, 0, 3, 1], InstanceNumber=number)).voxels, expected_hu())


def test_each_slice_has_its_own_slope_and_intercept(series) -> None:
    volume = ct_of(series(RescaleSlope=lambda k: k + 1, RescaleIntercept=lambda k: -500 * k))
    stored = expected_hu() + 1024
    k = np.arange(4)
    np.testing.assert_array_equal(volume.voxels, stored * (k + 1) - 500 * k)


def test_fractional_slopes_become_float32(series) -> None:
    volume = ct_of(series(RescaleSlope=0.5))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, (expected_hu() + 1024) * 0.5 - 1024)


def test_values_beyond_int16_become_float32_and_stay_exact(series) -> None:
    volume = ct_of(series(RescaleSlope=100))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, (expected_hu() + 1024) * 100 - 1024)


def test_a_modality_lut_replaces_the_slope(series) -> None:
    lut = Dataset()
    lut.add_new(0x00283002, "US", [600, 1000, 16])
    lut.add_new(0x00283006, "US", [7 + n for n in range(600)])
    lut.ModalityLUTType = "HU"
    path = series(RescaleSlope=None, RescaleIntercept=None, ModalityLUTSequence=lambda k: Sequence([lut]))
    np.testing.assert_array_equal(ct_of(path).voxels, expected_hu() + 24 + 7)


@pytest.mark.parametrize("signed", [0, 1])
def test_garbage_above_the_stored_bits_is_ignored(series, signed) -> None:
    def dirty(k: int) -> bytes:
        clean = (1000 + 100 * k + 10 * np.arange(ROWS)[:, None] + np.arange(COLUMNS)).astype(np.uint16)
        return ((clean - 1024 * signed) & 0x0FFF | 0xA000).astype(np.uint16).tobytes()

    path = series(PixelData=dirty, PixelRepresentation=signed, RescaleIntercept=0 if signed else -1024)
    np.testing.assert_array_equal(ct_of(path).voxels, expected_hu())


def test_no_rescale_slope_is_read_as_stored_and_said(series) -> None:
    study = read_study(series(RescaleSlope=None, RescaleIntercept=None))
    np.testing.assert_array_equal(study.volumes["CT"].voxels, expected_hu() + 1024)
    assert any("no RescaleSlope" in note for note in study.notes)


def test_monochrome1_keeps_hounsfield_units(series) -> None:
    study = read_study(series(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(study.volumes["CT"].voxels, expected_hu())
    assert any("MONOCHROME1" in note for note in study.notes)


def test_padding_values_are_kept(series) -> None:
    path = series(BitsStored=16, HighBit=15, PixelRepresentation=1, PixelPaddingValue=-2000,
                  PixelData=lambda k: np.full((ROWS, COLUMNS), (-2000, 100)[k % 2], np.int16).tobytes())  # fmt: skip
    assert set(np.unique(ct_of(path).voxels)) == {-3024, -924}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("preamble", [True, False])
def test_transfer_syntaxes_and_bare_files(tmp_path, series, syntax, preamble) -> None:
    import pydicom

    if not preamble and syntax != ImplicitVRLittleEndian:
        pytest.skip("a file without preamble is implicit or explicit little endian")
    for file in series().iterdir():
        ds = pydicom.dcmread(file)
        if syntax == RLELossless:
            compress(ds, RLELossless, encoding_plugin="pydicom")
            ds.save_as(file)
        elif preamble:
            ds.file_meta.TransferSyntaxUID = syntax
            ds.save_as(file, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        else:
            bare = Dataset(ds)
            bare.save_as(file, implicit_vr=True, little_endian=True)
            assert file.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(ct_of(tmp_path / "ct").voxels, expected_hu())


def test_big_endian_is_read(tmp_path, series) -> None:
    import pydicom

    for file in series().iterdir():
        little = pydicom.dcmread(file)
        ds = Dataset()
        ds.update({element.tag: element for element in little})
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta = little.file_meta
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(file, ds, enforce_file_format=True)
    np.testing.assert_array_equal(ct_of(tmp_path / "ct").voxels, expected_hu())


def test_enhanced_multi_frame_is_sorted_by_position(multiframe) -> None:
    volume = ct_of(multiframe())
    np.testing.assert_array_equal(volume.voxels, expected_hu())
    np.testing.assert_allclose(volume.affine[:3, 3], [10, -20, 100])


def test_gantry_tilt_is_kept_as_shear(series) -> None:
    """15 degrees about x: the table moves 2.5 mm along z, the planes lean."""
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    study = read_study(series(ImageOrientationPatient=[1, 0, 0, 0, round(c, 9), round(s, 9)]))
    affine = study.volumes["CT"].affine
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 2.5], atol=1e-9)
    np.testing.assert_allclose(affine[:3, 1], [0, -0.75 * c, 0.75 * s], atol=1e-6)
    assert any("15.0 degrees" in note for note in study.notes)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_one_even_grid(series) -> None:
    volume = ct_of(series(ks=range(9), ImagePositionPatient=lambda k: [0, 0, round(0.625 * k, 1)]))
    np.testing.assert_allclose(spacing_mm(volume.affine)[2], 0.625)


def test_a_missing_slice_is_refused_with_its_place(series) -> None:
    path = series(ks=[0, 1, 3, 4])
    with pytest.raises(InputError, match=r"1 of 5 slices missing \(gaps \[2.5, 5\] mm.*after image 2 at 102.50 mm"):
        read_study(path)
    assert code_of(path) == "dicom-missing-slice"


def test_a_missing_slice_next_to_the_end_is_refused(series) -> None:
    assert code_of(series(ks=[*range(40), 41])) == "dicom-missing-slice"


def test_uneven_gaps_are_refused(series) -> None:
    path = series(ImagePositionPatient=lambda k: [0, 0, (0, 4, 11, 15)[k]])
    assert code_of(path) == "dicom-uneven-gaps"


def test_a_slice_shifted_sideways_is_refused(series) -> None:
    assert code_of(series(ImagePositionPatient=lambda k: [3.0 * (k == 2), 0, 2.5 * k])) == "dicom-crooked-positions"


def test_duplicate_positions_are_refused(series) -> None:
    series()
    path = series(ks=[2], prefix="again", SeriesDescription="other")
    assert code_of(path) == "dicom-duplicate-positions"


def test_a_copied_file_is_told_as_a_copy(series) -> None:
    series()
    with pytest.raises(InputError, match="1 images are there twice"):
        read_study(series(ks=[2], prefix="again"))


def test_two_equally_good_series_are_refused_and_listed(series) -> None:
    series()
    path = series(folder="ct", prefix="b", SeriesInstanceUID="1.2.3.77")
    with pytest.raises(InputError, match=r"1\.2\.3\.77 \(4 images, 2\.5 mm\).*--series UID") as refusal:
        read_study(path)
    assert refusal.value.code == "dicom-several-series"
    assert ct_of(path, series_uid="1.2.3.77").series_uid == "1.2.3.77"
    assert ct_of(path, series_uid=".77").series_uid == "1.2.3.77"


def test_images_without_positions_are_refused(series) -> None:
    assert code_of(series(ImagePositionPatient=None)) == "dicom-no-positions"


def test_one_image_without_position_is_refused(series) -> None:
    series(ks=range(3))
    assert code_of(series(ks=[3], prefix="x", ImagePositionPatient=None)) == "dicom-no-positions"


def test_no_pixel_spacing_is_refused(series) -> None:
    assert code_of(series(PixelSpacing=None)) == "dicom-no-pixel-spacing"


def test_empty_uids_are_read_and_said(series) -> None:
    study = read_study(series(StudyInstanceUID="", SeriesInstanceUID="", SOPInstanceUID=""))
    np.testing.assert_array_equal(study.volumes["CT"].voxels, expected_hu())
    assert study.volumes["CT"].series_uid is None
    assert any("DICOM outputs will not be possible" in note for note in study.notes)


@pytest.mark.parametrize(
    "odd",
    [
        {"Rows": 3, "Columns": 10},
        {"PixelSpacing": [1, 1]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
    ],
    ids=["matrix", "spacing", "orientation"],
)
def test_mixed_geometry_in_one_series_is_refused(series, odd) -> None:
    series()
    assert code_of(series(ks=[4, 5], prefix="odd", **odd)) == "dicom-mixed-geometry"


def test_volumes_told_apart_by_an_attribute_are_refused_and_can_be_chosen(series) -> None:
    """Two time points under one series UID: same positions, another TemporalPositionIdentifier."""
    series(TemporalPositionIdentifier=1)
    path = series(prefix="t2", TemporalPositionIdentifier=2, RescaleIntercept=0)
    assert code_of(path) == "dicom-several-volumes"
    assert {int(ct_of(path, series_uid=f"1.2.826.0.1.3680043.10.1.1{n}").voxels.min()) for n in ("", "#2")} == {
        -24,
        1000,
    }


def test_a_localizer_is_left_aside(series) -> None:
    series()
    path = series(ks=[0], prefix="loc", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
                  ImageOrientationPatient=[1, 0, 0, 0, 0, -1])  # fmt: skip
    study = read_study(path)
    np.testing.assert_array_equal(study.volumes["CT"].voxels, expected_hu())
    assert any("a localizer" in note for note in study.notes)


def test_a_spectral_map_is_left_aside_unless_it_is_asked_for(series) -> None:
    """mg/ml of iodine in the CT class, thinner and longer than the scan: read as HU, every vessel would be air."""
    series(RescaleType="HU")
    path = series(ks=range(9), prefix="iodine", SeriesInstanceUID="1.2.3.4", RescaleType="MGML",
                  ImagePositionPatient=lambda k: [0, 0, 1.25 * k])  # fmt: skip
    study = read_study(path)
    np.testing.assert_array_equal(study.volumes["CT"].voxels, expected_hu())
    assert any("a map in MGML, not in Hounsfield units" in note for note in study.notes)
    forced = read_study(path, series_uid="1.2.3.4")
    assert forced.volumes["CT"].voxels.shape == (COLUMNS, ROWS, 9)
    assert any(note == "values are in MGML, not in Hounsfield units" for note in forced.notes)
    assert code_of(series(folder="alone", RescaleType="Z_EFF")) == "dicom-no-image"


@pytest.mark.parametrize("kind", ["HU", "US", "", "hu"])
def test_hounsfield_units_and_unspecified_ones_are_a_scan(series, kind) -> None:
    np.testing.assert_array_equal(ct_of(series(RescaleType=kind)).voxels, expected_hu())


def test_the_thinner_series_is_used_and_the_other_named(series) -> None:
    series()
    path = series(ks=range(8), prefix="thin", SeriesInstanceUID="1.2.3.4",
                  ImagePositionPatient=lambda k: [0, 0, 1.25 * k])  # fmt: skip
    study = read_study(path)
    assert study.volumes["CT"].series_uid == "1.2.3.4"
    assert any("thicker slices" in note for note in study.notes)


def test_a_thin_series_of_a_small_part_does_not_win(series) -> None:
    series(ks=range(12))
    path = series(ks=range(3), prefix="thin", SeriesInstanceUID="1.2.3.4",
                  ImagePositionPatient=lambda k: [0, 0, 1.0 * k])  # fmt: skip
    assert ct_of(path).voxels.shape == (COLUMNS, ROWS, 12)


def test_two_patients_are_refused(series) -> None:
    series()
    path = series(prefix="b", PatientID="P2", SeriesInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3")
    assert code_of(path) == "dicom-several-patients"


def test_an_issuer_that_only_some_images_name_makes_no_second_patient(series) -> None:
    series(ks=range(2), IssuerOfPatientID="Hospital A")
    path = series(ks=range(2, 4), prefix="t")
    np.testing.assert_array_equal(ct_of(path).voxels, expected_hu())


def test_one_number_of_two_issuers_is_two_patients(series) -> None:
    series(IssuerOfPatientID="Hospital A")
    series(ks=range(2), prefix="t", SeriesInstanceUID="1.2.3.5")
    path = series(prefix="b", IssuerOfPatientID="Hospital B", SeriesInstanceUID="1.2.3.4")
    assert code_of(path) == "dicom-several-patients"


def test_two_examinations_of_one_patient_are_refused(series) -> None:
    series()
    assert code_of(series(prefix="b", SeriesInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3")) == "dicom-several-studies"


def test_a_broken_best_series_is_refused_with_the_way_out(series) -> None:
    series()
    path = series(ks=[0, 1, 2, 4, 5, 6, 7, 8], prefix="thin", SeriesInstanceUID="1.2.3.4",
                  ImagePositionPatient=lambda k: [0, 0, 1.0 * k])  # fmt: skip
    with pytest.raises(InputError, match="one of 1 other series") as refusal:
        read_study(path)
    assert refusal.value.code == "dicom-missing-slice"


def test_a_snippet_does_not_stand_in_for_a_larger_broken_scan(series) -> None:
    """Nine images of which one is doubled, and four good ones: the scan is the nine."""
    series(ks=range(8))
    series(ks=[3], prefix="again")
    path = series(prefix="small", SeriesInstanceUID="1.2.3.4")
    assert code_of(path) == "dicom-duplicate-positions"
    assert ct_of(path, series_uid="1.2.3.4").voxels.shape == (COLUMNS, ROWS, 4)


def test_one_slice_is_no_volume(series) -> None:
    assert code_of(next(series().iterdir())) == "dicom-single-slice"


def test_pictures_and_segmentations_are_no_scan(series) -> None:
    assert code_of(series(Modality="SEG")) == "dicom-no-image"
    assert code_of(series(folder="sc", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")) == "dicom-no-image"


def test_truncated_pixels_are_refused(series) -> None:
    assert code_of(series(PixelData=lambda k: bytes(2 * ROWS * COLUMNS - 8 * (k == 2)))) == "dicom-pixels-damaged"


def test_a_file_cut_short_is_refused(series) -> None:
    path = series()
    last = max(path.iterdir())
    last.write_bytes(last.read_bytes()[:-30])
    assert code_of(path) in ("dicom-pixels-damaged", "dicom-file-damaged")


def test_a_damaged_compressed_slice_is_refused(series) -> None:
    import pydicom

    path = series()
    for file in path.iterdir():
        ds = pydicom.dcmread(file)
        compress(ds, RLELossless, encoding_plugin="pydicom")
        ds.save_as(file)
    last = max(path.iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    assert code_of(path) in ("dicom-pixels-damaged", "dicom-file-damaged")
