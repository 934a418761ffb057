"""Marrow that varies: the field is as strong as drawn, smooth, and stays in the marrow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.errors import UsageError
from volseg.transforms.marrow_field import RandMarrowFieldd

SIZE = (32, 24, 28)


@pytest.fixture
def patch() -> dict[str, torch.Tensor]:
    """Marrow in the middle of a box of cortex, soft tissue around it."""
    bone = torch.zeros(1, *SIZE)
    bone[:, 4:28, 4:20, 4:24] = 1
    bone[:, 7:25, 7:17, 7:21] = 2
    return {"image": MetaTensor(torch.where(bone > 1, 150.0, 50.0), meta={"crop_kind": "bone"}), "bone": bone}


def test_a_spared_patch_is_unchanged(patch):
    out = RandMarrowFieldd(prob=0.0).set_random_state(0)(patch)
    assert torch.equal(out["image"], patch["image"])


def test_only_marrow_changes_and_the_rest_stays(patch):
    out = RandMarrowFieldd(prob=1.0).set_random_state(3)(patch)
    change = torch.as_tensor(out["image"] - patch["image"]).abs()
    assert change[patch["bone"] > 1].mean() > 3
    # One voxel of the averaged mask's edge may change, no more.
    far = torch.nn.functional.max_pool3d((patch["bone"] > 1).float()[None], 3, stride=1, padding=1)[0] == 0
    assert change[far].max() == 0
    assert out["image"].meta["crop_kind"] == "bone"
    assert torch.equal(out["bone"], patch["bone"])


def test_the_deviation_is_what_was_drawn():
    transform = RandMarrowFieldd(prob=1.0, spread_hu=40.0).set_random_state(1)
    deviations, means = [], []
    for _ in range(300):
        field = transform.field(SIZE)
        assert field.shape == SIZE
        deviations.append(float(field.square().mean()))
        means.append(float(field.mean()))
    # Uniform on 0..40: the mean square is 40^2 / 3.
    assert np.mean(deviations) == pytest.approx(40**2 / 3, rel=0.15)
    assert abs(np.mean(means)) < 3


def test_the_field_is_smooth():
    transform = RandMarrowFieldd(prob=1.0, control=(10.0, 10.0)).set_random_state(2)
    for _ in range(20):
        field = transform.field(SIZE)
        steps = (field[1:] - field[:-1]).square().mean().sqrt()
        assert steps < 0.25 * field.std()


@pytest.mark.parametrize("wrong", [{"spread_hu": -1.0}, {"control": (1.0, 4.0)}, {"control": (8.0, 4.0)}])
def test_senseless_options_are_refused(wrong):
    with pytest.raises(UsageError, match="marrow-field"):
        RandMarrowFieldd(**wrong)
