"""The gallery: nothing but the lesion tells synthetic from real, and the answers stand at the end."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import numpy as np
import pytest

from volseg.cli import main
from volseg.errors import InputError, UsageError
from volseg.io import write_nifti
from volseg.synth import SynthOptions, write_cases
from volseg.synthetic import GalleryOptions, write_gallery
from volseg.synthetic.tiles import Exhibit, box_mask, tile, without_padding
from volseg.types import Volume


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A "real" patch in the form BLDS has: NIfTI of 1 mm, padded with zeros, a CSV of boxes in LPS mm."""
    folder = tmp_path_factory.mktemp("real")
    hu = np.random.default_rng(0).normal(60, 20, (40, 40, 40))
    hu[15:25, 15:25, 15:25] = 600
    hu[:, :, 33:] = 0  # where the scan ended
    affine = np.eye(4)
    affine[:3, 3] = (-20, 10, 100)
    write_nifti(folder / "1.nii.gz", np.rint(hu).astype(np.int16), affine, dtype=np.int16)
    (folder / "boxes.csv").write_text(
        "image_path,class,x,y,z,width,height,depth\n"
        "1.nii.gz,osteoma,0.5,-29.5,119.5,10,10,10\n"
        "1.nii.gz,osteoma,900,900,900,10,10,10\n"
        "gone.nii.gz,osteoma,0,0,0,1,1,1\n"
    )
    return folder


@pytest.fixture
def cases(tmp_path_factory, bone_block):
    hu, affine, lesion = bone_block
    noise = np.random.default_rng(5).normal(0, 15, hu.shape)
    ct = Volume(np.where(lesion, 150, hu) + np.rint(noise).astype(np.int16), affine)
    folder = tmp_path_factory.mktemp("cases")
    write_cases({"block": ct}, folder, SynthOptions(n=1, seed=4, lesions=(2, 2), distractors=(0, 0), healthy=0.0),
                progress=False)  # fmt: skip
    return folder


def test_the_blind_part_names_nothing_and_the_answers_come_after(cases, real, tmp_path):
    page = write_gallery(cases, tmp_path, GalleryOptions(n=2), real=real).read_text()
    blind, rest = page.split("<h2>2. Answers")
    figures = re.findall(r"<figure>.*?</figure>", blind, re.DOTALL)
    assert len(figures) == 3, "two grown, one real box; the box outside its patch and the missing patch are not shown"
    assert not re.search(r"block|1\.nii|lytic|sclerotic|mixed", "".join(figures))
    with (tmp_path / "answers.csv").open() as stream:
        answers = list(csv.DictReader(stream))
    assert sorted(a["kind"] for a in answers) == ["real", "synthetic", "synthetic"]
    assert all(a["what"] in rest for a in answers)
    assert "http" not in page.split("</style>")[1] and "<script" not in page


def test_the_order_is_the_seeds(cases, real, tmp_path):
    def order(seed, folder):
        write_gallery(cases, tmp_path / folder, GalleryOptions(n=2, seed=seed), real=real)
        return (tmp_path / folder / "answers.csv").read_text()

    assert order(1, "a") == order(1, "b")
    assert len({order(seed, f"s{seed}") for seed in range(5)}) > 1


def test_padding_is_cut_off_and_the_box_stays_where_it_is():
    voxels = np.random.default_rng(0).normal(size=(20, 20, 20))
    voxels[:, :, 15:] = 0
    voxels[:3] = -7
    affine = np.eye(4)
    affine[:3, 3] = (1, 2, 3)
    cut, where = without_padding(Volume(voxels, affine))
    assert cut.voxels.shape == (17, 20, 15) and where[0].start == 3
    corners = np.array([[6.5, 6.5, 6.5], [9.5, 9.5, 9.5]])
    before = np.argwhere(box_mask(Volume(voxels, affine), corners)) + affine[:3, 3]
    after = np.argwhere(box_mask(cut, corners)) + cut.affine[:3, 3]
    assert np.array_equal(before, after) and len(after) == 27
    assert not box_mask(cut, corners + 500).any()


def test_a_tile_without_contour_does_not_depend_on_the_mask_s_kind():
    voxels = np.random.default_rng(0).normal(100, 50, (30, 30, 30))
    mask = np.zeros(voxels.shape, bool)
    mask[12:18, 12:18, 12:18] = True
    exhibit = Exhibit("synthetic", "x", Volume(voxels, np.eye(4)), mask)
    assert tile(exhibit, 20.0) == tile(replace(exhibit, kind="real", words="y"), 20.0)
    assert tile(exhibit, 20.0) != tile(exhibit, 20.0, contour=True)


def test_the_command_line_grows_lesions_to_show_with_the_bone_before(tmp_path, capsys):
    assert main(["synth", "gallery", "phantom", "--n", "2", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "gallery.html").read_text().count(">before<") == 2
    assert "gallery in" in capsys.readouterr().out


def test_nothing_to_show_and_boxes_that_are_not_there_are_refused(cases, tmp_path):
    empty = tmp_path / "empty"
    (empty / "labelsTr").mkdir(parents=True)
    with pytest.raises(UsageError, match="no lesion"):
        write_gallery(empty, tmp_path / "out")
    with pytest.raises(InputError, match="CSV of boxes"):
        write_gallery(cases, tmp_path / "out", GalleryOptions(n=1), real=empty.parent)
    (tmp_path / "boxes.csv").write_text("image_path,x\n1.nii.gz,0\n")
    with pytest.raises(InputError, match="no column y"):
        write_gallery(cases, tmp_path / "out", GalleryOptions(n=1), real=tmp_path)
