"""Synthetic MRI studies on disk, how they are read back as a bundle reads them, and what training does to them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.cli import main
from volseg.errors import InputError
from volseg.inference.datasets import found_studies, listed_cases
from volseg.io.monai_reader import LoadMriStudyd
from volseg.labels import MRI_CHANNELS
from volseg.phantoms.mri import MriOptions, mri_phantom
from volseg.synth_mri import MriSynthOptions, mri_case, phantoms, write_mri_cases
from volseg.transforms.mri_augment import RandSequenceIntensityd

SMALL = {"size_mm": (48.0, 110.0, 70.0), "spacing_mm": (4.0, 1.6, 1.6)}


@pytest.fixture
def small(monkeypatch):
    """Phantoms of a tenth of the size: the walk is the same."""
    monkeypatch.setattr(
        phantoms, "mri_phantom", lambda rng, o: mri_phantom(rng, MriOptions(**SMALL, lesions=o.lesions))
    )


def test_a_case_is_a_folder_of_sequences_with_its_label_on_the_first_grid(small, tmp_path):
    (study,) = write_mri_cases(tmp_path, MriSynthOptions(n=1, seed=4, healthy=0.0), progress=False)
    assert {p.name for p in study.iterdir()} == {f"{channel}.nii.gz" for channel in MRI_CHANNELS}
    label, first = nib.load(tmp_path / "labelsTr" / f"{study.name}.nii.gz"), nib.load(study / "T1.nii.gz")
    assert label.shape == first.shape and np.allclose(label.affine, first.affine)
    parameters = json.loads((tmp_path / "parameters" / f"{study.name}.json").read_text())
    assert parameters["synthetic"] is True
    assert len(parameters["lesions"]) == len(np.unique(np.asarray(label.dataobj))) - 1
    (case,) = listed_cases(str(tmp_path), "training")
    assert case["image"] == str(study.resolve())


def test_a_run_that_was_cut_off_goes_on_and_lists_every_case_once(small, tmp_path):
    options = MriSynthOptions(n=2, seed=4)
    first, _ = write_mri_cases(tmp_path, options, progress=False)
    before = (first / "T1.nii.gz").stat().st_mtime_ns
    (tmp_path / "labelsTr" / "mri_s4_001.nii.gz").unlink()
    write_mri_cases(tmp_path, options, progress=False)
    assert (first / "T1.nii.gz").stat().st_mtime_ns == before
    assert (tmp_path / "labelsTr" / "mri_s4_001.nii.gz").is_file()
    assert len(json.loads((tmp_path / "datalist.json").read_text())["training"]) == 2


def test_cases_made_otherwise_are_not_passed_off_as_these(small, tmp_path):
    write_mri_cases(tmp_path, MriSynthOptions(n=1, seed=4, healthy=0.0), progress=False)
    told = r"cases-of-another: mri_s4_000 was made otherwise \(lesions \[1, 6\], not \[0, 0\]\)"
    other = MriSynthOptions(n=2, seed=4, healthy=0.0, lesions=(0, 0), section="testing")
    with pytest.raises(InputError, match=told):
        write_mri_cases(tmp_path, other, progress=False)
    assert "testing" not in json.loads((tmp_path / "datalist.json").read_text())
    assert not (tmp_path / "labelsTr" / "mri_s4_001.nii.gz").exists(), "refused before anything is made"
    about = tmp_path / "parameters" / "mri_s4_000.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps({key: told[key] for key in told if key not in ("options", "source_sha256")}))
    write_mri_cases(tmp_path, other, progress=False)  # what an older file does not say is believed


def test_every_phantom_is_a_patient_and_stands_in_one_section(small, tmp_path):
    write_mri_cases(tmp_path, MriSynthOptions(n=2, seed=4), progress=False)
    write_mri_cases(tmp_path, MriSynthOptions(n=1, seed=4, section="testing"), progress=False)
    document = json.loads((tmp_path / "datalist.json").read_text())
    assert [case["patient"] for case in document["training"]] == ["mri_s4_001"]
    assert [case["patient"] for case in document["testing"]] == ["mri_s4_000"]


def test_sites_differ_and_some_cases_hold_no_lesion(monkeypatch):
    monkeypatch.setattr(phantoms, "mri_phantom", lambda rng, o: o)
    drawn = [mri_case(MriSynthOptions(seed=3), n)[1] for n in range(60)]
    assert len({o.spacing_mm for o in drawn}) == len({o.noise for o in drawn}) == 60
    assert {o.region for o in drawn} == {"abdomen", "thorax", "pelvis"}
    assert 2 <= sum(o.lesions == 0 for o in drawn) <= 20
    assert mri_case(MriSynthOptions(seed=3), 5)[1] == drawn[5]


def test_the_command_line_makes_them_for_testing_too(small, tmp_path, capsys):
    assert main(["synth", "mri-phantom", "-o", str(tmp_path), "--n", "1", "--seed", "2", "--section", "testing"]) == 0
    assert "1 MRI studies" in capsys.readouterr().out
    assert found_studies(str(tmp_path)) == [{"image": str((tmp_path / "imagesTr" / "mri_s2_000").resolve())}]


def test_lookalikes_are_drawn_and_never_labelled():
    options = MriOptions(**SMALL, channels=("T1",), lesions=0, bias=0.0, noise=0.0)
    plain = mri_phantom(np.random.default_rng(6), options)
    marked = mri_phantom(np.random.default_rng(6), MriOptions(**{**vars(options), "lookalikes": 3}))
    assert plain.lookalikes == () and 1 <= len(marked.lookalikes) <= 3
    assert not marked.instances.any() and marked.lesions == ()
    assert np.array_equal(marked.bone, plain.bone)
    a, b = (p.volumes["T1"].voxels / np.percentile(p.volumes["T1"].voxels, 95) for p in (plain, marked))
    assert 0.0005 < np.mean(np.abs(a - b) > 0.2) < 0.1  # textures differ too, by less


def test_the_loader_gives_each_sequence_on_its_own_grid(small, tmp_path):
    (study,) = write_mri_cases(tmp_path, MriSynthOptions(n=1, seed=4), progress=False)
    data = LoadMriStudyd(channels=("T2", "STIR"))({"image": str(study), "label": 7})
    assert set(data) == {"T2", "STIR", "label"}
    header = nib.load(study / "T2.nii.gz")
    assert data["T2"].shape == (1, *header.shape) and np.allclose(data["T2"].affine, header.affine)
    assert data["T2"].meta["filename_or_obj"] == study.name
    for channel in ("T2", "STIR"):
        (study / f"{channel}.nii.gz").unlink()
    with pytest.raises(InputError, match=r"mri-no-channel: .* holds T1, T1c; T2, STIR are read here"):
        LoadMriStudyd(channels=("T2", "STIR"))({"image": str(study)})


def test_a_missing_sequence_stays_zero_however_scanners_vary():
    image = MetaTensor(torch.randn(4, 6, 20, 20, generator=torch.Generator().manual_seed(1)))
    image[2] = 0
    vary = RandSequenceIntensityd(prob=1.0)
    vary.set_random_state(3)
    out = vary({"image": image})["image"]
    assert out.dtype == torch.float32 and not out[2].any()
    for channel in (0, 1, 3):
        assert not torch.allclose(out[channel], image[channel])
        assert np.corrcoef(out[channel].flatten(), image[channel].flatten())[0, 1] > 0.5
    vary.set_random_state(3)
    assert torch.equal(vary({"image": image})["image"].as_tensor(), out.as_tensor())


def test_a_folder_of_another_kind_is_listed_with_its_own_line(tmp_path: Path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"dicom-none-found|mri-no-channel"):
        LoadMriStudyd()({"image": str(tmp_path / "study")})
