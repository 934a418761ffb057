"""A BM-Seg-shaped folder from phantoms: layout, determinism, resuming, and the walk from files to tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volseg.errors import UsageError
from volseg.evaluation.bmseg import protocol
from volseg.evaluation.bmseg_tables import Ours, bmseg_tables
from volseg.evaluation.slices import SliceResult, compare_slice, summarise_slices
from volseg.folds import FoldOptions, write_fold
from volseg.inference.datasets import listed_cases
from volseg.io.bmseg import read_bmseg
from volseg.io.monai_pictures import LoadPicturesd
from volseg.io.pictures import read_mask, read_picture
from volseg.synth import PHANTOM, SynthOptions, write_cases
from volseg.synth_slices import cut_cases, write_bmseg_like


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bmseg")
    write_bmseg_like(folder, 3, 4, 5, progress=False)
    return folder


def test_the_reader_takes_it_and_knows_the_patients(folder):
    found = read_bmseg(folder)
    assert found.patients == ("P001",) * 4 + ("P002",) * 4 + ("P003",) * 4
    assert len({s.shape for s in found.slices}) > 1
    assert all(s.shape[0] == s.shape[1] for s in found.slices)
    assert "SYNTHETIC" in (folder / "synthetic.json").read_text()


def test_every_patient_has_lesions_in_bone_in_neighbouring_slices(folder):
    found = read_bmseg(folder)
    for patient in set(found.patients):
        slices = [s for s in found.slices if s.patient == patient]
        lesions, bones = (np.stack([read_mask(getattr(s, kind)) for s in slices]) for kind in ("lesion", "bone"))
        assert lesions.any() and not (lesions & ~bones).any() and bones.sum() > 2 * lesions.sum()
        images = np.stack([read_picture(s.image) for s in slices]).astype(float)
        near = np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1]
        assert near > 0.8  # neighbours look alike: what the leaky protocols live on
        assert images[bones].mean() > 2 * images[~bones & (images > 20)].mean()


def test_a_run_that_was_cut_off_goes_on_and_gives_the_same_files(folder):
    lost = folder / "lesion mask" / "P002_003.jpg"
    before, kept = lost.read_bytes(), (folder / "image" / "P001_001.jpg").stat().st_mtime_ns
    lost.unlink()
    paths = write_bmseg_like(folder, 2, 4, 5, progress=False)
    assert lost.read_bytes() == before and len(paths) == 8
    assert (folder / "image" / "P001_001.jpg").stat().st_mtime_ns == kept
    assert len(read_bmseg(folder).slices) == 12  # the third patient is still listed


def test_folds_of_slices_are_over_patients_and_their_pictures_load(folder, tmp_path):
    listed = json.loads((folder / "datalist.json").read_text())["training"]
    assert {item["image"][6:10]: item["patient"] for item in listed} == {f"P00{n}": f"P00{n}" for n in (1, 2, 3)}
    path = write_fold(folder, tmp_path, FoldOptions(3, 0))
    fold = json.loads(path.read_text())
    assert sorted(fold["patients"]) == [["P001"], ["P002"], ["P003"]]
    (validated,) = {case["patient"] for case in fold["validation"]}
    assert len(fold["validation"]) == 4 and validated not in {case["patient"] for case in fold["training"]}
    assert LoadPicturesd(("image", "bone", "label"))(listed_cases(str(path), "training")[0])["bone"].any()


def test_another_seed_gives_another_patient(folder, tmp_path):
    path = write_bmseg_like(tmp_path, 1, 1, 6, progress=False)[0]
    assert path.read_bytes() != (folder / "image" / "P001_001.jpg").read_bytes()
    assert json.loads((tmp_path / "parameters" / "P001.json").read_text())["synthetic"] is True


def test_other_folders_are_left_alone(folder, tmp_path):
    with pytest.raises(UsageError, match=r"made with .* choose another folder"):
        write_bmseg_like(folder, 1, 4, 6, progress=False)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty and not made by this command"):
        write_bmseg_like(tmp_path, 1, 4, 5, progress=False)
    for patients, slices in ((0, 4), (1, 0), (1, 145)):
        with pytest.raises(UsageError, match="synth-size"):
            write_bmseg_like(tmp_path / "new", patients, slices, 5, progress=False)


def test_from_files_to_tables(folder, rng):
    """A reader who marks bright bone as lesion, under the headline protocol."""
    found = read_bmseg(folder)
    chosen = protocol("bmseg-patient")
    results = []
    for split in chosen.splits([s.name for s in found.slices], found.patients, folds=3):
        for row in split.test:
            s = found.slices[row]
            predicted = read_mask(s.bone) & (read_picture(s.image) > 120)
            results.append(SliceResult(s.name, s.patient, compare_slice(predicted, read_mask(s.lesion))))
    tables = bmseg_tables([Ours("bright bone", "synthetic", chosen, summarise_slices(results, rng=rng, resamples=50))])
    assert [table.title.split(",")[0] for table in tables].count("Lesion only") == 2
    assert tables[0].rows[0][-1] == "12 slices, 3 patients"


def test_cases_of_volseg_synth_are_cut_into_slices_that_belong_to_their_ct(tmp_path):
    grown = SynthOptions(n=2, seed=3, lesions=(1, 2), distractors=(0, 0), healthy=0.0, block_mm=48.0)
    write_cases({PHANTOM: None}, tmp_path / "cases", grown, progress=False)
    paths = cut_cases(tmp_path / "cases", tmp_path / "out", 4, 1, progress=False)
    found = read_bmseg(tmp_path / "out")
    assert len(found.slices) == len(paths) == 8
    assert set(found.patients) == {PHANTOM}, "cases of one CT never stand on both sides of a split"
    lesion = [read_mask(one.lesion) for one in found.slices]
    assert sum(mask.any() for mask in lesion) >= 6, "three of four slices are drawn among those with lesion"
    assert not any((read_mask(one.lesion) & ~read_mask(one.bone)).any() for one in found.slices)
    listed = json.loads((tmp_path / "out" / "datalist.json").read_text())["training"]
    assert all((tmp_path / "out" / item[key]).is_file() for item in listed for key in ("image", "bone", "label"))
    before = paths[0].stat().st_mtime_ns
    assert cut_cases(tmp_path / "cases", tmp_path / "out", 4, 1, progress=False) == paths
    assert paths[0].stat().st_mtime_ns == before
