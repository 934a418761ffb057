"""Bundles are found by name, refused in words, and loaded from their own configs."""

from __future__ import annotations

import pytest
import torch

from volseg.errors import InputError, UsageError
from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle, shipped_bundles
from volseg.inference.detections_to_source import DetectedLesionsd
from volseg.inference.postprocess import LesionProbabilityd

RULED_BY_BONE = (LesionProbabilityd, DetectedLesionsd)


def test_the_default_bundle_is_shipped():
    assert DEFAULT_BUNDLE in shipped_bundles()
    assert find_bundle(DEFAULT_BUNDLE).version


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UsageError, match=DEFAULT_BUNDLE):
        find_bundle("no_such_bundle")


def test_a_folder_from_elsewhere_needs_trust(bright_bundle):
    with pytest.raises(UsageError, match="trust-bundle"):
        find_bundle(bright_bundle)
    assert find_bundle(bright_bundle, trust=True).name == "bright_segmentation"


def test_loading_drops_loader_and_saver_and_applies_overrides(bright_bundle):
    bundle = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides={"inferer#overlap": 0.25})
    names = [type(t).__name__ for t in (*bundle.preprocessing.transforms, *bundle.postprocessing.transforms)]
    assert not [n for n in names if n.startswith(("Load", "Save"))]
    assert bundle.inferer.overlap == 0.25 and bundle.settings == {"inferer#overlap": 0.25}
    assert not bundle.network.training
    assert len(bundle.weights_sha256) == 64


def test_settings_are_what_differs_from_the_config_and_changes_the_result(bright_bundle):
    as_it_is = load_bundle(find_bundle(bright_bundle, trust=True), device="cpu").inferer.overlap
    asked = {"inferer#overlap": as_it_is, "inferer#progress": False}
    assert load_bundle(find_bundle(bright_bundle, trust=True), device="cpu", overrides=asked).settings == {}


@pytest.mark.parametrize("name", [name for name in sorted(shipped_bundles()) if not name.startswith("spine_mri")])
def test_all_windows_switches_the_bone_mask_off_wherever_it_rules(name):
    for asked in (False, True):
        bundle = load_bundle(find_bundle(name), device="cpu", overrides={"all_windows": asked})
        assert bundle.inferer.all_windows is asked
        ruled = [step.bone_key for step in bundle.postprocessing.transforms if isinstance(step, RULED_BY_BONE)]
        assert ruled == [None if asked else "bone"]
        assert bundle.settings == ({"all_windows": True} if asked else {})


def test_missing_weights_are_named(bright_bundle):
    (bright_bundle / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match=r"weights-missing.*model\.pt"):
        load_bundle(find_bundle(bright_bundle, trust=True))


def test_weights_of_another_network_are_refused_in_one_line(bright_bundle):
    torch.save({"weight": torch.zeros(3)}, bright_bundle / "models" / "model.pt")
    with pytest.raises(InputError, match="weights-unfit") as caught:
        load_bundle(find_bundle(bright_bundle, trust=True))
    assert "\n" not in str(caught.value)


def test_a_pickled_object_is_not_executed(bright_bundle):
    torch.save({"weight": print}, bright_bundle / "models" / "model.pt")
    with pytest.raises(InputError, match="weights-unfit"):
        load_bundle(find_bundle(bright_bundle, trust=True))


def test_a_folder_without_metadata_is_broken(bright_bundle):
    (bright_bundle / "configs" / "metadata.json").unlink()
    with pytest.raises(InputError, match="bundle-broken"):
        find_bundle(bright_bundle, trust=True)
