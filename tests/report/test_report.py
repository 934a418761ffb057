"""The files people open: they are written for every kind of study, need nothing else, and trust no text."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from volseg.measure import label_lesions, measure_lesions
from volseg.report import html
from volseg.report.figures import lesion_views, overview, shortened, write_preview
from volseg.report.html import center_in_words, render_report, write_report
from volseg.types import PatientOrigin, PatientResult, Provenance, Study, Volume

PROVENANCE = Provenance("bundle", "0.1.0", "ab" * 32, "0.1.0", "2.13", "1.6.1", "cpu", "float32")


def patient(lesion_count: int, *, shape=(36, 30, 24), affine=None, seed: int = 0) -> PatientResult:
    """Noise with a bony column and small lesions on a lattice, on 2 x 3 x 4 mm unless told."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 30, shape).astype(np.int16)
    hu[shape[0] // 3 : -shape[0] // 3, shape[1] // 3 : -shape[1] // 3] += 500
    probability = np.zeros(shape, np.float32)
    x_starts, y_starts, z_starts = (range(1, n - 3, step) for n, step in zip(shape, (5, 5, 4), strict=True))
    lattice = [(x, y, z) for z in z_starts for y in y_starts for x in x_starts]
    for n in range(lesion_count):
        x, y, z = lattice[n * len(lattice) // lesion_count]
        probability[x : x + 2 + n % 2, y : y + 2, z : z + 2] = 0.9
    affine = np.diag([-2.0, -3.0, 4.0, 1.0]) if affine is None else affine
    instances = label_lesions(probability, affine, min_volume_mm3=0.0)
    lesions = measure_lesions(instances, hu, affine, probability=probability, marrow_hu=(100.0, 40.0))
    return PatientResult(
        study=Study("case-1", {"CT": Volume(hu, affine)}, notes=("used the only series",)),
        instances=instances,
        probability=probability,
        lesions=lesions,
        provenance=PROVENANCE,
        marrow_hu=(100.0, 40.0),
        bone_volume_mm3=5e5,
        seconds={"reading": 1.0, "searching": 60.25},
    )


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_preview_and_report_are_written_for_any_number_of_lesions(count, tmp_path):
    result = patient(count)
    assert len(result.lesions) == count
    preview = write_preview(result, tmp_path / "preview.png")
    assert pixels(preview.read_bytes()).std() > 5
    page = write_report(result, tmp_path / "report.html").read_text()
    assert page.count("<figure id=") == count
    assert ("No lesion found" in page) == (count == 0)


def test_sixty_lesions_get_twenty_pictures_a_full_table_and_a_word_about_it(monkeypatch):
    monkeypatch.setattr(html, "lesion_views", lambda result, lesion: b"png")
    result = patient(60)
    assert len(result.lesions) == 60
    page = render_report(result)
    assert page.count("<figure id=") == 20
    assert "Pictures of the 20 largest of 60 lesions" in page
    assert len(re.findall(r"<tr>\s*<td>(?:<a |\d)", page)) == 60


@pytest.mark.parametrize("shape", [(73, 47, 73), (512, 20, 3), (4, 5, 6)])
def test_odd_shapes_are_pictured(shape, tmp_path):
    affine = np.diag([1.5, -1.5, 2.0, 1.0])[:, [1, 2, 0, 3]]
    result = patient(2 if min(shape) > 6 else 0, shape=shape, affine=affine)
    write_preview(result, tmp_path / "preview.png")
    for lesion in result.lesions:
        assert pixels(lesion_views(result, lesion)).shape == (400, 1216, 3)
    assert pixels(overview(result)).shape[1] == 1224


def test_oblique_and_tilted_grids_are_pictured(tmp_path):
    affine = np.array([[1.9, 0.5, 0.2, 0], [-0.6, 2.9, 0.9, 5], [0.1, -0.4, 3.9, 9], [0, 0, 0, 1.0]])
    result = patient(2, affine=affine)
    write_preview(result, tmp_path / "preview.png")
    assert pixels(lesion_views(result, result.lesions[0])).std() > 5


def test_a_contour_is_drawn_where_the_lesion_is(tmp_path):
    """One lesion on the patient's right, 24 mm from the middle: its orange lies left of the middle in axial."""
    hu = np.zeros((60, 60, 60), np.int16)
    instances = np.zeros(hu.shape, np.uint16)
    instances[45:51, 27:33, 27:33] = 1  # voxel axes L, P, S: high i is the patient's left
    for affine, side in ((np.diag([2.0, 2, 2, 1]), "left"), (np.diag([-2.0, -2, 2, 1]), "right")):
        lesions = measure_lesions(instances, hu, affine, probability=instances * 1.0, marrow_hu=(150.0, 30.0))
        result = PatientResult(Study("c", {"CT": Volume(hu, affine)}), instances, instances * 1.0, lesions, PROVENANCE)
        image = pixels(overview(result))
        coronal = image[:, : image.shape[1] // 2]
        tinted = np.argwhere((coronal[..., 0] > coronal[..., 2] + 60) & (coronal[..., 0] > 90))
        rows, columns = tinted[:, 0], tinted[:, 1]
        # The leader runs to the margin; the tinted block is where most coloured pixels are.
        middle = np.median(columns)
        assert (middle < coronal.shape[1] / 2) == (side == "left")
        assert rows.size > 200


def test_report_needs_nothing_from_outside_and_runs_nothing():
    page = render_report(patient(2))
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "http://" not in page and "https://" not in page and "url(" not in page
    assert "<script" not in page and "<link" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]{0,40})', page))
    assert set(re.findall(r'href="#(lesion-\d+)"', page)) == set(re.findall(r'<figure id="(lesion-\d+)"', page))


def test_text_from_files_is_escaped():
    evil = '<script>alert("x")</script>'
    result = patient(1)
    study = replace(result.study, name=evil, site=evil, source=evil, notes=(evil,))
    provenance = replace(PROVENANCE, bundle=evil, device=evil, settings={"entry": evil}, other_weights={evil: evil})
    page = render_report(replace(result, study=study, provenance=provenance, warnings=(evil, "second")))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_report_names_the_settings_that_were_asked_for():
    assert "the bundle&#39;s own" in render_report(patient(1))
    asked = replace(PROVENANCE, settings={"adapt": True, "inferer#overlap": 0.25})
    assert "adapt True, inferer#overlap 0.25" in render_report(replace(patient(1), provenance=asked))


def test_report_names_the_networks_that_had_a_say():
    asked = replace(PROVENANCE, other_weights={"bmseg_bmsmm_net_segmentation": "ab12" * 16})
    page = render_report(replace(patient(1), provenance=asked))
    assert "bmseg_bmsmm_net_segmentation (weights ab12ab12ab12)" in page


def test_report_says_what_a_clinician_and_an_administrator_look_for():
    result = replace(patient(3), warnings=("slices are thick",))
    page = render_report(result, seconds={"writing": 2.0})
    for words in (
        "Research use only",
        "slices are thick",
        "used the only series",
        "ab" * 32,
        "60.2 s",
        "2.0 s",
        "100 ± 40 HU",
    ):
        assert words in page, words


def test_no_lesion_in_view_and_no_bone_in_view_are_told_apart():
    nothing = patient(0)
    assert "does not rule out metastases" in render_report(nothing)
    no_bone = render_report(replace(nothing, bone_volume_mm3=0.0))
    assert "no bone was recognised" in no_bone
    assert "does not rule out metastases" not in no_bone


def test_kinds_by_fixed_limits_are_declared():
    assert "fixed HU limits" in render_report(replace(patient(1), marrow_hu=(float("nan"), float("nan"))))


def test_the_page_says_where_the_tumour_started_only_where_it_was_asked():
    result = patient(3)
    plain = re.sub(r'"data:image[^"]*"', "", render_report(result))
    assert "lung" not in plain.lower()
    origin = PatientOrigin(0.73, 3, False, 0.41, "mean of <lesion> logits", 0.58)
    lesions = tuple(replace(lesion, p_lung=0.1 + 0.2 * n) for n, lesion in enumerate(result.lesions))
    page = render_report(replace(result, origin=origin, lesions=(*lesions[:2], result.lesions[2])))
    for words in ("Rather lung: probability 0.73, threshold 0.41", "From 3 lesions, mean of &lt;lesion&gt;", "0.58"):
        assert words in page, words
    head = page[page.index("<thead>") : page.index("</thead>")]
    first = page[page.index("<tbody>") : page.index("</tbody>")]
    assert (head.count("<th>") + head.count("<th ")) * 3 == first.count("<td")
    assert all(f'<td class="number">{p}</td>' in first for p in ("0.10", "0.30", "n/a"))
    assert "does not replace histology" in page


def test_without_lesions_the_page_does_not_pass_a_prior_for_an_answer():
    nobody = PatientOrigin(p_lung=0.45, n_lesions=0, from_prior=True, threshold=0.4)
    page = render_report(replace(patient(0), origin=nobody))
    assert "Not answered: no lesion was found" in page
    assert "Rather" not in page and "From 0 lesions" not in page


def test_small_words():
    assert center_in_words((-12.4, 30.0, -101.6)) == "L 12, A 30, I 102"
    assert shortened("x" * 100, 11) == "xxxxx…xxxxx"
    assert shortened("short", 11) == "short"
