"""Labels straight onto the source grid, against the plain road: all logits, interpolated, argmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, Spacingd

from volseg.errors import InputError
from volseg.inference import source_grid
from volseg.inference.slabs import Slab
from volseg.inference.sliding_window import OccupiedSlidingWindowInferer
from volseg.inference.source_grid import SourceGridInferer, labels_on_grid
from volseg.transforms.interpolate import interpolate
from volseg.transforms.invert import SCAN


class Classes(torch.nn.Module):
    """A 3x3x3 convolution to K classes, smooth enough that few voxels are ties."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.convolution = torch.nn.Conv3d(1, classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)


def rotation(degrees: float) -> np.ndarray:
    turn, angle = np.eye(4), np.deg2rad(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


MAPS = {
    "finer": np.diag([0.6, 0.7, 0.5, 1.0]),
    "coarser": np.diag([1.9, 1.3, 2.2, 1.0]),
    "flipped": np.array([[-0.7, 0, 0, 20.3], [0, 0.8, 0, 0.4], [0, 0, 1.1, -0.6], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 0.9, -0.7], [0.7, 0, 0, 0.0], [0, -0.6, 0, 17.0], [0, 0, 0, 1.0]]),
    "rotated": rotation(14) @ np.diag([0.8, 0.8, 0.8, 1.0]),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("thickness", [1, 3, 21])
@pytest.mark.parametrize("classes", [2, 5])
def test_slabs_on_another_grid_equal_the_whole_volume_interpolated(monkeypatch, name, thickness, classes):
    monkeypatch.setattr(source_grid, "BLOCK_BYTES", 4 * classes * 400)  # many small blocks
    volume = torch.from_numpy(np.random.default_rng(4).normal(size=(classes, 21, 18, 19)).astype(np.float32))
    slabs = (Slab(x, volume[:, x : x + thickness]) for x in range(0, 21, thickness))
    shape = (30, 23, 27)
    ours = labels_on_grid(slabs, volume.shape[1:], MAPS[name], shape)
    plain = interpolate(volume, MAPS[name], shape)
    best = plain.sort(dim=0).values
    clear = best[-1] - best[-2] > 1e-4
    assert ours.dtype == torch.uint8
    assert clear.float().mean() > 0.99
    assert torch.equal(ours[clear].long(), plain.argmax(0)[clear])


def test_it_equals_monais_sliding_window_invertd_and_argmax():
    rng = np.random.default_rng(0)
    affine = torch.tensor(
        [[-0.9, 0, 0, 40.0], [0, -0.9, 0, 30.0], [0, 0, 1.55, -20.0], [0, 0, 0, 1]], dtype=torch.float64
    )
    smooth = torch.nn.functional.interpolate(torch.from_numpy(rng.normal(size=(1, 1, 8, 7, 6))), size=(44, 35, 21))
    # At 1.0 mm MONAI's steps are even too: 40 = 16 + 3 * 8 and 32 = 16 + 2 * 8.
    image = MetaTensor(smooth[0].float(), affine=affine)
    image.meta["original_affine"], image.meta["spatial_shape"] = affine.numpy(), np.array(image.shape[1:])
    preprocessing = Compose(
        [
            EnsureChannelFirstd("image", channel_dim=0),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        ]
    )
    data = preprocessing({"image": image})
    assert data["image"].shape[1:] == (40, 32, 32)
    batch = list_data_collate([data])
    net = Classes(3).eval()
    with torch.no_grad():
        ours = SourceGridInferer(16, 4, 0.5)(batch["image"], net)
        logits = SlidingWindowInferer(16, 4, 0.5, mode="gaussian", sigma_scale=0.125)(batch["image"], net)
        even = OccupiedSlidingWindowInferer(16, 4, 0.5)(batch["image"], net)
    assert ours.shape == (1, 1, *image.shape[1:])
    assert np.allclose(ours.affine.numpy().reshape(-1, 4, 4)[0], affine.numpy())
    prepared = data["image"]
    invert = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    pred = MetaTensor(
        logits[0].as_tensor(), meta=data["image"].meta, applied_operations=data["image"].applied_operations
    )
    theirs = invert({"pred": pred, "image": prepared})["pred"].argmax(0)
    assert (torch.softmax(even, 1) - torch.softmax(logits, 1)).abs().max() < 1e-3
    assert (ours[0, 0] == theirs).float().mean() > 0.999


def test_a_batch_keeps_its_order_and_float16_sums_agree():
    images = []
    for i in range(2):
        noise = torch.from_numpy(np.random.default_rng(i).normal(size=(1, 24, 20, 18)).astype(np.float32))
        image = MetaTensor(noise, affine=torch.eye(4, dtype=torch.float64))
        image.meta["original_affine"], image.meta["spatial_shape"] = np.eye(4), np.array([24, 20, 18])
        images.append({"image": image})
    net = Classes(4).eval()
    with torch.no_grad():
        both = SourceGridInferer(16, 3, 0.5)(list_data_collate(images)["image"], net)
        second = SourceGridInferer(16, 3, 0.5)(list_data_collate(images[1:])["image"], net)
        half = SourceGridInferer(16, 3, 0.5, sums="float16")(list_data_collate(images)["image"], net)
    assert torch.equal(both[1], second[0])
    assert not torch.equal(both[0], both[1])
    assert (half == both).float().mean() > 0.995


def test_padding_that_was_cut_off_is_background():
    image = MetaTensor(torch.full((1, 20, 18, 16), 3.0), affine=torch.eye(4, dtype=torch.float64))
    image.affine[:3, 3] = torch.tensor([2.0, 0.0, 5.0])
    image.meta["original_affine"], image.meta["spatial_shape"] = np.eye(4), np.array([24, 18, 22])
    image.meta[SCAN] = np.array([(2, 22), (0, 18), (5, 21)])
    net = Classes(3).eval()
    with torch.no_grad():
        labels = SourceGridInferer(16, 4, 0.5)(list_data_collate([{"image": image}])["image"], net)[0, 0]
    assert labels.shape == (24, 18, 22)
    scan = labels[2:22, :, 5:21]
    assert scan.any() and labels.count_nonzero() == scan.count_nonzero()


def test_a_tensor_without_a_past_is_refused():
    with pytest.raises(InputError, match="MetaTensor"):
        SourceGridInferer(16)(torch.zeros(1, 1, 16, 16, 16), Classes(2))
    with pytest.raises(InputError, match="original_affine"):
        SourceGridInferer(16)(MetaTensor(torch.zeros(1, 1, 16, 16, 16)), Classes(2))
