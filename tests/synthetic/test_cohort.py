"""A site's patients on disk: accepted by the cohort check, the same again, resumed, appended to, refused in words."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from volseg.cli import main
from volseg.errors import InputError, UsageError
from volseg.inference.datasets import listed_cases
from volseg.io import write_nifti
from volseg.io.cohort_check import check_cohort
from volseg.synthetic import SITES, CohortOptions, write_cohort
from volseg.synthetic.patients import painting_rng
from volseg.synthetic.scan import scanned
from volseg.synthetic.sites import write_sites
from volseg.transforms.synthesis_scanner import Scanner
from volseg.types import Volume

SMALL = CohortOptions(patients=3, seed=7, lesions=(1, 2), distractors=(0, 1), phantom_mm=(70.0, 80.0, 60.0))
# Coarse, so that phantoms are quick; every patient has lesions.
B = replace(SITES["B"], spacing_mm=(1.3, 1.3, 1.3), lesion_prevalence=1.0)
A = replace(SITES["A"], spacing_mm=(1.3, 1.3, 2.6), noise_hu=(40.0, 40.0))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(B, {}, folder, SMALL, progress=False)
    write_cohort(A, {}, folder, replace(SMALL, patients=2, section="testing"), progress=False)
    return folder


def array(path):
    return np.asarray(nib.load(path).dataobj)


def patients(folder):
    return list(csv.DictReader((folder / "patients.csv").read_text().splitlines()))


def test_two_sites_in_one_folder_pass_the_cohort_check(cohort):
    known, report = check_cohort(cohort)
    assert report.ok, report.text
    assert {p.site for p in known.patients.values()} == {"A", "B"}
    assert [len([c for c in known.cases if c.section == s]) for s in ("training", "testing")] == [3, 2]
    assert len(listed_cases(str(cohort), "training")) == 3, "what the bundles read has no field that is no file"


def test_masks_parameters_and_lists_tell_one_story(cohort):
    rows = {row["patient"]: row for row in patients(cohort)}
    for path in sorted((cohort / "parameters").iterdir()):
        told = json.loads(path.read_text())
        label = array(cohort / "labelsTr" / f"{told['case']}.nii.gz")
        assert set(np.unique(label)) - {0} == {lesion["id"] for lesion in told["lesions"]}
        assert len(told["lesions"]) <= len(told["planned"]["lesions"])
        assert rows[told["case"]]["origin"] == told["origin"] and told["synthetic"] is True
        affine = nib.load(cohort / "imagesTr" / f"{told['case']}.nii.gz").affine
        for lesion in told["lesions"]:
            voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
            assert lesion["volume_mm3"] == pytest.approx((label == lesion["id"]).sum() * voxel_mm3)
            middle = affine[:3, :3] @ np.argwhere(label == lesion["id"]).mean(0) + affine[:3, 3]
            assert np.linalg.norm(middle - lesion["center_ras_mm"]) < 2.0, "the mask lies where the lesion grew"


def test_each_site_has_its_own_voxels_and_noise(cohort):
    spacing = {name: nib.load(next((cohort / "imagesTr").glob(f"{name}_*"))).header.get_zooms() for name in "AB"}
    assert np.allclose(spacing["A"], (1.3, 1.3, 2.6)) and np.allclose(spacing["B"], (1.3, 1.3, 1.3))


def test_the_same_seed_gives_the_same_voxels_and_a_lost_file_comes_back(cohort, tmp_path):
    again = write_cohort(B, {}, tmp_path, SMALL, progress=False)
    for path in again:
        assert np.array_equal(array(path), array(cohort / "imagesTr" / path.name))
    label = tmp_path / "labelsTr" / again[1].name
    kept, lost = again[0].stat().st_mtime_ns, array(label)
    label.unlink()
    write_cohort(B, {}, tmp_path, replace(SMALL, patients=4), progress=False)
    assert np.array_equal(array(label), lost) and again[0].stat().st_mtime_ns == kept
    assert len(patients(tmp_path)) == 4, "more patients are appended"
    assert len(json.loads((tmp_path / "datalist.json").read_text())["training"]) == 4


def test_a_patient_made_otherwise_is_not_passed_off_as_this_one(cohort):
    with pytest.raises(UsageError, match="other options"):
        write_cohort(replace(B, noise_hu=(1.0, 1.0)), {}, cohort, SMALL, progress=False)


def test_damaged_lists_are_refused(tmp_path):
    (tmp_path / "patients.csv").write_text("who,where\nx,y\n")
    with pytest.raises(InputError, match="remove it to list") as error:
        write_cohort(B, {}, tmp_path, SMALL, progress=False)
    assert error.value.code == "cohort-damaged"


@pytest.fixture
def ct(tmp_path_factory, bone_block):
    hu, affine, lesion = bone_block
    folder = tmp_path_factory.mktemp("cts")
    noise = np.random.default_rng(5).normal(0, 15, hu.shape)
    voxels = (np.where(lesion, 150, hu) + np.rint(noise)).astype(np.int16)
    write_nifti(folder / "healthy.nii.gz", voxels, affine, dtype=np.int16)
    return folder


def test_a_real_ct_serves_one_site_only_unless_said_otherwise(ct, tmp_path):
    write_sites(tmp_path / "sites.json", {"B": replace(B, lesion_prevalence=0.5), "A": A})
    base = ["synth", "cohort", "--site-file", str(tmp_path / "sites.json"), "--ct", str(ct), "-o", str(tmp_path / "c"),
            "--lesions", "1-2", "--distractors", "0"]  # fmt: skip
    assert main([*base, "--site", "B", "--patients", "2", "--seed", "1"]) == 0
    assert [row["source"] for row in patients(tmp_path / "c")] == ["healthy", "healthy"]
    assert main([*base, "--site", "A", "--patients", "1", "--seed", "1"]) == 2
    assert main([*base, "--site", "A", "--patients", "1", "--seed", "1", "--share-ct"]) == 0
    assert main(["validate", "--check", "--data", str(tmp_path / "c"), "-o", str(tmp_path / "check")]) == 0


def test_a_real_ct_serves_one_section_only_unless_said_otherwise(ct, tmp_path):
    cts, few = {"healthy": ct / "healthy.nii.gz"}, replace(SMALL, patients=2, distractors=(0, 0))
    write_cohort(B, cts, tmp_path, few, progress=False)
    more = replace(few, patients=1, seed=8, section="validation")
    with pytest.raises(UsageError, match=r"ct-shared: CT healthy .* B under 'training' .* 'validation'.*--share-ct "):
        write_cohort(B, cts, tmp_path, more, progress=False)
    assert not list((tmp_path / "imagesTr").glob("B_s8*"))
    write_cohort(B, cts, tmp_path, more, share_cts=True, progress=False)


def test_patients_are_moved_to_another_section_together_only(ct, tmp_path):
    cts, few = {"healthy": ct / "healthy.nii.gz"}, replace(SMALL, patients=2, distractors=(0, 0))
    write_cohort(B, cts, tmp_path, few, progress=False)
    write_cohort(B, cts, tmp_path, replace(few, section="testing"), progress=False)
    assert {row["split"] for row in patients(tmp_path)} == {"testing"}
    with pytest.raises(UsageError, match="ct-shared"):  # the second one would stay behind
        write_cohort(B, cts, tmp_path, replace(few, patients=1), progress=False)


def test_a_patient_of_another_ct_of_that_name_is_not_kept(ct, tmp_path):
    cts, one = {"healthy": ct / "healthy.nii.gz"}, replace(SMALL, patients=1, distractors=(0, 0))
    (image,) = write_cohort(B, cts, tmp_path, one, progress=False)
    about = tmp_path / "parameters" / f"{image.name.removesuffix('.nii.gz')}.json"
    told = json.loads(about.read_text())
    volume = nib.load(ct / "healthy.nii.gz")
    write_nifti(ct / "healthy.nii.gz", np.asarray(volume.dataobj) + np.int16(1), volume.affine, dtype=np.int16)
    with pytest.raises(UsageError, match=r"cohort-differs: .* made in another CT of the name healthy"):
        write_cohort(B, cts, tmp_path, one, progress=False)
    about.write_text(json.dumps({key: value for key, value in told.items() if key != "source_sha256"}))
    assert write_cohort(B, cts, tmp_path, one, progress=False) == [image], "what an older volseg did not write"


def scanner(blur_mm, noise_hu):
    grain = np.random.default_rng(0).standard_normal((64, 64, 64)).astype(np.float32)
    return Scanner(blur_mm=(blur_mm,) * 3, noise_hu=noise_hu, grain=grain, grain_residual=1.0)


def test_flat_tissue_gets_the_noise_that_was_asked_for():
    rng = painting_rng(SITES["A"], SMALL, 0)
    flat = Volume(np.rint(np.random.default_rng(1).normal(40, 6, (60, 60, 60))).astype(np.int16), np.eye(4))
    for wanted in (12.0, 30.0):
        seen, _, _ = scanned(flat, np.zeros(flat.voxels.shape, np.uint16), scanner(0.3, 6.0), A, wanted, rng)
        assert seen.voxels[3:-3, 3:-3, 3:-3].std() == pytest.approx(wanted, rel=0.06)


def test_an_edge_is_as_soft_as_the_site_says_and_a_softer_source_is_not_sharpened():
    step = np.zeros((80, 12, 12), np.int16)
    step[40:] = 1000
    site = replace(A, spacing_mm=(0.5, 0.5, 0.5), blur_mm=(1.5, 1.5), grain_mm=0.5)
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    for own_mm, expected_mm in ((0.3, 1.5), (2.0, 2.0)):
        soft = ndimage.gaussian_filter(step.astype(np.float32), own_mm / 0.5).astype(np.int16)
        seen, _, _ = scanned(Volume(soft, affine), np.zeros(step.shape, np.uint16), scanner(own_mm, 0.0), site, 0.0,
                             np.random.default_rng(0))  # fmt: skip
        slope = np.diff(seen.voxels[:, 6, 6].astype(float)).max() / 0.5
        assert 1000 / (np.sqrt(2 * np.pi) * slope) == pytest.approx(expected_mm, rel=0.05)


def test_a_lesion_keeps_its_place_and_volume_on_a_coarser_grid():
    truth = np.zeros((48, 48, 48), np.uint16)
    truth[10:30, 12:32, 14:34] = 1
    truth[40, 40, 40] = 2  # one fine voxel: cannot be seen at 2.6 mm
    affine = np.diag([1.3, 1.3, 1.3, 1.0])
    affine[:3, 3] = (5, -7, 11)
    seen, sampled, kept = scanned(
        Volume(np.zeros(truth.shape, np.int16), affine), truth, scanner(0.5, 0.0), A, 0.0, np.random.default_rng(0)
    )
    assert kept.tolist() == [1] and sampled.max() == 1
    assert (sampled == 1).sum() * 1.3 * 1.3 * 2.6 == pytest.approx(20**3 * 1.3**3, rel=0.01)
    fine = affine[:3, :3] @ np.argwhere(truth == 1).mean(0) + affine[:3, 3]
    coarse = seen.affine[:3, :3] @ np.argwhere(sampled == 1).mean(0) + seen.affine[:3, 3]
    assert np.abs(fine - coarse).max() < 0.7
