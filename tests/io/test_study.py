"""The reception: names, folders, zips. What cannot be read is said in one line; what is odd is said in the notes."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from volseg.errors import InputError, UsageError
from volseg.io import read_study
from volseg.io.files import safe_name, shown, stem_of


def code_of(path: Path) -> str:
    with pytest.raises(InputError) as refusal:
        read_study(path)
    assert "\n" not in refusal.value.message
    return refusal.value.code


def zip_of(folder: Path, target: Path, **names: bytes) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, file in enumerate(sorted(folder.iterdir())):
            archive.write(file, f"study/series/{n}")
        for name, content in names.items():
            archive.writestr(name, content)
    return target


def test_a_zip_is_read_like_its_folder_and_cleaned_up(series, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    folder = series()
    study = read_study(zip_of(folder, tmp_path / "case 7.zip"))
    np.testing.assert_array_equal(study.volumes["CT"].voxels, read_study(folder).volumes["CT"].voxels)
    assert not any((tmp_path / "t").iterdir())


@pytest.mark.parametrize("member", ["../../evil", "/etc/evil", "a\\..\\..\\evil"])
def test_a_zip_whose_names_lead_out_is_refused(series, tmp_path, member) -> None:
    assert code_of(zip_of(series(), tmp_path / "slip.zip", **{member: b"x"})) == "zip-unsafe-path"


def test_a_zip_bomb_is_refused(series, tmp_path) -> None:
    assert code_of(zip_of(series(), tmp_path / "bomb.zip", zeros=bytes(100 << 20))) == "zip-too-large"


def test_a_damaged_zip_is_refused(series, tmp_path) -> None:
    path = zip_of(series(), tmp_path / "cut.zip")
    raw = bytearray(path.read_bytes())
    path.write_bytes(raw[:-30])
    assert code_of(path) == "zip-damaged"
    raw[200] ^= 0xFF
    path.write_bytes(raw)
    assert code_of(path) == "zip-damaged"


def test_a_zip_without_dicom_is_refused(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello, this is a text of some length")
    assert code_of(tmp_path / "a.zip") == "dicom-none-found"


def test_other_files_in_a_dicom_folder_are_counted_and_passed_over(series) -> None:
    folder = series(folder="deep/er")
    (folder / "readme.txt").write_text("not an image, but a text")
    (folder / "empty").touch()
    (folder / "._s000").write_bytes(b"\0\5\x16\7")
    os.mkfifo(folder / "pipe")
    study = read_study(folder.parent)
    assert study.volumes["CT"].voxels.shape == (5, 6, 4)
    assert any(note.startswith("3 files are not DICOM") for note in study.notes)


def test_a_folder_of_links_says_why_nothing_was_found(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"somewhere else")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "T1.nii.gz").symlink_to(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=r"no DICOM image in this folder \(0 other files, 1 links that lead out"):
        read_study(folder)


def test_links_out_of_the_folder_are_not_followed(series, tmp_path) -> None:
    series(folder="elsewhere", ks=[4], prefix="x")
    folder = series()
    (folder / "out").symlink_to(tmp_path / "elsewhere" / "x000")
    (folder / "loop").symlink_to(folder / "loop")
    study = read_study(folder)
    assert study.volumes["CT"].voxels.shape == (5, 6, 4)
    assert any("1 links lead out" in note for note in study.notes)


def test_linked_folders_are_named_and_never_followed(series, tmp_path) -> None:
    """Out of the folder: half a study may lie there. Inside: its files are read where they lie, once."""
    series(folder="elsewhere", ks=[4], prefix="x")
    folder = series(folder="study/a").parent
    (folder / "rest").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "a")
    (folder / "a" / "up").symlink_to(folder)
    study = read_study(folder)
    assert study.volumes["CT"].voxels.shape == (5, 6, 4)
    assert any(note.startswith("1 links lead out of the folder") for note in study.notes)
    assert any(note.startswith("2 links to folders inside were not followed") for note in study.notes)


def test_a_folder_that_cannot_be_listed_is_refused_because_half_a_body_would_be_searched(series, monkeypatch) -> None:
    folder = series(folder="study/legs").parent
    series(folder="study/chest", SeriesInstanceUID="1.2.3.4", ks=range(9))
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("chest"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert code_of(folder) == "path-unreadable"


def cut_at(path: Path, keyword: str) -> None:
    """End a file just before an element."""
    import pydicom

    ds = pydicom.dcmread(path)
    kept = pydicom.Dataset({e.tag: e for e in ds if e.tag < pydicom.tag.Tag(keyword)})
    kept.file_meta = ds.file_meta
    pydicom.dcmwrite(path, kept, enforce_file_format=True)


@pytest.mark.parametrize("keyword", ["SpecificCharacterSet", "SOPInstanceUID", "PatientID", "Rows", "Columns"])
def test_an_image_cut_off_inside_its_header_is_refused_because_a_slice_would_be_lost(series, keyword) -> None:
    folder = series()
    cut_at(folder / "s003", keyword)
    assert code_of(folder) == "dicom-file-damaged"


def test_an_image_cut_off_without_preamble_is_refused(series, tmp_path) -> None:
    folder = series()
    bare = (folder / "s003").read_bytes()[132:]
    start = bare.index(b"\x08\x00\x08\x00CS")  # ImageType, the first element of the data set
    (folder / "s003").write_bytes(bare[start : bare.index(b"\x10\x00\x20\x00LO")])
    assert code_of(folder) == "dicom-file-damaged"


def test_objects_without_an_image_are_still_passed_over(series) -> None:
    """A structure set, cut off or not, an index under another name, a binary file that begins as bare DICOM may."""
    folder = series()
    structures = series(ks=[9, 10], prefix="rt", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT",
                        Rows=None, Columns=None, PixelData=None)  # fmt: skip
    cut_at(structures / "rt001", "SOPClassUID")
    index = series(ks=[11], prefix="index", SOPClassUID="1.2.840.10008.1.3.10", Rows=None, Columns=None, PixelData=None)
    cut_at(index / "index000", "SOPClassUID")
    (folder / "counts.bin").write_bytes(bytes([8, 0, 0, 0, 4, 0, 0, 0]) + bytes(200))
    study = read_study(folder)
    assert study.volumes["CT"].voxels.shape == (5, 6, 4)
    assert any(note.startswith("4 DICOM objects hold no image") for note in study.notes)


def test_the_index_of_a_disc_is_refused_with_the_way_out(series) -> None:
    folder = series(SOPClassUID="1.2.840.10008.1.3.10", Rows=None, Columns=None, PixelData=None)
    with pytest.raises(InputError, match="give the folder it lies in"):
        read_study(folder / "s000")


def test_a_refusal_of_a_zip_names_its_member(series, tmp_path) -> None:
    folder = series()
    (folder / "s002").write_bytes((folder / "s002").read_bytes()[:-30])
    with pytest.raises(InputError, match=r"dicom-[a-z-]+: case\.zip: study/series/2: ") as refusal:
        read_study(zip_of(folder, tmp_path / "case.zip"))
    assert refusal.value.code in ("dicom-pixels-damaged", "dicom-file-damaged")


@pytest.mark.parametrize(
    ("member", "told"),
    [("a/IM 7.dcm", "case.zip: a/IM 7.dcm: named .dcm but"), ("note.txt", "case.zip: no DICOM image")],
)
def test_a_refusal_of_a_zip_says_nothing_of_where_it_was_unpacked(member, told, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as archive:
        archive.writestr(member, b"no DICOM at all, whatever its name says, and long enough")
    with pytest.raises(InputError) as refusal:
        read_study(tmp_path / "case.zip")
    assert refusal.value.message.startswith(told)
    assert "volseg-" not in refusal.value.message and "member0" not in refusal.value.message


def test_a_dcm_file_that_is_no_dicom_is_refused_because_a_slice_would_be_lost(series) -> None:
    folder = series()
    (folder / "s999.dcm").touch()
    assert code_of(folder) == "dicom-file-damaged"


def test_an_empty_folder_is_refused(tmp_path) -> None:
    assert code_of(tmp_path) == "dicom-none-found"


def test_an_unknown_format_is_refused_with_what_can_be_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError, match="volseg reads NIfTI") as refusal:
        read_study(tmp_path / "a.txt")
    assert refusal.value.code == "format-unknown"


def test_a_series_that_is_not_there_is_wrong_usage(series) -> None:
    for wanted, code in (("9.9.9", "series-unknown"), ("", "series-unknown")):
        with pytest.raises(UsageError) as refusal:
            read_study(series(), series_uid=wanted)
        assert refusal.value.code == code
        assert refusal.value.exit_code == 2


def test_an_ending_that_fits_two_series_is_wrong_usage(series) -> None:
    series()
    with pytest.raises(UsageError) as refusal:
        read_study(series(prefix="b", SeriesInstanceUID="1.2.3.1"), series_uid=".1")
    assert refusal.value.code == "series-ambiguous"


def test_the_study_is_named_after_its_file_or_folder(series, ct_nifti) -> None:
    assert read_study(series(folder="patient_07")).name == "patient_07"
    assert read_study(ct_nifti("scan.1.nii.gz")).name == "scan.1"
    assert read_study(ct_nifti("scan.1.nii.gz"), name="other").name == "other"


def test_the_source_is_recorded_as_an_absolute_path(ct_nifti, monkeypatch) -> None:
    path = ct_nifti("~scan.nii.gz")
    monkeypatch.chdir(path.parent)
    assert read_study("~scan.nii.gz").source == str(path.resolve())


def test_a_path_that_is_no_text_is_recorded_as_text(ct_nifti, tmp_path) -> None:
    """M\\xfcller is what an old disk's "Müller" looks like to a UTF-8 machine."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    source = read_study(ct_nifti().rename(folder / "ct.nii.gz")).source
    assert source == f"{tmp_path.resolve()}/M\\xfcller/ct.nii.gz" and source.encode()


