"""Lesions grown in the MRI of an examination, where a mask says the marrow is."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from volseg.cli import main
from volseg.errors import InputError
from volseg.geometry import ras_mm_to_voxel
from volseg.inference.datasets import listed_cases
from volseg.io import write_nifti
from volseg.phantoms.mri import MriOptions, mri_phantom
from volseg.phantoms.mri_signal import CONTRAST
from volseg.synth_mri import MarrowMask, MriSynthOptions, grow_mri_case, grow_mri_lesions, write_grown_mri
from volseg.types import Study, Volume

CHANNELS = ("T1", "T2")


@pytest.fixture(scope="module")
def healthy():
    """A phantom without lesions stands for a healthy examination: two sequences on two grids, and a bone mask."""
    options = MriOptions(
        channels=CHANNELS, lesions=0, bias=0.0, noise=0.02, motion_mm=0.0, motion_degrees=0.0,
        size_mm=(64.0, 120.0, 90.0), spacing_mm=(3.0, 1.2, 1.2),
    )  # fmt: skip
    phantom = mri_phantom(np.random.default_rng(5), options)
    affine = phantom.volumes["T1"].affine
    return Study("somebody", phantom.volumes), Volume(phantom.bone.astype(np.uint8), affine), phantom


def test_lesions_lie_in_the_mask_and_contrast_with_marrow_in_every_sequence(healthy):
    study, mask, phantom = healthy
    volumes, instances, lesions = grow_mri_lesions(
        study.volumes, MarrowMask.of(mask), n=3, rng=np.random.default_rng(2), diameters_mm=(16.0, 24.0)
    )
    assert len(lesions) >= 2 and instances.max() == len(lesions)
    assert np.mean(mask.voxels[instances > 0]) > 0.95
    for lesion in lesions:
        here = instances == lesion.id
        assert lesion.volume_mm3 == pytest.approx(here.sum() * 3.0 * 1.2 * 1.2)
        marrow = phantom.marrow & (instances == 0)
        before, after = (np.median(v["T1"].voxels[here]) for v in (study.volumes, volumes))
        level = np.median(study.volumes["T1"].voxels[marrow])
        assert after < before
        assert after / level == pytest.approx(1 + lesion.contrasts["T1"], abs=0.25)
        low, high = CONTRAST[lesion.kind]["T2"][2:]
        assert low <= lesion.contrasts["T2"] <= high
        # The same place in mm, though T2 has another grid.
        second = volumes["T2"]
        i, j, k = np.rint(ras_mm_to_voxel(second.affine, lesion.center_ras_mm)).astype(int)
        change = second.voxels[i, j, k] - study.volumes["T2"].voxels[i, j, k]
        assert np.sign(change) == np.sign(lesion.contrasts["T2"])


def test_nothing_changes_away_from_the_lesions(healthy):
    study, mask, _ = healthy
    volumes, instances, _ = grow_mri_lesions(study.volumes, MarrowMask.of(mask), n=2, rng=np.random.default_rng(3))
    changed = volumes["T1"].voxels != study.volumes["T1"].voxels
    assert changed[instances > 0].mean() > 0.9
    assert 0 < changed.mean() < 0.2 and not changed[mask.voxels == 0].all()


def test_a_sequence_that_only_grazes_the_bone_keeps_its_picture():
    """A neighbouring stack may end at the bone's surface: a lesion's rim shows there and no marrow at all."""
    mm = np.stack(np.meshgrid(*[np.arange(-24.0, 24.0)] * 3, indexing="ij"))
    affine = np.array([[1, 0, 0, -24], [0, 1, 0, -24], [0, 0, 1, -24], [0, 0, 0, 1]], float)
    mask = Volume((np.abs(mm) < 15).all(axis=0).astype(np.uint8), affine, "T1")
    rng = np.random.default_rng(0)
    t1 = Volume(rng.normal(400, 10, mask.voxels.shape).astype(np.float32), affine, "T1")
    beside = np.diag([1.5, 1.5, 4.0, 1.0])
    beside[:3, 3] = -17, -17, -30.7  # its last slice lies at -14.7 mm
    t2 = Volume(rng.normal(400, 10, (24, 24, 5)).astype(np.float32), beside, "T2")
    for seed in range(4):
        volumes, _, _ = grow_mri_lesions(
            {"T1": t1, "T2": t2}, MarrowMask.of(mask), n=2, rng=np.random.default_rng(seed), diameters_mm=(14.0, 20.0)
        )
        assert np.isfinite(volumes["T2"].voxels).all()


def test_the_same_seed_gives_the_same_case_and_another_number_another(healthy):
    study, mask, _ = healthy
    marrow, options = MarrowMask.of(mask), MriSynthOptions(seed=8, healthy=0.0, lesions=(1, 2))
    a, b, c = (grow_mri_case(study, marrow, options, n) for n in (0, 0, 1))
    assert np.array_equal(a.volumes["T1"].voxels, b.volumes["T1"].voxels) and np.array_equal(a.instances, b.instances)
    assert not np.array_equal(a.instances, c.instances)
    assert a.volumes["T1"].voxels.dtype == np.int16


def test_fractions_are_scaled_to_counts(healthy):
    study, mask, _ = healthy
    small = Study("small", {c: Volume(v.voxels / 1e4, v.affine, c) for c, v in study.volumes.items()})
    case = grow_mri_case(small, MarrowMask.of(mask), MriSynthOptions(healthy=0.999), 1)
    assert np.percentile(case.volumes["T1"].voxels, 99.9) == pytest.approx(2000, rel=0.01)


def test_a_mask_without_vertebrae_or_of_somebody_else_is_refused_in_words(healthy, tmp_path):
    study, mask, _ = healthy
    with pytest.raises(InputError, match=r"marrow-mask-empty: .*its values are 0, 1"):
        MarrowMask.of(mask, {7})
    away = mask.affine.copy()
    away[:3, 3] += 500
    with pytest.raises(InputError, match="marrow-mask-elsewhere"):
        write_grown_mri(study, MarrowMask.of(Volume(mask.voxels, away)), tmp_path / "out", MriSynthOptions(n=1))
    assert not (tmp_path / "out").exists()


def test_cases_of_another_mask_or_examination_are_not_kept_for_these(healthy, tmp_path):
    study, mask, _ = healthy
    options = MriSynthOptions(n=1, healthy=0.0, lesions=(1, 1))
    write_grown_mri(study, MarrowMask.of(mask), tmp_path, options, progress=False)
    write_grown_mri(study, MarrowMask.of(mask), tmp_path, options, progress=False)
    smaller = Volume(mask.voxels * (np.indices(mask.voxels.shape)[2] > 10), mask.affine)
    brighter = Study(study.name, {c: Volume(v.voxels + 1, v.affine, c) for c, v in study.volumes.items()})
    for other, where in ((study, smaller), (brighter, mask)):
        with pytest.raises(InputError, match="cases-of-another: somebody_s0_000 was made from another examination"):
            write_grown_mri(other, MarrowMask.of(where), tmp_path, options, progress=False)
    about = tmp_path / "parameters" / "somebody_s0_000.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps({key: told[key] for key in told if key != "source_sha256"}))
    write_grown_mri(brighter, MarrowMask.of(mask), tmp_path, options, progress=False)  # an older file is believed


def test_the_command_line_grows_them_in_a_folder_of_sequences(healthy, tmp_path, capsys):
    study, mask, _ = healthy
    folder = tmp_path / "patient"
    folder.mkdir()
    for channel, volume in study.volumes.items():
        write_nifti(folder / f"{channel}.nii.gz", volume.voxels, volume.affine, dtype=np.int16)
    write_nifti(tmp_path / "bone.nii.gz", mask.voxels * 3, mask.affine, dtype=np.uint8)
    asked = ["synth", str(folder), "-o", str(tmp_path / "out"), "--n", "2", "--healthy", "0", "--lesions", "2"]
    assert main([*asked, "--marrow", str(tmp_path / "bone.nii.gz"), "--marrow-labels", "2-4"]) == 0
    assert "2 MRI studies" in capsys.readouterr().out
    cases = listed_cases(str(tmp_path / "out"), "training")
    assert [c["image"].rsplit("/", 1)[1] for c in cases] == ["patient_s0_000", "patient_s0_001"]
    listed = json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]
    assert [case["patient"] for case in listed] == ["patient", "patient"]  # one body: one side of every fold
    label = nib.load(cases[0]["label"])
    facts = json.loads((tmp_path / "out" / "parameters" / "patient_s0_000.json").read_text())
    assert facts["synthetic"] is True and facts["source"] == "patient"
    assert len(np.unique(np.asarray(label.dataobj))) - 1 == len(facts["lesions"]) >= 1
    assert main([*asked, "--marrow-labels", "2-4"]) == 2
    assert "--marrow MASK" in capsys.readouterr().err
    bone = str(tmp_path / "bone.nii.gz")
    assert main(["synth", str(folder), "phantom", "-o", str(tmp_path / "o"), "--marrow", bone]) == 2
    assert "give one input" in capsys.readouterr().err
