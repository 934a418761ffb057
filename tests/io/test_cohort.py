"""Cohort files: read whole, every problem named at once, leaks found even in re-saved copies."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volseg.errors import InputError
from volseg.io import write_nifti
from volseg.io.cohort import patient_of, read_cohort, read_patients, with_cases
from volseg.io.cohort_check import as_document, check_cohort, same_grid, voxels_sha256

AFFINE = np.diag([-1.0, -1.5, 2.0, 1.0])
CSV = """patient,site,origin,age,sex,scanner,split
p1,B,lung,61,F,Siemens,training
p2,B,other,,M,,training
p3,A,lung,70.5,female,GE,test
"""


def image(seed: int, shape=(6, 5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    """Three patients, four images: a cohort without a fault."""
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "patients.csv").write_text(CSV)
    document = {"labels": {"0": "background", "1": "lesion"}, "training": [], "testing": []}
    for n, (name, section) in enumerate(
        [("p1_a", "training"), ("p1_b", "training"), ("p2", "training"), ("p3", "testing")]
    ):
        write_nifti(tmp_path / f"imagesTr/{name}.nii.gz", image(n), AFFINE, dtype=np.int16)
        label = np.zeros((6, 5, 4), np.uint8)
        label[1:3, 1:3, n % 4] = 1
        write_nifti(tmp_path / f"labelsTr/{name}.nii.gz", label, AFFINE, dtype=np.uint8)
        document[section].append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    return tmp_path


def edit(folder, change):
    path = folder / "datalist.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def codes(folder) -> list[str]:
    return sorted(p.code for p in check_cohort(folder)[1].problems)


def test_a_cohort_without_fault_is_read_whole(folder):
    cohort, report = check_cohort(folder)
    assert report.ok and (report.n_cases, report.n_patients) == (4, 3)
    assert [c.patient for c in cohort.cases] == ["p1", "p1", "p2", "p3"]
    p3 = cohort.patients["p3"]
    assert (p3.site, p3.age, p3.sex, p3.split, cohort.patients["p2"].age) == ("A", 70.5, "F", "testing", None)
    assert cohort.cases[0].name == "p1_a" and cohort.label_values == {0, 1}
    assert "no problem found" in report.text
    report.refuse_if_bad()


def test_everything_wrong_is_listed_at_once(folder):
    (folder / "imagesTr/p2.nii.gz").unlink()
    (folder / "labelsTr/p1_b.nii.gz").write_bytes(b"no image")
    fractions = np.full((6, 5, 4), 0.5, np.float32)
    fractions[0] = 0
    write_nifti(folder / "labelsTr/p3.nii.gz", fractions, AFFINE, dtype=np.float32)
    shifted = AFFINE.copy()
    shifted[0, 3] = 1.0
    label = np.zeros((6, 5, 4), np.uint8)
    label[0, 0, 0] = 7
    write_nifti(folder / "labelsTr/p1_a.nii.gz", label, shifted, dtype=np.uint8)
    edit(folder, lambda d: d["training"].append({"image": "imagesTr/stranger.nii.gz"}))
    report = check_cohort(folder)[1]
    assert sorted(p.code for p in report.problems) == [
        "file-missing", "file-missing", "grid-differs", "label-not-whole", "label-undeclared", "nifti-not-gzip",
        "patient-unknown",
    ]  # fmt: skip
    assert (
        "grid-differs: labelsTr/p1_a.nii.gz: not on its image's grid: the same shape, but a corner lies 1 mm off"
        in (report.text)
    )
    with pytest.raises(InputError, match=r"7 problems: .*; and 4 more") as refusal:
        report.refuse_if_bad()
    assert refusal.value.code == "cohort-refused" and "\n" not in str(refusal.value)
    json.dumps(as_document(report))


def test_a_patient_in_two_splits_or_folds_is_found(folder):
    edit(folder, lambda d: d["testing"].append(d["training"].pop(1)))
    assert codes(folder) == ["patient-in-two-splits", "split-contradicts"]
    edit(folder, lambda d: d["training"].append(d["testing"].pop(1) | {"fold": 1}) or d["training"][0].update(fold=0))
    assert codes(folder) == ["patient-in-two-folds"]


@pytest.mark.parametrize("disguise", ["renamed", "uncompressed float", "turned"])
def test_a_resaved_copy_under_another_name_is_found(folder, disguise):
    voxels, affine, name = image(0), AFFINE, "imagesTr/p3.nii.gz"
    if disguise == "turned":  # flipped and permuted, the affine with it: the same image on the same patient
        voxels, affine = voxels[::-1].transpose(2, 0, 1), affine.copy()
        affine[:3, 3] += affine[:3, 0] * 5
        affine[:, 0] *= -1
        affine[:3, :3] = affine[:3, [2, 0, 1]]
    if disguise == "uncompressed float":
        name = "imagesTr/p3.nii"
        voxels = voxels.astype(np.float32)
        edit(folder, lambda d: d["testing"][0].update(image=name, label=None))
    else:
        edit(folder, lambda d: d["testing"][0].update(label=None))
    write_nifti(folder / name, voxels, affine, dtype=np.float32 if voxels.dtype == np.float32 else np.int16)
    assert codes(folder) == ["image-in-two-splits"]


def test_the_same_image_twice_in_one_split_is_told_too(folder):
    write_nifti(folder / "imagesTr/p2.nii.gz", image(0), AFFINE, dtype=np.int16)
    assert codes(folder) == ["image-twice"]


def test_the_hash_sees_one_voxel_and_no_storage():
    voxels = image(3)
    assert voxels_sha256(voxels, AFFINE) == voxels_sha256(voxels.astype(np.float64), AFFINE)
    changed = voxels.copy()
    changed[2, 2, 2] += 1
    assert voxels_sha256(changed, AFFINE) != voxels_sha256(voxels, AFFINE)
    assert voxels_sha256(voxels.reshape(5, 6, 4), AFFINE) != voxels_sha256(voxels, AFFINE)
    assert voxels_sha256(voxels + 0.25, AFFINE) != voxels_sha256(voxels, AFFINE)


def test_a_second_check_reads_only_what_changed(folder, tmp_path, monkeypatch):
    from volseg.io import cohort_check

    read = []
    real = cohort_check.read_volume
    monkeypatch.setattr(cohort_check, "read_volume", lambda path: (read.append(path.name), real(path))[1])
    ticks = []
    check_cohort(folder, cache=tmp_path / "cache.json", tick=lambda done, total: ticks.append((done, total)))
    assert len(read) == 8 and ticks[-1] == (8, 8)
    write_nifti(folder / "imagesTr/p2.nii.gz", image(99, (6, 5, 3)), AFFINE, dtype=np.int16)
    report = check_cohort(folder, cache=tmp_path / "cache.json")[1]
    assert read[8:] == ["p2.nii.gz"] and [p.code for p in report.problems] == ["grid-differs"]
    (tmp_path / "cache.json").write_text("not json")
    assert len(check_cohort(folder, cache=tmp_path / "cache.json")[1].problems) == 1


def test_instances_are_allowed_where_the_datalist_numbers_them(folder):
    edit(folder, lambda d: d.update(labels={"0": "background", "1...": "lesion instances"}))
    label = np.zeros((6, 5, 4), np.uint16)
    label[0, 0, 0] = 900
    write_nifti(folder / "labelsTr/p2.nii.gz", label, AFFINE, dtype=np.uint16)
    assert codes(folder) == []
    write_nifti(folder / "labelsTr/p2.nii.gz", label.astype(np.int16) - 1, AFFINE, dtype=np.int16)
    assert codes(folder) == ["label-negative"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("patient;site;age\np1;B;60,5\n", []),
        ("name,site\nx,B\n", ["column-missing"]),
        ("patient,site\n", ["no-patients"]),
        ("patient,site,age,sex,split\np,B,old,x,somewhere\n", ["age-wrong", "sex-wrong", "split-wrong"]),
        ("patient,site\np,B\np,A\n,B\nq,\n", ["patient-twice", "patient-unnamed", "site-missing"]),
        ("patient,site,age, Site \np,B,60,A\n", ["column-twice"]),
        ("patient,site,age\np\n", ["site-missing"]),
        ("patient,site,age,scanner\nP00,A,50,5,GE\n", ["row-too-long"]),
        ('patient,site,age\n,A,50,5\np,A,"50,5"\n', ["row-too-long"]),
        ("patient,site,age\np,A,60,,\n,,\n , \n", []),
        ("patient,site,origin\np,A,pulmonary\nq,A,NSCLC\nr,A,Bronchus\ns,A,not lung\n", ["origin-wrong"] * 4),
    ],
)
def test_every_line_of_a_patients_file_is_judged(tmp_path, text, expected):
    (tmp_path / "patients.csv").write_text("\ufeff" + text)
    assert [p.code for p in read_patients(tmp_path / "patients.csv")[1]] == expected


def test_a_line_with_cells_too_many_is_named_with_its_last(tmp_path):
    """An unquoted decimal comma moves what is behind it: 5 would be the scanner, and GE nothing."""
    (tmp_path / "patients.csv").write_text("patient,site,age,scanner\nP00,A,50,5,GE,\n")
    (problem,) = read_patients(tmp_path / "patients.csv")[1]
    assert str(problem).startswith("patients.csv line 2: 5 cells under 4 columns, the last GE; ")


def test_lines_without_any_cell_are_none_and_a_line_without_a_patient_says_so(tmp_path):
    (tmp_path / "patients.csv").write_text("site,patient\n,\nA,\n;\n")
    problems = read_patients(tmp_path / "patients.csv")[1]
    assert str(problems[0]) == "patients.csv line 3: no patient"


@pytest.mark.parametrize(
    ("written", "origin"),
    [("Lung", "lung"), ("Breast", "breast")]
    + [(word, "") for word in ("", "Unknown", "CUP", "not recorded", "None", "N/A")],
)
def test_an_origin_is_lung_or_another_organ_or_not_known(tmp_path, written, origin):
    (tmp_path / "patients.csv").write_text(f"patient,site,origin\np,A,{written}\n")
    known, problems = read_patients(tmp_path / "patients.csv")
    assert problems == [] and known["p"].origin == origin


def test_a_lung_in_other_words_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "patients.csv").write_text("patient,site,origin\np,A,Lung cancer\n")
    (problem,) = read_patients(tmp_path / "patients.csv")[1]
    assert "patient p: origin Lung cancer; write lung, or the other organ's name" in str(problem)


@pytest.mark.parametrize("header", ["patient,site,note,note,origin,age", "patient,site,,,origin,age"])
def test_columns_without_a_meaning_shift_nothing(tmp_path, header):
    (tmp_path / "patients.csv").write_text(f"{header}\np1,A,x,y,lung,63,\n\np2,B,,,breast\n")
    known, problems = read_patients(tmp_path / "patients.csv")
    assert problems == []
    assert [(p.site, p.origin, p.age) for p in known.values()] == [("A", "lung", 63), ("B", "breast", None)]


def test_an_image_stands_in_one_section_of_a_datalist(tmp_path, caplog):
    path = tmp_path / "datalist.json"
    a, b, c = ({"image": f"imagesTr/{n}.nii.gz", "patient": n} for n in "abc")
    document = with_cases(path, "training", [a, b], {"name": "cases"})
    assert document == {"name": "cases", "training": [a, b]} and not caplog.messages
    path.write_text(json.dumps(document))
    document = with_cases(path, "testing", [b, c], {"name": "other"})
    assert document == {"name": "cases", "training": [a], "testing": [b, c]}
    assert len(caplog.messages) == 1 and "1 cases" in caplog.messages[0] and "'training'" in caplog.messages[0]


def test_what_a_datalist_says_of_a_case_stays_and_what_it_lacks_is_added(tmp_path):
    path = tmp_path / "datalist.json"
    old = [{"image": "a.nii.gz", "label": "l.nii.gz", "fold": 2}, {"image": "b.nii.gz", "patient": "by hand"}]
    path.write_text(json.dumps({"training": [*old, {"image": "z.nii.gz"}]}))
    new = [{"image": f"{n}.nii.gz", "label": "l.nii.gz", "patient": n} for n in "abc"]
    listed = with_cases(path, "training", new, {})["training"]
    assert [(case["image"][0], case.get("patient"), case.get("fold")) for case in listed] == [
        ("a", "a", 2), ("b", "by hand", None), ("z", None, None), ("c", "c", None),
    ]  # fmt: skip


def test_files_that_are_no_cohort_are_refused_in_words(tmp_path):
    (tmp_path / "patients.csv").write_text("patient,site\np,B\n")
    for content, code in (("{", "datalist-unreadable"), ("[]", "datalist-unreadable")):
        (tmp_path / "datalist.json").write_text(content)
        with pytest.raises(InputError, match=code):
            read_cohort(tmp_path)
    (tmp_path / "datalist.json").write_text('{"training": [{"img": "x"}, {"image": "p.nii", "label": 3}]}')
    assert [p.code for p in read_cohort(tmp_path)[1]] == ["case-unreadable", "case-unreadable", "no-cases"]
    (tmp_path / "patients.csv").unlink()
    with pytest.raises(InputError, match=r"patients\.csv: no such file"):
        read_cohort(tmp_path)


def test_a_file_belongs_to_the_longest_patient_name_it_starts_with():
    patients = ["p1", "p10", "p1_left"]
    assert [patient_of(name, patients) for name in ("p1", "p1_s0_003", "p10-x", "p1_left_2", "p100", "q")] == [
        "p1", "p1", "p10", "p1_left", None, None,
    ]  # fmt: skip


def test_grids_are_compared_at_their_corners():
    turned = AFFINE.copy()
    turned[0, 1] = 0.01  # a slight shear: unseen at the first voxel, 0.5 mm off at the fiftieth
    assert same_grid((5, 5, 5), AFFINE, (5, 5, 5), turned) == ""
    assert "0.5 mm off" in same_grid((5, 51, 5), AFFINE, (5, 51, 5), turned)
    assert same_grid((5, 5, 5), AFFINE, (5, 5, 6), AFFINE) == "5 x 5 x 6 voxels against 5 x 5 x 5"
