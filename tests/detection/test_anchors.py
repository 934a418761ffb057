"""Anchors are in millimetres, centred on feature voxels, float32 and never rounded."""

import pytest
import torch

from volseg.detection.anchors import SHAPES, AnchorGrid, default_sizes_mm
from volseg.errors import UsageError


def test_an_anchor_of_five_voxels_is_five_voxels_long():
    """MONAI's generator rounds half extents: 5 becomes 4 and 7 becomes 8."""
    anchors = AnchorGrid([[5.0, 7.0]], 1.0, shapes=[(1, 1, 1)])([(2, 2, 2)], [(4.0, 4.0, 4.0)])[0]
    assert anchors.dtype == torch.float32
    assert (anchors[:, 3:] - anchors[:, :3]).unique().tolist() == [5.0, 7.0]
    assert anchors[0].tolist() == [-0.5, -0.5, -0.5, 4.5, 4.5, 4.5], "the first feature voxel of stride 4 sits at 2"


def test_location_runs_slowest_and_anchor_fastest():
    anchors = AnchorGrid([[4.0, 8.0]], 1.0, shapes=[(1, 1, 1)])([(2, 3, 4)], [(2.0, 2.0, 2.0)])[0]
    assert anchors.shape == (2 * 3 * 4 * 2, 6)
    centers = (anchors[:, :3] + anchors[:, 3:]) / 2
    assert centers[0].tolist() == centers[1].tolist() == [1, 1, 1]
    assert centers[2].tolist() == [1, 1, 3], "the last axis moves first"


def test_all_shapes_of_a_size_have_its_volume_on_any_spacing():
    grid = AnchorGrid([[12.0]], (1.0, 2.0, 3.0))
    sides_mm = grid.cells[0] * torch.tensor([1.0, 2.0, 3.0])
    assert len(sides_mm) == len(SHAPES)
    assert sides_mm.prod(dim=1).tolist() == pytest.approx([12.0**3] * len(SHAPES), rel=1e-5)


def test_a_box_takes_its_features_from_the_level_of_its_size():
    grid = AnchorGrid(default_sizes_mm(), 1.0)
    boxes = torch.tensor([[0, 0, 0, s, s, s] for s in (4.0, 7.0, 15.0, 30.0, 60.0, 200.0)])
    assert grid.level_of(boxes).tolist() == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize(("sizes", "spacing"), [([[6.0], [9.0, 12.0]], 1.0), ([[]], 1.0), ([[6.0]], 0.0)])
def test_uneven_levels_and_impossible_spacings_are_refused(sizes, spacing):
    with pytest.raises(UsageError):
        AnchorGrid(sizes, spacing)


def test_as_many_feature_maps_as_levels_are_needed():
    with pytest.raises(UsageError, match="2 levels of anchor sizes for 1 feature maps"):
        AnchorGrid([[6.0], [12.0]])([(2, 2, 2)], [(2.0, 2.0, 2.0)])
