"""Anchors in millimetres: float32, never rounded, never in the feature map's half precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volseg.errors import UsageError

# One cube and one bar along each axis, all of the same volume: lesions are roundish or run along a rib or a vertebra.
SHAPES = ((1.0, 1.0, 1.0), (1.6, 1.0, 1.0), (1.0, 1.6, 1.0), (1.0, 1.0, 1.6))


class AnchorGrid:
    """Anchor boxes for every level of a feature pyramid.

    Args:
        sizes_mm: per level, the edge lengths of a cube of the anchor's volume, in mm.
        spacing_mm: voxel size of the images, mm: one number or three.
        shapes: ratios of the three edges; each is scaled to volume 1.

    A MONAI AnchorGenerator rounds half extents (5 becomes 4) and takes the feature map's dtype: hence our own.
    """

    def __init__(
        self,
        sizes_mm: Sequence[Sequence[float]],
        spacing_mm: float | Sequence[float] = 1.0,
        shapes: Sequence[Sequence[float]] = SHAPES,
    ) -> None:
        counts = {len(sizes) for sizes in sizes_mm}
        if len(counts) != 1 or 0 in counts:
            raise UsageError("anchor-sizes", f"every level needs the same number of sizes, at least one: {sizes_mm}")
        spacing = torch.tensor([spacing_mm] * 3 if isinstance(spacing_mm, int | float) else list(spacing_mm))
        if spacing.shape != (3,) or not bool((spacing > 0).all()):
            raise UsageError("anchor-spacing", f"spacing_mm is one positive number or three, not {spacing_mm}")
        edges = torch.tensor([list(s) for s in shapes], dtype=torch.float64)
        edges = edges / edges.prod(dim=1, keepdim=True) ** (1 / 3)
        self.sizes_mm = [list(sizes) for sizes in sizes_mm]
        self.cells = [
            torch.cat([edges * size for size in sizes]).div(spacing.double()).float() for sizes in self.sizes_mm
        ]  # per level (A, 3): edges in voxels
        self.per_location = len(self.cells[0])
        self.levels = len(self.cells)
        self._laid: tuple[object, list[Tensor]] = (None, [])

    def __call__(self, shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[float]]) -> list[Tensor]:
        """Per level (X * Y * Z * A, 6): anchors of feature maps of `shapes` with `strides` in voxels.

        The location runs slowest and the anchor fastest, as heads of shape (A, X, Y, Z) flatten after `permute`. The
        centre of feature voxel j lies at (j + .5) * stride. Windows are all of one size: the last answer is kept, not
        to be written into.
        """
        if len(shapes) != self.levels:
            raise UsageError(
                "anchor-levels", f"{self.levels} levels of anchor sizes for {len(shapes)} feature maps; give one each"
            )
        asked = (tuple(map(tuple, shapes)), tuple(map(tuple, strides)))
        known, anchors = self._laid
        if known == asked:
            return anchors
        anchors = []
        for cells, shape, stride in zip(self.cells, shapes, strides, strict=True):
            axes = [(torch.arange(n, dtype=torch.float32) + 0.5) * s for n, s in zip(shape, stride, strict=True)]
            centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 1, 3)
            half = cells[None] / 2
            anchors.append(torch.cat([centers - half, centers + half], dim=-1).reshape(-1, 6))
        self._laid = (asked, anchors)
        return anchors

    def level_of(self, boxes: Tensor) -> Tensor:
        """Which level's sizes come closest to boxes (N, 6), by volume: (N,) long. Where RoIs take their features."""
        edge = (boxes[:, 3:] - boxes[:, :3]).clamp_min(1e-3).log().mean(dim=1)
        means = torch.stack([cell.log().mean() for cell in self.cells]).to(edge)
        return (edge[:, None] - means[None]).abs().argmin(dim=1)


def default_sizes_mm(levels: int = 4, smallest: float = 6.0) -> list[list[float]]:
    """Two sizes a level, the level doubling: 6 and 9 mm, 12 and 18 mm, 24 and 36 mm, 48 and 72 mm."""
    return [[smallest * 2**i, 1.5 * smallest * 2**i] for i in range(levels)]
