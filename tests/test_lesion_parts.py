"""Pieces of a lesion map that come apart at a higher probability: parted where they should be, whole otherwise."""

import numpy as np
import pytest
from scipy import ndimage

from volseg.geometry import TOUCHING
from volseg.lesion_parts import connected_parts
from volseg.measure import label_lesions

GRID = np.diag([1.0, 1.0, 2.0, 1.0])


def two_and_a_bridge() -> np.ndarray:
    """Two blocks of 6 x 6 x 4 voxels (288 mm³), sure of themselves, and a doubtful bridge of four voxels between."""
    probability = np.zeros((24, 10, 8))
    probability[2:8, 2:8, 2:6] = 0.8
    probability[12:18, 2:8, 2:6] = 0.95
    probability[8:12, 4, 3] = 0.4
    return probability


def test_two_lesions_with_a_doubtful_bridge_are_two():
    probability = two_and_a_bridge()
    whole, one = connected_parts(probability, GRID, threshold=0.3)
    parts, two = connected_parts(probability, GRID, threshold=0.3, levels=(0.5,))
    assert (one, two) == (1, 2)
    assert ((parts > 0) == (whole > 0)).all(), "no voxel is lost"
    assert (parts[2:8, 2:8, 2:6] == parts[2, 2, 2]).all() and (parts[12:18, 2:8, 2:6] == parts[12, 2, 2]).all()
    assert parts[2, 2, 2] == parts[8, 4, 3] == parts[9, 4, 3] != parts[10, 4, 3] == parts[12, 2, 2], (
        "half a bridge each"
    )


def test_without_levels_and_below_them_a_piece_stays_whole():
    probability = two_and_a_bridge()
    plain = ndimage.label(probability >= 0.3, structure=TOUCHING)[0]
    assert np.array_equal(connected_parts(probability, GRID, threshold=0.3)[0], plain)
    assert np.array_equal(connected_parts(probability, GRID, threshold=0.3, levels=(0.35, 0.97))[0], plain)


@pytest.mark.parametrize(("size", "parts"), [((5, 5, 2), 2), ((5, 4, 2), 1)])  # 100 mm³ and 80 mm³
def test_a_rag_is_no_lesion_of_its_own(size, parts):
    probability = two_and_a_bridge()
    probability[2:8, 2:8, 2:6] = 0
    x, y, z = size
    probability[7 - x + 1 : 8, 4 : 4 + y, 3 : 3 + z] = 0.8
    assert connected_parts(probability, GRID, threshold=0.3, levels=(0.5,))[1] == parts


def test_nor_is_a_twentieth_of_a_large_one():
    probability = np.zeros((44, 20, 20))
    probability[2:20, 1:19, 1:19] = 0.9  # 11,664 mm³
    probability[20:22, 5, 5] = 0.4
    probability[22:27, 3:8, 3:9] = 0.9  # 300 mm³
    assert connected_parts(probability, GRID, threshold=0.3, levels=(0.5,))[1] == 1
    probability[22:34, 3:8, 3:9] = 0.9  # 720 mm³
    assert connected_parts(probability, GRID, threshold=0.3, levels=(0.5,))[1] == 2


def test_parts_come_apart_further_up():
    probability = np.zeros((40, 10, 8))
    for first in (1, 11, 27):
        probability[first : first + 6, 2:8, 2:6] = 0.95
    probability[7:11, 4, 3] = 0.8
    probability[17:27, 4, 3] = 0.4
    counts = [
        connected_parts(probability, GRID, threshold=0.3, levels=levels)[1] for levels in ((), (0.5,), (0.5, 0.9))
    ]
    assert counts == [1, 2, 3]


def test_nearest_is_meant_in_mm():
    # Along the third axis a voxel is 2 mm: the doubtful block lies one voxel above one part, three beside the other.
    probability = np.zeros((20, 9, 14))
    probability[10:16, 2:8, 2:6] = 0.9
    probability[2:8, 2:8, 8:12] = 0.9
    probability[4:14, 4, 6:10] = np.maximum(probability[4:14, 4, 6:10], 0.4)
    parts, found = connected_parts(probability, GRID, threshold=0.3, levels=(0.5,))
    low, high = parts[10, 2, 2], parts[2, 2, 8]
    assert found == 2
    # From (8, 4, 7): 1 mm to the upper part along x; (2 mm, 2 x 2 mm) to the lower one.
    assert parts[8, 4, 8] == high and parts[12, 4, 6] == low
    assert parts[9, 4, 7] == high, "2 mm and 2 mm away, not 1 mm and 4 mm"


def test_a_flipped_scan_is_parted_alike_and_nan_lies_outside():
    rng = np.random.default_rng(0)
    centers = [np.array([9 + 9 * i, 9 + 9 * j, 10]) + rng.uniform(-1, 1, 3) for i in range(3) for j in range(2)]
    from_centers = [((np.indices((40, 30, 20)).T - c) ** 2).sum(axis=-1).T for c in centers]
    probability = np.exp(-np.min(from_centers, axis=0) / 2 / 4.0**2)
    probability[0, 0, 0] = np.nan
    parts, found = connected_parts(probability, GRID, threshold=0.45, levels=(0.55, 0.65, 0.8))
    whole, pieces = connected_parts(probability, GRID, threshold=0.45)
    assert found > pieces and parts[0, 0, 0] == 0
    assert sorted(np.unique(parts)) == list(range(found + 1))
    for number in range(1, found + 1):
        assert len(np.unique(whole[parts == number])) == 1, "a part lies in one piece"
    flipped, again = connected_parts(probability[::-1], GRID, threshold=0.45, levels=(0.55, 0.65, 0.8))
    cores = (flipped[::-1] > 0) & (probability >= 0.8)
    pairs = {(a, b) for a, b in zip(parts[cores], flipped[::-1][cores], strict=True)}
    assert again == found and len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_each_part_is_numbered_and_must_reach_the_seed_itself():
    probability = two_and_a_bridge()
    both = label_lesions(probability, GRID, threshold=0.3, part_at=(0.5,))
    assert both.max() == 2 and label_lesions(probability, GRID, threshold=0.3).max() == 1
    sure = label_lesions(probability, GRID, threshold=0.3, part_at=(0.5,), seed_threshold=0.9)
    assert sure.max() == 1 and sure[14, 4, 4] == 1 and sure[4, 4, 4] == 0
