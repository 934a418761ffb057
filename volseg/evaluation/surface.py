"""Predicted mask and true mask -> distances between their surfaces in mm. What emptiness means stands at each number.

After Nikolov et al. 2021 (arXiv:1809.04430): a surface runs through the corners between voxels, and each of its
pieces counts with its area, so that anisotropic voxels do not count their many small faces as much as their large
ones. The areas come from MONAI's table. Distances are found with a k-d tree over the surface points: exact as a
distance transform is, in any sheared or oblique frame, and its cost follows the lesions, not the box around them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from volseg.geometry import spacing_mm

NSD_TOLERANCE_MM = 2.0
_INSIDE = 0b11111111


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distance from every piece of one surface to the other surface in mm, rising, and the areas of the pieces in mm².

    A surface without counterpart is at distance inf; a mask without voxels has no pieces.
    """

    predicted_mm: NDArray[np.float64]
    predicted_mm2: NDArray[np.float64]
    true_mm: NDArray[np.float64]
    true_mm2: NDArray[np.float64]

    def hausdorff_mm(self, percent: float = 95.0) -> float:
        """The larger of both directed distances within which `percent` of a surface's area lies.

        0 if both masks are empty, inf if one is: a missed patient stays in a median and never leaves it.
        """
        if self._both_empty:
            return 0.0
        if self._one_empty:
            return math.inf
        return max(
            _percentile(self.predicted_mm, self.predicted_mm2, percent),
            _percentile(self.true_mm, self.true_mm2, percent),
        )

    @property
    def hd95_mm(self) -> float:
        """95 % Hausdorff distance. 0 if both masks are empty, inf if one is (MONAI: nan)."""
        return self.hausdorff_mm(95.0)

    @property
    def assd_mm(self) -> float:
        """Average symmetric surface distance, over the area of both surfaces. 0 if both are empty, inf if one is."""
        if self._both_empty:
            return 0.0
        if self._one_empty:
            return math.inf
        total = self.predicted_mm @ self.predicted_mm2 + self.true_mm @ self.true_mm2
        return float(total / (self.predicted_mm2.sum() + self.true_mm2.sum()))

    def nsd(self, tolerance_mm: float = NSD_TOLERANCE_MM) -> float:
        """Normalised surface Dice: share of both surfaces' area within the tolerance. 1 if both are empty, 0 if one is.

        Raises ValueError for a negative tolerance.
        """
        if tolerance_mm < 0:
            raise ValueError(f"a tolerance of {tolerance_mm} mm")
        if self._both_empty:
            return 1.0
        # A distance of exactly the tolerance counts; rounding of the affine must not decide.
        reach = tolerance_mm * (1 + 1e-9) + 1e-9
        near = self.predicted_mm2[self.predicted_mm <= reach].sum() + self.true_mm2[self.true_mm <= reach].sum()
        return float(near / (self.predicted_mm2.sum() + self.true_mm2.sum()))

    @property
    def _both_empty(self) -> bool:
        return self.predicted_mm.size == 0 and self.true_mm.size == 0

    @property
    def _one_empty(self) -> bool:
        return self.predicted_mm.size == 0 or self.true_mm.size == 0


def surface_distances(predicted: NDArray, truth: NDArray, affine: ArrayLike) -> SurfaceDistances:
    """Compare the surfaces of two masks (X, Y, Z) on one grid; every value above 0 is inside.

    A mask is closed where it reaches the border of the grid. On a sheared grid the positions are exact, the areas
    those of an unsheared one. Raises ValueError if the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks differ in shape: predicted {predicted.shape}, truth {truth.shape}")
    p_points, p_areas = surface_points(predicted > 0, affine)
    t_points, t_areas = surface_points(truth > 0, affine)
    p_mm, p_mm2 = _rising(_nearest_mm(p_points, t_points), p_areas)
    t_mm, t_mm2 = _rising(_nearest_mm(t_points, p_points), t_areas)
    return SurfaceDistances(p_mm, p_mm2, t_mm, t_mm2)


def surface_points(mask: NDArray[np.bool_], affine: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners between voxels that the surface runs through: positions (n, 3) in mm, areas of the pieces (n,) in mm²."""
    span = _span(mask)
    if span is None:
        return np.zeros((0, 3)), np.zeros(0)
    start, stop = span
    padded = np.pad(mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))], 1).view(np.uint8)
    areas, kernel = create_table_neighbour_code_to_surface_area(spacing_mm(affine).tolist())
    weights = kernel.numpy().reshape(2, 2, 2)
    nx, ny, nz = (n - 1 for n in padded.shape)
    codes = np.zeros((nx, ny, nz), np.uint8)
    for a, b, c in np.ndindex(2, 2, 2):
        codes += padded[a : a + nx, b : b + ny, c : c + nz] * np.uint8(weights[a, b, c])
    corners = np.argwhere((codes != 0) & (codes != _INSIDE))
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    # The frame's position does not matter to distances: leaving it out keeps them exact far from the scanner's zero.
    points = (corners + start - 0.5) @ matrix.T
    return points, areas.numpy().astype(np.float64)[codes[tuple(corners.T)]]


def _span(mask: NDArray[np.bool_]) -> tuple[NDArray, NDArray] | None:
    """First and last occupied index (exclusive) along each axis, without listing every voxel."""
    starts, stops = [], []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if occupied.size == 0:
            return None
        starts.append(int(occupied[0]))
        stops.append(int(occupied[-1]) + 1)
    return np.array(starts), np.array(stops)


def _nearest_mm(points: NDArray, others: NDArray) -> NDArray[np.float64]:
    if len(points) == 0 or len(others) == 0:
        return np.full(len(points), math.inf)
    return np.asarray(cKDTree(others).query(points)[0], dtype=np.float64)


def _rising(distances: NDArray, areas: NDArray) -> tuple[NDArray, NDArray]:
    order = np.argsort(distances, kind="stable")
    return distances[order], areas[order]


def _percentile(distances: NDArray, areas: NDArray, percent: float) -> float:
    """The distance within which `percent` of the area lies."""
    share = np.cumsum(areas) / areas.sum()
    return float(distances[min(int(np.searchsorted(share, percent / 100 - 1e-12)), distances.size - 1)])
