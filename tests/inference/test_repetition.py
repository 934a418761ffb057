"""Marks in bone that looks the same one vertebra further go; a lesion there, or bone that is alone, stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from volseg.inference.repetition import DropMarksThatRepeatd, find_likeness

SHAPE = (40, 40, 54)
TWO_MM = np.full(3, 2.0)
LEVELS = (4, 20, 36)  # first plane of each vertebra, 32 mm apart


def spine(rng: np.random.Generator, *, noise: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """HU and bone of three vertebrae alike: cortex 500 around marrow of 150, a loose front of 60; soft tissue 40."""
    hu = np.full(SHAPE, 40.0)
    for z in LEVELS:
        hu[10:30, 12:32, z : z + 12] = 500
        hu[11:29, 13:31, z + 1 : z + 11] = 150
        hu[14:26, 24:30, z + 3 : z + 9] = 60
    return (hu + rng.normal(0, noise, SHAPE)).astype(np.float32), hu > 55


def front(z: int) -> np.ndarray:
    """A mark on the loose front of the vertebra that begins at plane z."""
    mark = np.zeros(SHAPE, bool)
    mark[15:25, 24:30, z + 3 : z + 9] = True
    return mark


def dictionary(found: np.ndarray, hu: np.ndarray, bone: np.ndarray) -> dict:
    affine = torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64))
    scaled = np.clip((hu + 250) / 1300 * 2 - 1, -1, 1)
    return {
        "probability": MetaTensor(torch.from_numpy(found.astype(np.float32)), affine=affine),
        "bone": MetaTensor(torch.from_numpy(bone.astype(np.uint8))[None], affine=affine),
        "image": MetaTensor(torch.from_numpy(np.stack([scaled, scaled]).astype(np.float32)), affine=affine),
    }


def test_what_repeats_goes_and_is_counted(rng):
    hu, bone = spine(rng)
    d = DropMarksThatRepeatd()(dictionary(np.where(front(LEVELS[1]), 0.9, 0.1)[None], hu, bone))
    assert d["marks_that_repeat"] == 1
    assert isinstance(d["probability"], MetaTensor)
    assert 0.49 < float(d["probability"].max()) < 0.5 and float(d["probability"].min()) == pytest.approx(0.1)


@pytest.mark.parametrize("lesion_hu", [-40.0, 250.0, 600.0])
def test_a_lesion_at_the_same_place_of_one_vertebra_stays(rng, lesion_hu):
    hu, bone = spine(rng)
    hu[front(LEVELS[1])] = lesion_hu
    given = dictionary(np.where(front(LEVELS[1]), 0.9, 0.1)[None], hu, bone)
    d = DropMarksThatRepeatd()(given)
    assert d["marks_that_repeat"] == 0 and torch.equal(d["probability"], given["probability"])


def test_bone_that_is_alone_in_view_stays(rng):
    hu, bone = spine(rng)
    hu[..., 17:], bone[..., 17:] = 40, False
    d = DropMarksThatRepeatd()(dictionary(np.where(front(LEVELS[0]), 0.9, 0.1)[None], hu, bone))
    assert float(d["probability"].max()) == pytest.approx(0.9)


def test_only_marks_that_would_be_reported_are_looked_at(rng, monkeypatch):
    hu, bone = spine(rng)
    monkeypatch.setattr("volseg.inference.repetition.find_likeness", lambda *_: pytest.fail("searched"))
    found = np.where(front(LEVELS[1]), 0.9, 0.1)[None]
    assert DropMarksThatRepeatd(seed_threshold=0.95)(dictionary(found, hu, bone))["marks_that_repeat"] == 0
    without_hu = {k: v for k, v in dictionary(found, hu, bone).items() if k != "image"}
    assert "marks_that_repeat" not in DropMarksThatRepeatd()(without_hu)


def test_a_detector_s_marks_go_with_owner_and_score(rng):
    hu, bone = spine(rng)
    hu[front(LEVELS[2])] = 600
    owner = front(LEVELS[1]) * 1 + front(LEVELS[2]) * 2
    found = np.stack([(owner > 0) * 0.8, owner, (owner > 0) * 0.6])
    out = DropMarksThatRepeatd()(dictionary(found, hu, bone))["probability"]
    assert out[1].unique().tolist() == [0, 2] and torch.equal(out[2] > 0, torch.from_numpy(front(LEVELS[2])))


def test_the_likeness_is_the_one_that_plain_search_finds(rng):
    hu, bone = spine(rng, noise=30.0)
    near = ndimage.binary_dilation(bone, iterations=2)
    voxels = np.argwhere(front(LEVELS[1])[:, :, :])[::7]  # a mark with holes
    found = find_likeness(hu, near, voxels, TWO_MM, reach_mm=(6.0, 6.0, 40.0))
    shift, squares = plain_search(hu, near, voxels, margin=4, reach=(3, 3, 20))
    assert found is not None and found.shift == shift
    assert found.surroundings_hu == pytest.approx(np.sqrt(squares), rel=1e-6)
    inside = hu[tuple(voxels.T)] - hu[tuple((voxels + shift).T)]
    assert found.inside_hu == pytest.approx(np.sqrt((inside**2).mean()), rel=1e-5)


def plain_search(hu, near, voxels, *, margin, reach):
    """Every shift by itself: the least mean square over the surroundings' voxels that lie in the scan on both sides."""
    low, high = voxels.min(0) - margin, voxels.max(0) + margin + 1
    at = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    mark = np.zeros(SHAPE, bool)
    mark[tuple(voxels.T)] = True
    at = at.reshape(-1, 3)
    at = at[((at >= 0) & (at < SHAPE)).all(1)]
    at = at[near[tuple(at.T)] & ~ndimage.binary_dilation(mark)[tuple(at.T)]]
    best = (None, np.inf)
    for shift in np.ndindex(*(2 * r + 1 for r in reach)):
        move = np.array(shift) - reach
        if (np.abs(move) < np.maximum(np.ptp(voxels, axis=0) + 2, 5)).all():
            continue
        to, inner = at + move, voxels + move
        seen = ((to >= 0) & (to < SHAPE)).all(1)
        if seen.mean() < 0.9 or not ((inner >= 0) & (inner < SHAPE)).all():
            continue
        square = ((hu[tuple(at[seen].T)] - hu[tuple(to[seen].T)]) ** 2).mean(dtype=float)
        if square < best[1]:
            best = (tuple(move.tolist()), square)
    return best


def test_a_mark_that_fills_the_view_has_no_likeness(rng):
    hu, bone = spine(rng)
    assert find_likeness(hu, bone, np.argwhere(np.ones(SHAPE, bool)), TWO_MM) is None
