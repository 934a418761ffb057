"""Law: the figures in README and model cards are those of the JSON named beside them, of the weights that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from lesion_tables import both_line, groups_line, healthy_line, real_rows, synthetic_rows, visibility_line

from volseg.inference.bundle import sha256_of

TOP = Path(__file__).resolve().parents[1]

SEGMAMBA, DETECTOR = "bone_ct_segmamba_segmentation", "bone_ct_mask_rcnn_detection"
SLICES = "bmseg_bmsmm_net_segmentation"
README = TOP / "README.md"
AS_SHIPPED = [(SEGMAMBA, "_lesions"), (DETECTOR, f"_lesions_{DETECTOR}"), (SLICES, f"_lesions_{SLICES}")]


def card(bundle: str) -> Path:
    return TOP / "bundles" / bundle / "docs" / "README.md"


def metadata(bundle: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((TOP / "bundles" / bundle / "configs" / "metadata.json").read_text())
    return loaded


def measured(text: str, ending: str) -> tuple[dict[str, Any], str]:
    """The JSON that a 'Measured ...' line names, and the first digits of the weights' sha256 there."""
    named = re.search(rf"`(tests/benchmarks/results/[\w-]*{ending}\.json)`, weights sha256 ([0-9a-f]+)\.\.\.", text)
    assert named is not None, f"no line names its JSON (*{ending}.json) and weights"
    return json.loads((TOP / named[1]).read_text()), named[2]


def missing(text: str, lines: list[str]) -> list[str]:
    return [line for line in lines if line not in text]


@pytest.mark.parametrize("page", [README, card(SEGMAMBA)], ids=["README", "card"])
def test_segmamba_s_figures_are_the_measured_ones(page: Path):
    text = page.read_text()
    document, _ = measured(text, "_lesions")
    lines = [*synthetic_rows(document), groups_line(document), *real_rows(document), healthy_line(document)]
    lines += [visibility_line(document), both_line(document)]
    assert missing(text, lines) == []


@pytest.mark.parametrize(
    ("bundle", "ending", "switch", "shipped"),
    [
        (SEGMAMBA, "_lesions_adapted", "adapt", "_lesions"),
        (SEGMAMBA, "_lesions_ensemble", "ensemble", "_lesions"),
        (SLICES, f"_lesions_{SLICES}_adapted", "adapt", f"_lesions_{SLICES}"),
        (DETECTOR, f"_lesions_{DETECTOR}_ensemble", "ensemble", f"_lesions_{DETECTOR}"),
    ],
)
def test_figures_with_a_switch_on_are_the_measured_ones(bundle: str, ending: str, switch: str, shipped: str):
    text = card(bundle).read_text()
    document, said = measured(text, ending)
    as_shipped, digits = measured(text, shipped)
    assert [name for name, value in document["overrides"].items() if value is True] == [switch] and said == digits
    for bundle, weights in document.get("averaged_with", {}).items():
        assert weights == sha256_of(TOP / "bundles" / bundle / "models" / "model.pt")
    lines = [*synthetic_rows(document, as_shipped), groups_line(document), visibility_line(document)]
    assert missing(text, [*lines, *real_rows(document), healthy_line(document)]) == []


def test_the_slice_network_s_figures_are_the_measured_ones():
    text = card(SLICES).read_text()
    document, _ = measured(text, f"_lesions_{SLICES}")
    lines = [*synthetic_rows(document), groups_line(document), visibility_line(document), *real_rows(document)]
    assert missing(text, [*lines, healthy_line(document)]) == []


def test_the_detector_s_figures_are_the_measured_ones():
    text = card(DETECTOR).read_text()
    document, _ = measured(text, f"_lesions_{DETECTOR}")
    beside, _ = measured(card(SEGMAMBA).read_text(), "_lesions")
    lines = [*synthetic_rows(document, beside), healthy_line(document)]
    assert missing(text, lines) == []


@pytest.mark.parametrize(("bundle", "ending"), AS_SHIPPED, ids=[SEGMAMBA, DETECTOR, SLICES])
def test_what_was_measured_are_the_weights_that_ship(bundle: str, ending: str):
    document, said = measured(card(bundle).read_text(), ending)
    shipped = sha256_of(TOP / "bundles" / bundle / "models" / "model.pt")
    assert document["weights_sha256"] == shipped
    assert shipped.startswith(said)


@pytest.mark.parametrize("notice_of", sorted(path.name for path in (TOP / "bundles").iterdir()))
def test_the_notice_on_every_result_speaks_of_the_version_that_ships(notice_of: str):
    """The notice stands among the warnings of every report: it may not speak of weights that are gone."""
    shipped = metadata(notice_of)
    assert shipped["notice"].startswith(f"version {shipped['version']} of this bundle ")


@pytest.mark.parametrize(("bundle", "ending"), AS_SHIPPED, ids=[SEGMAMBA, DETECTOR, SLICES])
def test_the_notice_s_figures_are_the_measured_ones(bundle: str, ending: str):
    document, _ = measured(card(bundle).read_text(), ending)
    every = document["synthetic_held_out"]["all"]
    said = f"sensitivity {every['sensitivity']:.2f} at {every['false_positives_per_case']:.1f} false positives per case"
    assert said in metadata(bundle)["notice"]
