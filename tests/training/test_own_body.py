"""The halves of a body: what is suspected lies whole in one of them, with a rim, whatever lies beside it."""

import numpy as np
import pytest
from scipy import ndimage

from volseg.geometry import TOUCHING
from volseg.training.own_body import first_half

# Slabs of 32 mm are 16 voxels of 2 mm, a rim of 4 mm is 2 of them.
BONE = np.ones((40, 12, 48), bool)


def halves(*pieces) -> np.ndarray:
    suspected = np.zeros_like(BONE)
    for piece in pieces:
        suspected[piece] = True
    return first_half(BONE, suspected, 2.0)


def test_a_suspect_is_not_cut_by_the_rim_of_its_neighbour_in_the_other_half():
    below, above = np.s_[1:3, 2:4, 10:15], np.s_[1:3, 2:4, 16:24]  # one voxel apart, across the border at z = 16
    half = halves(below, above)
    assert len(np.unique(half[below])) == 1, "the rim of the upper piece begins at z = 14"
    # Together they have 20 and 32 voxels; their middle is (20 * 12 + 32 * 19.5) / 52 = 16.6, in the upper slab.
    assert (half[:5, :6, 8:26] == halves()[1, 2, 16]).all(), "one half for both and for both rims"


@pytest.mark.parametrize(("gap", "together"), [(4, True), (5, False)])
def test_pieces_count_as_one_only_where_their_rims_meet(gap, together):
    first, second = np.s_[4:6, 4:6, 8:14], np.s_[4:6, 4:6, 14 + gap : 22 + gap]
    half = halves(first, second)
    assert (half[4, 4, 10] == half[4, 4, 16 + gap]) == together
    if not together:
        alone = halves(first)
        assert np.array_equal(half[..., :16], alone[..., :16]), "the first lies as it does alone"


def test_no_piece_of_many_is_cut_nor_is_its_rim():
    suspected = ndimage.binary_dilation(np.random.default_rng(1).random(BONE.shape) > 0.999)
    half = first_half(BONE, suspected, 2.0)
    pieces, number = ndimage.label(suspected, structure=TOUCHING)
    assert number > 10 and half[suspected].any() and not half[suspected].all()
    for piece in range(1, number + 1):
        rim = ndimage.binary_dilation(pieces == piece, TOUCHING, iterations=2)
        assert len(np.unique(half[rim])) == 1
