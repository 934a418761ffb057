"""Other bundles' lesion maps are averaged with a bundle's own, wherever their grids lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.errors import UsageError
from volseg.inference import ensemble
from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
from volseg.inference.ensemble import AverageWithBundlesd, other_weights
from volseg.inference.segment import AVERAGED_WITH, lesion_map, segment_volume
from volseg.ops.log_odds import MOST
from volseg.transforms.metatensor import to_metatensor
from volseg.types import Volume

GRID = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))


def averaged(monkeypatch, own: torch.Tensor, *others: MetaTensor, names=None) -> dict:
    """What the transform makes of `own` logits and of bundles that answer `others`."""
    maps = iter(others)
    shipped = load_bundle(find_bundle(DEFAULT_BUNDLE), device="cpu")
    monkeypatch.setattr(ensemble, "load_bundle", lambda *_, **__: shipped)
    monkeypatch.setattr(ensemble, "lesion_map", lambda *_: next(maps))
    step = AverageWithBundlesd("pred", bundles=names or [DEFAULT_BUNDLE] * len(others))
    return step({"pred": MetaTensor(own, affine=GRID), "source": MetaTensor(torch.zeros(1, 4, 4, 4))})


def log_odds(data: dict) -> torch.Tensor:
    return data["pred"].as_tensor()[1] - data["pred"].as_tensor()[0]


def test_the_mean_is_that_of_log_odds_and_nobody_is_boundless(monkeypatch):
    own = torch.zeros(2, 3, 3, 3)
    own[1] += 50.0
    own[1, 0] = 1.0
    other = MetaTensor(torch.full((1, 3, 3, 3), 0.2), affine=GRID)
    sure = MetaTensor(torch.zeros(1, 3, 3, 3), affine=GRID)
    mean = log_odds(averaged(monkeypatch, own, other, sure))
    odds = float(torch.logit(torch.tensor(0.2)))
    assert mean[0] == pytest.approx((1.0 + odds - MOST) / 3, abs=1e-5)
    assert mean[1] == pytest.approx((MOST + odds - MOST) / 3, abs=1e-5)


def test_a_map_on_another_grid_is_brought_over(monkeypatch):
    x = torch.arange(12, dtype=torch.float32) * 1.0
    fine = MetaTensor((x / 40)[None, :, None, None].expand(1, 12, 12, 12).clone(), affine=torch.eye(4).double())
    mean = log_odds(averaged(monkeypatch, torch.zeros(2, 4, 5, 6), fine))
    at_2_mm = torch.logit(torch.arange(4) * 2.0 / 40, 1e-4)
    torch.testing.assert_close(mean[:, 2, 2], at_2_mm / 2)


def test_the_source_leaves_and_the_bundles_are_named(monkeypatch):
    data = averaged(monkeypatch, torch.zeros(2, 3, 3, 3), MetaTensor(torch.full((1, 3, 3, 3), 0.5), affine=GRID))
    assert "source" not in data and f"that of {DEFAULT_BUNDLE} " in data[AVERAGED_WITH]
    assert torch.equal(data["pred"].affine, GRID)


def test_only_shipped_bundles_are_averaged(tmp_path):
    step = AverageWithBundlesd("pred", bundles=[str(tmp_path)])
    with pytest.raises(UsageError, match="bundle-untrusted"):
        step({"pred": MetaTensor(torch.zeros(2, 3, 3, 3)), "source": MetaTensor(torch.zeros(1, 4, 4, 4))})


def test_a_bundle_other_weights_its_like_agrees_with_itself(bright_bundle, bone_block, monkeypatch):
    """The bright bundle as its own second opinion: the same map on the same grid, so the same lesions."""
    hu, affine, lesion = bone_block
    volume = Volume(hu, affine)
    files = find_bundle(bright_bundle, trust=True)
    alone = load_bundle(files, device="cpu")
    monkeypatch.setattr(ensemble, "find_bundle", lambda _: files)
    both = load_bundle(files, device="cpu", overrides={"ensemble": True, "ensemble_with": ["bright"]})
    assert other_weights(alone) == {} and other_weights(both) == {"bright": alone.weights_sha256}
    one, other = segment_volume(volume, alone), segment_volume(volume, both)
    assert one.instances[lesion].any() and np.array_equal(one.instances > 0, other.instances > 0)
    assert not [note for note in one.notes if "mean" in note]
    assert [note for note in other.notes if "is the mean with that of bright_segmentation" in note]
    found = lesion_map({"image": to_metatensor(volume)}, alone)
    assert found.shape[0] == 1 and 0.99 < float(found.max()) <= 1