@pytest.mark.parametrize("name", ["x" * 300 + ".nii.gz", "/".join(["y" * 200] * 30)])
def test_a_name_too_long_for_the_disk_is_a_path_that_is_not_there(tmp_path, name) -> None:
    assert stem_of(tmp_path / name) == name.split("/")[-1].removesuffix(".nii.gz")
    assert code_of(tmp_path / name) == "path-missing"


def test_patient_data_in_headers_never_reaches_the_name_or_the_notes(series) -> None:
    study = read_study(series(PatientID="../../etc", PatientName="Doe^Jane", SeriesDescription="=cmd()<script>"))
    words = " ".join((study.name, *study.notes))
    assert not any(bad in words for bad in ("etc", "Doe", "cmd", "script"))


@pytest.mark.parametrize(
    "text",
    [
        "../../etc/passwd",
        "..",
        "",
        ".hidden",
        "a\nb",
        "a\0b",
        "x" * 5000,
        "con",
        "Schäfer",
        "a b",
        "\udcff\udcfe",
        "1.2.840.1.5.7",
    ],
)
def test_any_text_becomes_a_harmless_unique_folder_name(text, tmp_path) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 64
    assert name.isascii() and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith((".", "-")) and ".." not in name and "1.2.840" not in name
    assert safe_name(text + "!") != name
    (tmp_path / name).mkdir()


def test_good_names_stay_as_they_are() -> None:
    for name in ("LIDC-IDRI-0314", "sub-verse004_ct", "1", "example_ct"):
        assert safe_name(name) == name


def test_names_are_shown_on_one_printable_line() -> None:
    line = shown("a\nb\x1b[31m\udcff" + "x" * 200)
    assert line.isprintable() and len(line) <= 80 and line.startswith(r"a\nb\x1b[31m\xff")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_slice_without_permission_is_refused(series) -> None:
    folder = series()
    (folder / "s002").chmod(0)
    assert code_of(folder) == "path-unreadable"
    (folder / "s002").chmod(stat.S_IRUSR)
