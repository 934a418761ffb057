"""The BM-Seg reader: names matched, JPEG masks cut at 127, every bad input told in one line, all at once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from volseg.errors import InputError, UsageError
from volseg.io.bmseg import FOLDERS, check_bmseg, read_bmseg
from volseg.io.pictures import read_mask, read_picture


def picture(seed: int, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def box(shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[8:20, 10:30] = 255
    return mask


@pytest.fixture
def folder(tmp_path):
    """Four slices of two patients, of two sizes."""
    for kind in FOLDERS:
        (tmp_path / kind).mkdir()
    for n, name in enumerate(("a_1", "a_2", "b_1", "b_2")):
        shape = (40, 48) if n < 2 else (64, 56)
        for kind in FOLDERS:
            pixels = picture(n, shape) if kind == "image" else box(shape)
            Image.fromarray(pixels).save(tmp_path / kind / f"{name}.jpg", quality=75)
    (tmp_path / "slices.csv").write_text("slice,patient\na_1,A\na_2.jpg,A\nb_1,B\nb_2,B\n")
    return tmp_path


def only_problem(folder, **options):
    _, report = check_bmseg(folder, **options)
    assert len(report.problems) == 1, report.text
    return report.problems[0]


def test_slices_are_matched_by_name_and_sizes_may_vary(folder):
    found = read_bmseg(folder)
    assert [s.name for s in found.slices] == ["a_1", "a_2", "b_1", "b_2"]
    assert [s.shape for s in found.slices] == [(40, 48), (40, 48), (64, 56), (64, 56)]
    assert found.patients == ("A", "A", "B", "B")
    assert found.slices[2].item()["lesion"].endswith("lesion mask/b_1.jpg")


def test_a_jpeg_mask_is_cut_at_127_and_its_ripples_vanish(folder):
    path = folder / "lesion mask" / "a_1.jpg"
    Image.fromarray(box()).save(path, quality=30)
    assert len(np.unique(read_picture(path))) > 2
    assert np.array_equal(read_mask(path), box() > 0)


def test_127_is_outside_and_128_inside(tmp_path):
    mask = np.zeros((40, 48), np.uint8)
    mask[0, :3] = 127, 128, 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png")[0, :4].tolist() == [False, True, True, False]


def test_an_empty_mask_is_a_slice_without_lesion(folder):
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(folder / "lesion mask" / "a_1.jpg")
    assert not read_mask(read_bmseg(folder).slices[0].lesion).any()


def test_folder_names_may_differ_in_case_and_underscores(folder):
    (folder / "image").rename(folder / "Images")
    (folder / "bone mask").rename(folder / "bone_masks")
    assert len(read_bmseg(folder).slices) == 4


def test_a_coloured_jpeg_is_refused(folder):
    Image.fromarray(np.dstack([picture(9), picture(9), picture(8)])).save(folder / "image" / "a_1.jpg")
    problem = only_problem(folder)
    assert problem.where == "image/a_1.jpg" and "colour (RGB)" in problem.message and "export" in problem.message
    assert only_problem(folder, grey_rgb=True).code == "picture-colour"


def test_a_grey_picture_saved_as_rgb_is_refused_unless_it_is_allowed(folder):
    Image.fromarray(np.dstack([box()] * 3)).save(folder / "bone mask" / "b_1.png")
    (folder / "bone mask" / "b_1.jpg").unlink()
    Image.fromarray(np.dstack([picture(2, (40, 48))] * 3)).save(folder / "image" / "b_1.jpg")
    Image.fromarray(box()).save(folder / "lesion mask" / "b_1.jpg")
    _, report = check_bmseg(folder)
    assert [p.where for p in report.problems] == ["image/b_1.jpg", "bone mask/b_1.png"]
    assert all("grey_rgb" in p.message for p in report.problems)
    assert len(read_bmseg(folder, grey_rgb=True).slices) == 4


def test_mask_and_image_of_different_size_are_refused(folder):
    Image.fromarray(box((40, 50))).save(folder / "bone mask" / "a_2.jpg")
    problem = only_problem(folder)
    assert problem.where == "bone mask/a_2.jpg" and "50 x 40 pixels, its image 48 x 40" in problem.message


def test_a_missing_mask_is_refused_and_so_is_a_mask_without_image(folder):
    (folder / "lesion mask" / "a_2.jpg").unlink()
    (folder / "image" / "b_1.jpg").unlink()
    _, report = check_bmseg(folder)
    assert [(p.code, p.where) for p in report.problems] == [
        ("picture-missing", "image/a_2.jpg"),
        ("picture-missing", "bone mask/b_1.jpg"),
    ]
    assert "'lesion mask'" in report.problems[0].message and "'image'" in report.problems[1].message


def test_empty_and_missing_folders_are_refused(folder):
    for path in (folder / "lesion mask").iterdir():
        path.unlink()
    assert only_problem(folder).code == "folder-empty"
    (folder / "lesion mask").rmdir()
    problem = only_problem(folder)
    assert problem.code == "folder-missing" and "'bone mask', 'image'" in problem.message


def test_the_folder_above_is_refused_and_the_right_one_named(folder):
    inner = folder / "BMSeg"
    inner.mkdir()
    for kind in FOLDERS:
        (folder / kind).rename(inner / kind)
    _, report = check_bmseg(folder)
    assert len(report.problems) == 3
    assert all("give BMSeg inside it" in p.message for p in report.problems)


def test_an_unreadable_jpeg_is_refused(folder):
    whole = (folder / "image" / "a_1.jpg").read_bytes()
    (folder / "image" / "a_1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "bone mask" / "b_1.jpg").write_bytes(b"<html>quota exceeded</html>")
    (folder / "lesion mask" / "b_2.jpg").write_bytes(b"")
    _, report = check_bmseg(folder)
    assert [(p.code, p.where) for p in report.problems] == [
        ("picture-unreadable", "image/a_1.jpg"),
        ("picture-unreadable", "bone mask/b_1.jpg"),
        ("file-empty", "lesion mask/b_2.jpg"),
    ]
    assert all("copy or export it again" in p.message for p in report.problems)


def test_a_mask_that_is_none_is_refused(folder):
    Image.fromarray(box() // 255).save(folder / "lesion mask" / "a_1.png")
    (folder / "lesion mask" / "a_1.jpg").unlink()
    Image.fromarray(picture(1)).save(folder / "bone mask" / "a_2.jpg")
    _, report = check_bmseg(folder)
    assert ["no value above 1" in report.problems[0].message, "wrong folder" in report.problems[1].message] == [
        True
    ] * 2
    assert {p.code for p in report.problems} == {"picture-not-a-mask"}


def test_all_problems_are_listed_at_once_one_line_each(folder):
    (folder / "image" / "a_1.jpg").write_bytes(b"no")
    (folder / "lesion mask" / "a_2.jpg").unlink()
    Image.fromarray(box((9, 9))).save(folder / "bone mask" / "b_1.jpg")
    Image.fromarray(np.dstack([picture(9, (64, 56))] * 3)).save(folder / "image" / "b_2.jpg")
    found, report = check_bmseg(folder)
    assert found.slices == () and len(report.problems) == 4
    lines = report.text.splitlines()
    assert len(lines) == 5
    for name in ("a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"):
        assert sum(name in line for line in lines) == 1
    with pytest.raises(InputError, match="cohort-refused: 4 problems") as refusal:
        read_bmseg(folder)
    assert "\n" not in str(refusal.value)


def test_without_owners_the_slices_are_read_and_a_note_says_what_is_lost(folder):
    (folder / "slices.csv").unlink()
    found, report = check_bmseg(folder)
    assert found.patients == ("",) * 4 and report.ok
    assert any("no split by patient" in note for note in report.notes)


def test_a_pattern_finds_patients_in_names(folder):
    (folder / "slices.csv").unlink()
    assert read_bmseg(folder, pattern=r"^([a-z]+)_").patients == ("a", "a", "b", "b")
    assert "the slice's number" in only_problem(folder, pattern=r"^(.+)$").message
    assert "2 of 4 names" in only_problem(folder, pattern=r"^(a)_").message
    with pytest.raises(UsageError, match="one group"):
        check_bmseg(folder, pattern="^a_")
    with pytest.raises(UsageError, match="no regular expression"):
        check_bmseg(folder, pattern="(")


def test_owners_that_are_missing_or_contradict_are_refused(folder):
    (folder / "slices.csv").write_text("slice;patient\na_1;A\na_1;B\na_2;A\nb_1;B\n")
    _, report = check_bmseg(folder)
    assert [p.code for p in report.problems] == ["patient-twice", "patient-unknown"]
    assert "1 of 4 slices, the first b_2" in report.problems[1].message
    (folder / "slices.csv").write_text("name,who\na_1,A\n")
    assert only_problem(folder).code == "column-missing"


def test_one_picture_in_two_patients_is_a_leak(folder):
    Image.fromarray(picture(5)).save(folder / "image" / "a_1.png")
    Image.fromarray(picture(5)).save(folder / "image" / "b_1.png")
    for name in ("a_1", "b_1"):
        (folder / "image" / f"{name}.jpg").unlink()
        for kind in FOLDERS[1:]:
            Image.fromarray(box()).save(folder / kind / f"{name}.jpg")
    problem = only_problem(folder)
    assert problem.code == "image-twice" and "patients A, B" in problem.message
    (folder / "slices.csv").unlink()
    assert any("same picture" in note for note in check_bmseg(folder)[1].notes)


def test_a_file_where_a_folder_is_due_is_refused(folder):
    with pytest.raises(InputError, match="not-a-folder"):
        check_bmseg(folder / "slices.csv")
