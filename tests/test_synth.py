"""Synthetic cases on disk: layout, determinism, resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from volseg.cli import main
from volseg.cli.shared import unique_names
from volseg.errors import InputError
from volseg.folds import FoldOptions, write_fold
from volseg.inference.datasets import listed_cases
from volseg.io import write_nifti
from volseg.synth import SynthOptions, write_cases
from volseg.types import Volume


@pytest.fixture
def ct(bone_block):
    hu, affine, lesion = bone_block
    noise = np.random.default_rng(5).normal(0, 15, hu.shape)
    return Volume(np.where(lesion, 150, hu) + np.rint(noise).astype(np.int16), affine)


OPTIONS = SynthOptions(n=2, seed=4, lesions=(1, 2), distractors=(0, 0), healthy=0.0)


def test_the_layout_is_a_decathlon_task_with_parameters(ct, tmp_path):
    images = write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    document = json.loads((tmp_path / "datalist.json").read_text())
    assert len(images) == len(document["training"]) == 2
    for case in document["training"]:
        image, label = nib.load(tmp_path / case["image"]), nib.load(tmp_path / case["label"])
        assert image.shape == label.shape == ct.voxels.shape
        assert np.allclose(image.affine, ct.affine)
        stem = case["image"].split("/")[1].removesuffix(".nii.gz")
        parameters = json.loads((tmp_path / "parameters" / f"{stem}.json").read_text())
        ids = set(np.unique(np.asarray(label.dataobj))) - {0}
        assert ids == {lesion["id"] for lesion in parameters["lesions"]} and ids
        assert parameters["synthetic"] is True


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(ct, tmp_path):
    def voxels(folder, seed):
        options = SynthOptions(n=1, seed=seed, lesions=(2, 2), distractors=(0, 0), healthy=0.0)
        return np.asarray(nib.load(write_cases({"b": ct}, folder, options, progress=False)[0]).dataobj)

    assert np.array_equal(voxels(tmp_path / "a", 1), voxels(tmp_path / "b", 1))
    assert not np.array_equal(voxels(tmp_path / "a", 1), voxels(tmp_path / "c", 2))


def test_cases_of_another_ct_or_grown_otherwise_are_not_kept_for_these(ct, tmp_path):
    images = write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    other = Volume(ct.voxels + 1, ct.affine)
    with pytest.raises(InputError, match=r"cases-of-another: block_s4_000 was grown in another CT"):
        write_cases({"block": other}, tmp_path, OPTIONS, progress=False)
    with pytest.raises(InputError, match=r"grown otherwise \(lesions \[1, 2\], not \[3, 3\]\)"):
        write_cases({"block": ct}, tmp_path, replace(OPTIONS, lesions=(3, 3)), progress=False)
    more = write_cases({"block": ct}, tmp_path, replace(OPTIONS, n=3), progress=False)
    assert more[:2] == images and len(more) == 3, "more cases of the same CT are welcome"


def test_a_run_that_was_cut_off_goes_on_and_touches_nothing_finished(ct, tmp_path):
    first = write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    label = tmp_path / "labelsTr" / first[1].name
    kept, lost = first[0].stat().st_mtime_ns, label.read_bytes()
    label.unlink()
    write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    assert first[0].stat().st_mtime_ns == kept
    assert np.array_equal(np.asarray(nib.load(label).dataobj), _array(lost, tmp_path))
    assert len(json.loads((tmp_path / "datalist.json").read_text())["training"]) == 2


def test_the_same_cases_under_another_section_are_moved_there(ct, tmp_path):
    write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    write_cases({"block": ct}, tmp_path, replace(OPTIONS, n=1, section="testing"), progress=False)
    document = json.loads((tmp_path / "datalist.json").read_text())
    sections = {name: [case["image"] for case in document[name]] for name in ("training", "testing")}
    assert sections == {"training": ["imagesTr/block_s4_001.nii.gz"], "testing": ["imagesTr/block_s4_000.nii.gz"]}


def test_folds_are_over_bodies(ct, tmp_path):
    """Three CTs, two of one file name (the second is numbered), two cases each; a phantom is a body of its own."""
    names = unique_names(["ct", "ct", "other", "phantom"])
    sources = dict.fromkeys(names, ct) | {"phantom": None}
    for name in names[:3]:  # lie there already: what is listed does not depend on what is grown
        _lie(tmp_path, [f"{name}_s4_{number:03d}" for number in range(2)])
    _lie(tmp_path, ["phantom_s4_000", "phantom_s4_001"])
    write_cases(sources, tmp_path, OPTIONS, progress=False)
    listed = json.loads((tmp_path / "datalist.json").read_text())["training"]
    assert [case["patient"] for case in listed] == [
        "ct", "ct", "ct_2", "ct_2", "other", "other", "phantom_s4_000", "phantom_s4_001",
    ]  # fmt: skip
    fold = json.loads(write_fold(tmp_path, tmp_path / "fold", FoldOptions(2, 0)).read_text())
    training, validation = ({case["patient"] for case in fold[name]} for name in ("training", "validation"))
    assert not training & validation and len(training | validation) == 5
    assert all(set(case) == {"image", "label"} for case in listed_cases(str(tmp_path), "training"))


def test_a_folder_of_an_older_volseg_goes_on_and_learns_whose_its_cases_are(ct, tmp_path):
    write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    path = tmp_path / "datalist.json"
    new = path.read_text()
    document = json.loads(new)
    for case in document["training"]:
        del case["patient"]
    path.write_text(json.dumps(document))
    assert len(listed_cases(str(tmp_path), "training")) == 2
    write_fold(tmp_path, tmp_path / "fold", FoldOptions(2, 0))
    write_cases({"block": ct}, tmp_path, OPTIONS, progress=False)
    assert json.loads(path.read_text()) == json.loads(new)


def test_blocks_keep_their_place_in_the_world(ct, tmp_path):
    options = SynthOptions(n=1, seed=2, lesions=(0, 0), distractors=(0, 0), healthy=0.0, block_mm=30)
    image = nib.load(write_cases({"block": ct}, tmp_path, options, progress=False)[0])
    assert image.shape == (30, 24, 15)
    start = np.rint(np.linalg.inv(ct.affine) @ image.affine[:, 3]).astype(int)[:3]
    box = tuple(slice(s, s + n) for s, n in zip(start, image.shape, strict=True))
    assert np.array_equal(np.asarray(image.dataobj), ct.voxels[box])


def test_a_ct_without_bone_is_refused(tmp_path):
    soft = Volume(np.full((30, 30, 20), 40, np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="no-bone"):
        write_cases({"soft": soft}, tmp_path, OPTIONS, progress=False)


def test_the_command_line_grows_cases_and_merges_sections(ct, tmp_path):
    path = tmp_path / "block.nii.gz"
    write_nifti(path, ct.voxels.astype(np.int16), ct.affine, dtype=np.int16)
    out = tmp_path / "out"
    base = ["synth", str(path), "-o", str(out), "--n", "1", "--lesions", "1-2", "--distractors", "0"]
    assert main([*base, "--seed", "1"]) == 0
    assert main([*base, "--seed", "2", "--section", "testing"]) == 0
    document = json.loads((out / "datalist.json").read_text())
    assert len(document["training"]) == len(document["testing"]) == 1


def _lie(folder, stems):
    """Finished cases, as far as their names tell."""
    for sub, suffix in (("imagesTr", ".nii.gz"), ("parameters", ".json"), ("labelsTr", ".nii.gz")):
        (folder / sub).mkdir(exist_ok=True)
        for stem in stems:
            (folder / sub / f"{stem}{suffix}").touch()


def _array(content: bytes, folder):
    path = folder / "lost.nii.gz"
    path.write_bytes(content)
    return np.asarray(nib.load(path).dataobj)
