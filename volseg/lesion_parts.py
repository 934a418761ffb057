"""One mark may hold several lesions: where a piece of a lesion map comes apart at a higher probability, it is parted.

Two metastases a few millimetres apart leave a bridge of doubtful voxels between them; at the threshold that outlines
each of them well, they are one piece, and the smaller one would be lost in the larger one's numbers. The parts are the
piece's connected components at ever higher levels (the component tree of mathematical morphology, Salembier et al.,
IEEE Trans. Image Processing 1998); every voxel of the piece goes to the part nearest to it, which may leave a part an
islet behind its neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from volseg.geometry import TOUCHING, spacing_mm, voxel_volume_mm3

# A part of less is a rag of its piece and no lesion of its own: so much volume, and so much of the piece.
LEAST_PART_MM3, LEAST_SHARE = 100.0, 0.05


def connected_parts(
    probability: NDArray, affine: ArrayLike, *, threshold: float, levels: Sequence[float] = ()
) -> tuple[NDArray[np.int32], int]:
    """Numbers from 1 of the pieces of `probability >= threshold` (X, Y, Z), 0 outside, and how many there are.

    A piece is 26-connected. With `levels`, ascending probabilities, a piece is parted at the first level at which it
    leaves two components or more of at least 100 mm³ and 5 % of it, and these at the levels above in the same way.
    Distances are those along the axes: on a sheared grid, about right. NaN lies outside.
    """
    pieces, found = ndimage.label(probability >= threshold, structure=TOUCHING)
    if not levels:
        return pieces, found
    mm, mm3 = spacing_mm(affine), voxel_volume_mm3(affine)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        piece = pieces[box] == number
        cores = list(_cores(piece, probability[box], levels, mm3))
        if len(cores) == 1:
            continue
        markers = np.zeros(piece.shape, np.int32)
        for core, name in zip(cores, (number, *range(found + 1, found + len(cores))), strict=True):
            markers[core] = name
        found += len(cores) - 1
        nearest = ndimage.distance_transform_edt(markers == 0, sampling=mm, return_distances=False, return_indices=True)
        pieces[box][piece] = markers[tuple(nearest)][piece]
    return pieces, found


def _cores(
    piece: NDArray[np.bool_], probability: NDArray, levels: Sequence[float], voxel_mm3: float
) -> Iterator[NDArray[np.bool_]]:
    """What a piece is parted into, less the voxels below the level at which it comes apart; itself if it does not."""
    least = max(LEAST_PART_MM3, LEAST_SHARE * np.count_nonzero(piece) * voxel_mm3) * (1 - 1e-6)
    for n, level in enumerate(levels, start=1):
        components, _ = ndimage.label(piece & (probability >= level), structure=TOUCHING)
        large = np.flatnonzero(np.bincount(components.ravel())[1:] * voxel_mm3 >= least) + 1
        if large.size > 1:
            for one in large:
                yield from _cores(components == one, probability, levels[n:], voxel_mm3)
            return
    yield piece
