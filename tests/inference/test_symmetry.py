"""The midline is found in tilted bodies; marks with a twin go, all others stay; one hip alone changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from volseg.inference.symmetry import DropMarksWithTwinsd, find_midline, marks_with_a_twin

SHAPE = (72, 48, 56)
TWO_MM = np.full(3, 2.0)


def ball(center, radius=4.0) -> np.ndarray:
    at = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    return ((at - np.reshape(center, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


def trunk(turn_degrees: float = 0.0, shift: float = 0.0) -> np.ndarray:
    """A spine with three pairs of ribs that run outwards and forwards; the midline at 35.5 + shift, turned about z."""
    bone = np.zeros(SHAPE, bool)
    bone[31:41, 12:22, :] = True
    for z in (8, 26, 44):
        for t in np.linspace(0, 1, 40):
            for side in (-1, 1):
                bone |= ball((35.5 + side * (6 + 22 * t), 16 + 18 * t**2, z + 6 * t), 2.2)
    if turn_degrees:
        bone = ndimage.rotate(bone.astype(np.uint8), turn_degrees, axes=(0, 1), reshape=False, order=0) > 0
    return ndimage.shift(bone.astype(np.uint8), (shift, 0, 0), order=0) > 0


def dictionary(probability: np.ndarray, bone: np.ndarray) -> dict:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    return {
        "probability": MetaTensor(torch.from_numpy(probability.astype(np.float32)), affine=affine),
        "bone": MetaTensor(torch.from_numpy(bone.astype(np.uint8))[None], affine=affine),
    }


@pytest.mark.parametrize(("turn", "shift"), [(0, 0), (0, 5), (6, 0), (-8, -3)])
def test_the_midline_of_a_turned_body(turn, shift):
    midline = find_midline(trunk(turn, shift), TWO_MM)
    assert midline.agreement > 0.9
    assert abs(abs(np.degrees(np.arcsin(midline.normal[1]))) - abs(turn)) < 3
    # The spine's own middle lies on it.
    middle = np.argwhere(ndimage.binary_erosion(trunk(turn, shift), iterations=4)).mean(axis=0, keepdims=True)
    assert midline.distance(middle)[0] < 1.5


def test_no_bone_has_no_midline():
    assert find_midline(np.zeros(SHAPE, bool), TWO_MM) is None


def test_twins_are_named_and_others_are_not():
    bone = trunk()
    pair = [ball((14, 25, 30)), ball((58, 24, 31), 3.5)]  # mirrored, a voxel off
    alone, central = ball((20, 20, 10)), ball((36, 17, 40))
    probability = np.where(pair[0] | pair[1] | alone | central, 0.9, 0.01).astype(np.float32)
    marks, count = ndimage.label(probability >= 0.5)
    assert count == 4
    twins = marks_with_a_twin(probability, marks, find_midline(bone, TWO_MM), TWO_MM)
    assert {int(marks[14, 25, 30]), int(marks[58, 24, 31])} == set(twins)


def test_a_large_lesion_facing_a_small_mark_stays():
    probability = np.where(ball((16, 24, 30), 8.0) | ball((56, 24, 30), 3.0), 0.9, 0.0).astype(np.float32)
    marks, _ = ndimage.label(probability >= 0.5)
    assert marks_with_a_twin(probability, marks, find_midline(trunk(), TWO_MM), TWO_MM) == [int(marks[56, 24, 30])]


def test_a_mark_at_the_edge_of_the_volume_is_no_error():
    probability = np.where(ball((0, 0, 0)) | ball((71, 47, 55)), 0.9, 0.0).astype(np.float32)
    marks, _ = ndimage.label(probability >= 0.5)
    assert marks_with_a_twin(probability, marks, find_midline(trunk(), TWO_MM), TWO_MM) == []


def test_probability_of_twins_falls_below_the_threshold_and_nothing_else_changes():
    probability = np.where(ball((14, 25, 30)) | ball((57, 25, 30)) | ball((20, 20, 10)), 0.9, 0.2)[None]
    d = DropMarksWithTwinsd()(dictionary(probability, trunk()))
    out = d["probability"]
    assert d["marks_with_a_twin"] == 2
    assert isinstance(out, MetaTensor) and out.dtype == torch.float32
    changed = (out[0] != torch.from_numpy(probability[0]).float()).numpy()
    assert np.array_equal(changed, ball((14, 25, 30)) | ball((57, 25, 30)))
    assert float(out[0][changed].max()) < 0.5 and float(out[0][changed].min()) > 0.49
    for seed, counted in ((0.95, 0), (0.85, 2), (None, 2)):
        again = DropMarksWithTwinsd(seed_threshold=seed)(dictionary(probability, trunk()))
        assert again["marks_with_a_twin"] == counted


def test_of_a_piece_that_comes_apart_only_the_part_with_a_twin_goes():
    twin, grown_together = ball((14, 25, 30)), ball((14, 25, 38))
    probability = np.where(twin | grown_together | ball((57, 25, 30)), 0.9, 0.01)
    probability[14, 25, 34] = 0.6
    probability[14, 25, 33:36] = np.maximum(probability[14, 25, 33:36], 0.6)
    d = dictionary(probability[None], trunk())
    whole = DropMarksWithTwinsd()(dict(d))["probability"][0].numpy()
    parted = DropMarksWithTwinsd(part_at=[0.7])(dict(d))["probability"][0].numpy()
    assert (whole[grown_together] < 0.5).all(), "one piece, and its mirror image is marked"
    assert (parted[grown_together & (probability == 0.9)] == np.float32(0.9)).all() and (parted[twin] < 0.5).all()


def test_a_detector_s_twins_go_with_owner_and_score():
    twins, alone = [ball((14, 25, 30)), ball((57, 25, 30))], ball((20, 20, 10))
    owner = twins[0] * 1 + twins[1] * 2 + alone * 3
    found = np.stack([(owner > 0) * 0.8, owner, (owner > 0) * 0.6])
    d = dictionary(found, trunk())
    out = DropMarksWithTwinsd()(d)["probability"]
    assert sorted(out[1].unique().tolist()) == [0, 3]
    assert torch.equal(out[0] > 0, torch.from_numpy(alone)) and torch.equal(out[2] > 0, torch.from_numpy(alone))


def test_a_detector_s_weak_mark_does_not_take_a_strong_one_with_it():
    strong, weak = ball((14, 25, 30)), ball((57, 25, 30))
    owner = strong * 1 + weak * 2
    d = dictionary(np.stack([(owner > 0) * 0.8, owner, strong * 0.9 + weak * 0.1]), trunk())
    assert DropMarksWithTwinsd()(d)["probability"][1].unique().tolist() == [0, 1]


@pytest.mark.parametrize("bone", [np.arange(72)[:, None, None] > np.add.outer(np.arange(48), np.arange(56)), None])
def test_bone_without_a_mirror_image_changes_nothing(bone):
    bone = np.zeros(SHAPE, bool) if bone is None else ndimage.binary_dilation(bone ^ ndimage.binary_erosion(bone))
    midline = find_midline(bone, TWO_MM)
    assert midline is None or midline.agreement < 0.73
    probability = np.where(ball((14, 25, 30)) | ball((57, 25, 30)), 0.9, 0.0)[None]
    d = DropMarksWithTwinsd()(dictionary(probability, bone))
    assert torch.equal(d["probability"], dictionary(probability, bone)["probability"])
    assert "marks_with_a_twin" not in d


def test_nothing_marked_costs_no_search(monkeypatch):
    monkeypatch.setattr("volseg.inference.symmetry.find_midline", lambda *_: pytest.fail("searched"))
    DropMarksWithTwinsd()(dictionary(np.zeros((1, *SHAPE)), trunk()))
