"""RoIAlign in 3D: positions that can be checked on paper, and three backends that agree."""

from __future__ import annotations

import pytest
import torch

from volseg.ops import roi_align3d as module
from volseg.ops.roi_align3d import BACKENDS, roi_align3d

STRIDE = (2.0, 4.0, 1.0)
SCALE = (0.5, 0.25, 1.0)
SHAPE = (8, 5, 12)  # an image of 16 x 20 x 12

# Inside; across a border; past the border's last voxel; outside altogether; without extent; larger than the image.
BOXES = [
    [3, 5, 2, 9.5, 15, 8.25],
    [-1.5, 12, 6, 6, 23, 13.5],
    [-9, -7, -3, 4, 6, 5],
    [40, 2, 2, 50, 9, 9],
    [6, 7, 5, 6, 7, 5],
    [-5, -6, -4, 30, 31, 20],
]


def given(dtype=torch.float64, channels=3, shape=SHAPE, batch=2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    features = torch.randn(batch, channels, *shape, generator=g, dtype=torch.float64).to(dtype)
    boxes = torch.tensor(BOXES, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return features, boxes, torch.arange(len(BOXES)) % batch


def align(features, boxes, index, backend, size=(2, 3, 4), ratio=2, scale=SCALE) -> torch.Tensor:
    return roi_align3d(
        features, boxes, index, output_size=size, spatial_scale=scale, sampling_ratio=ratio, backend=backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_cells_of_a_linear_map_have_the_image_coordinates_of_their_centers(backend):
    features = torch.stack(
        torch.meshgrid(*((torch.arange(n) + 0.5) * s for n, s in zip(SHAPE, STRIDE, strict=True)), indexing="ij")
    )[None]
    box = torch.tensor([[2.0, 4, 3, 14, 16, 9]])  # cells of 6 x 4 x 1.5
    y = align(features, box, torch.zeros(1, dtype=torch.long), backend)[0]
    assert y.shape == (3, 2, 3, 4)
    torch.testing.assert_close(y[0, :, 0, 0], torch.tensor([5.0, 11]))
    torch.testing.assert_close(y[1, 0, :, 0], torch.tensor([6.0, 10, 14]))
    torch.testing.assert_close(y[2, 0, 0, :], torch.tensor([3.75, 5.25, 6.75, 8.25]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_image_at_the_maps_size_is_the_map(backend):
    features, _, _ = given()
    boxes = torch.tensor([[0.0, 0, 0, 16, 20, 12]]).repeat(2, 1)
    y = align(features, boxes, torch.tensor([1, 0]), backend, size=SHAPE, ratio=1)
    torch.testing.assert_close(y, features.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_up_to_one_voxel_outside_has_the_borders_value_and_beyond_it_none(backend):
    features = torch.full((1, 1, 4, 4, 4), 7.0)
    # Along x, feature coordinates -1.5 (none), -1, -.5, 3.5 and 4 (the border's), 4.5 (none).
    starts = torch.tensor([-1.0, -0.5, 0.0, 4.0, 4.5, 5.0])
    boxes = torch.cat([torch.stack([starts, torch.full((6,), 2.0), torch.full((6,), 2.0)], 1)] * 2, 1)
    y = align(features, boxes, torch.zeros(6, dtype=torch.long), backend, size=1, scale=1.0)
    assert y.flatten().tolist() == [0, 7, 7, 7, 7, 0]


@pytest.mark.parametrize("backend", ["auto", "matrices", "grid_sample"])
@pytest.mark.parametrize(("size", "ratio"), [((2, 3, 4), 2), (3, 1), ((1, 1, 5), 3)])
@pytest.mark.parametrize("shape", [SHAPE, (1, 3, 2)])
def test_values_are_the_references(backend, size, ratio, shape):
    features, boxes, index = given(shape=shape)
    expected = align(features, boxes, index, "reference", size, ratio)
    assert (expected[3] == 0).all() and (expected[4] != 0).any() == (shape == SHAPE)
    torch.testing.assert_close(align(features, boxes, index, backend, size, ratio), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["matrices", "grid_sample"])
def test_gradients_are_the_references(backend):
    features, boxes, index = given()
    seed = torch.randn(len(BOXES), 3, 2, 3, 4, dtype=torch.float64)

    def gradient(backend):
        x = features.clone().requires_grad_()
        return torch.autograd.grad(align(x, boxes, index, backend), x, seed)[0]

    torch.testing.assert_close(gradient(backend), gradient("reference"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradcheck_of_the_matrices(layout):
    features, boxes, index = given(channels=2, shape=(4, 3, 5))
    features = features.contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: align(x, boxes, index, "auto", (2, 1, 3)), features)


def test_the_matrices_give_the_same_bits_every_time_and_in_any_order():
    features, boxes, index = given(torch.float32)
    features.requires_grad_()
    first = align(features, boxes, index, "matrices")
    seed = torch.randn_like(first)
    gradient = torch.autograd.grad(first, features, seed, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(first, features, seed)[0], gradient)
    p = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(align(features, boxes[p], index[p], "matrices"), first[p])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_are_computed_in_float32_and_come_back_short(backend, dtype):
    features, boxes, index = given(dtype)
    expected = align(features.float(), boxes, index, backend).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = align(features, boxes, index, backend)
    assert y.dtype == dtype and torch.equal(y, expected)


def test_the_gradient_of_bfloat16_features_is_summed_in_float32():
    features, boxes, index = given(torch.bfloat16)
    short, full = features.clone().requires_grad_(), features.float().requires_grad_()
    seed = torch.randn(len(BOXES), 3, 2, 3, 4).bfloat16()
    y = align(short, boxes, index, "matrices")
    with torch.autocast("cpu", torch.bfloat16):
        y.backward(seed)
    align(full, boxes, index, "matrices").backward(seed.float())
    assert short.grad.dtype == torch.bfloat16 and torch.equal(short.grad, full.grad.bfloat16())


def test_float32_boxes_far_from_the_start_lose_nothing_that_matters():
    features = torch.randn(1, 2, 3, 3, 200)
    boxes = torch.tensor([[0, 0, 790.0, 6, 6, 797]])
    index = torch.zeros(1, dtype=torch.long)
    exact = align(features.double(), boxes.double(), index, "reference", 7, 2, (0.5, 0.5, 0.25))
    for backend in ("matrices", "grid_sample"):
        y = align(features, boxes, index, backend, 7, 2, (0.5, 0.5, 0.25))
        torch.testing.assert_close(y, exact.float(), rtol=0, atol=2e-4)


def test_grid_sample_takes_many_boxes_in_several_calls(monkeypatch):
    features, boxes, index = given()
    expected = align(features, boxes, index, "grid_sample")
    monkeypatch.setattr(module, "MOST_SAMPLES", 2 * 3 * 8 * 24)  # two boxes at once
    torch.testing.assert_close(align(features, boxes, index, "grid_sample"), expected)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_no_boxes_give_no_cubes_and_no_gradient(backend):
    features = given()[0].requires_grad_()
    y = align(features, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), backend)
    assert y.shape == (0, 3, 2, 3, 4) and y.dtype == torch.float64
    y.sum().backward()
    assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": torch.zeros(1, 3, 8, 8)}, r"features must be floating \(B, C, X, Y, Z\) with voxels.*\(1, 3, 8"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes must be \(N, 6\) xyzxyz, got shape \(2, 4\)"),
        ({"boxes": torch.tensor([[0, 0, 0, 1, 1, 1], [5, 0, 0, 2, 1, 1.0]])}, "1 of 2 boxes are reversed"),
        ({"boxes": torch.full((2, 6), float("nan"))}, "2 of 2 boxes are not finite"),
        ({"batch_index": torch.tensor([0, 2])}, "batch_index goes from 0 to 2, features hold 2 images"),
        ({"batch_index": torch.tensor([-1, 0])}, "batch_index goes from -1 to 0"),
        ({"batch_index": torch.zeros(2)}, r"batch_index must be long \(2,\) beside 2 boxes, got torch.float32"),
        ({"output_size": (7, 7)}, r"output_size must be one number or three, got 2: \(7, 7\)"),
        ({"output_size": 0}, r"output_size \(0, 0, 0\) and sampling_ratio 2 must be at least 1"),
        ({"spatial_scale": -0.5}, "spatial_scale must be positive"),
        ({"backend": "numba"}, 'unknown backend "numba"; choose "auto" or one of matrices, grid_sample, reference'),
    ],
)
def test_what_cannot_be_aligned_is_refused_in_words(change, words):
    arguments = {
        "features": torch.zeros(2, 3, 4, 4, 4),
        "boxes": torch.tensor([[0.0, 0, 0, 1, 1, 1]]).repeat(2, 1),
        "batch_index": torch.zeros(2, dtype=torch.long),
        "output_size": 2,
        "spatial_scale": 0.5,
        "backend": "auto",
    } | change
    features, boxes, index = (arguments.pop(k) for k in ("features", "boxes", "batch_index"))
    with pytest.raises(ValueError, match=words):
        roi_align3d(features, boxes, index, **arguments)
