"""RoIAlign (He et al., Mask R-CNN, arXiv 1703.06870) in 3D: feature maps and boxes in, one small cube per box out.

Where samples lie is torchvision's `aligned=True` with a third axis. Image voxel i covers [i, i + 1), feature voxel j of
stride s covers s of them and has its value at their middle, (j + 1/2) s. So the image coordinate p is the feature
coordinate p / s - 1/2, in which whole numbers are feature voxels. Up to one voxel beyond the outermost ones a sample
has the value of the border, farther out it is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from volseg.ops._arrays import computed_in
from volseg.ops.nms3d import checked_boxes

BACKENDS = ("matrices", "grid_sample", "reference")
MOST_SAMPLES = 2**24  # numbers that one call of grid_sample may write: 64 MB


def roi_align3d(
    features: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    *,
    output_size: int | tuple[int, int, int],
    spatial_scale: float | tuple[float, float, float],
    sampling_ratio: int = 2,
    backend: str = "auto",
) -> Tensor:
    """Each box of a feature map, resampled to one size: (N, C, *output_size), in the type of `features`.

    The box is cut into output_size cells, each is the mean of sampling_ratio^3 trilinear samples, evenly spread.
    bfloat16 and half are computed in float32. Gradients reach the features, not the boxes.

    features: (B, C, X, Y, Z). boxes: (N, 6) xyzxyz in image voxels. batch_index: (N,) long, whose features a box takes.
    spatial_scale: feature voxels per image voxel, 1 / stride, of each axis.
    backend: "matrices" (three interpolation matrices per box, applied to the voxels they touch; the same bits every
    time, on the GPU too, and its gradient keeps no feature map), "grid_sample" (all boxes of an image in the depth of
    one grid_sample), "reference" (sample by sample, slow). "auto" is "matrices", which on a CPU core take a fortieth to
    a quarter of grid_sample's time (2026-11), least with features in channels_last_3d; only without gradients on CUDA
    it is "grid_sample", one kernel instead of ten for each box (not measured).

    N = 0 gives (0, C, *output_size), through which gradients run (they are 0). Raises ValueError for shapes that do not
    fit, a batch index outside the batch, and boxes that are not finite or reversed.
    """
    size, scale = _three(output_size, "output_size"), _three(spatial_scale, "spatial_scale")
    _check(features, boxes, batch_index, size, scale, sampling_ratio, backend)
    dtype = computed_in(features, boxes)
    (boxes,) = checked_boxes(boxes)
    boxes = boxes.to(dtype)
    samples = [
        _samples(boxes[:, axis], boxes[:, axis + 3], size[axis], scale[axis], sampling_ratio) for axis in range(3)
    ]
    if backend == "auto" and features.is_cuda and not (torch.is_grad_enabled() and features.requires_grad):
        backend = "grid_sample"
    with torch.autocast(features.device.type, enabled=False):
        if backend == "reference":
            return _reference(features, samples, batch_index, dtype)
        if backend == "grid_sample" and len(boxes):
            return _grid_sample(features, samples, batch_index, dtype)
        matrices = [_matrix(at, n) for at, n in zip(samples, features.shape[2:], strict=True)]
        return _Matrices.apply(features, batch_index, *matrices)


def _samples(start: Tensor, stop: Tensor, cells: int, scale: float, ratio: int) -> Tensor:
    """Feature coordinates (N, cells, ratio) along one axis of the samples of boxes from start (N,) to stop (N,)."""
    place = (torch.arange(cells * ratio, dtype=start.dtype, device=start.device) + 0.5) / (cells * ratio)
    at = (start[:, None] + (stop - start)[:, None] * place) * scale - 0.5
    return at.unflatten(1, (cells, ratio))


def _inside(at: Tensor, n: int) -> Tensor:
    """Whether a feature coordinate has a value in a map of n voxels."""
    return (at >= -1) & (at <= n)


# ---- interpolation matrices


def _matrix(at: Tensor, n: int) -> Tensor:
    """(N, cells, n): what each of n feature voxels contributes to each cell, along one axis."""
    distance = at.clamp(0, n - 1)[..., None] - torch.arange(n, dtype=at.dtype, device=at.device)
    return ((1 - distance.abs()).clamp(min=0) * _inside(at, n)[..., None]).mean(2)


class _Matrices(torch.autograd.Function):
    """Every box works on the part of the map where its matrices are not 0: for a lesion a few voxels of each axis.

    Channels go last inside, so that all three products have long rows.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, batch_index: Tensor, *matrices: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(batch_index, *matrices)
        ctx.shape, ctx.dtype = features.shape, features.dtype
        ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last_3d)
        by_channel = features.movedim(1, -1)
        y = features.new_empty((len(batch_index), features.shape[1], *(m.shape[1] for m in matrices)))
        for n, part, (x_, y_, z_) in _parts(batch_index, matrices):
            given = by_channel[part].to(x_.dtype)
            i, j, k, _ = given.shape
            t = (x_ @ given.reshape(i, -1)).view(len(x_), j, -1)
            t = torch.matmul(y_, t).view(len(x_), len(y_), k, -1)
            y[n] = torch.matmul(z_, t).movedim(-1, 0)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        batch_index, *matrices = ctx.saved_tensors
        dx = torch.zeros(ctx.shape, dtype=matrices[0].dtype, device=dy.device)
        dx = dx.contiguous(memory_format=torch.channels_last_3d) if ctx.channels_last else dx
        by_channel, dy = dx.movedim(1, -1), dy.movedim(1, -1).to(dx.dtype).contiguous()
        with torch.autocast(dy.device.type, enabled=False):
            for n, part, (x_, y_, z_) in _parts(batch_index, matrices):
                t = torch.matmul(z_.T, dy[n]).view(len(x_), len(y_), -1)
                t = torch.matmul(y_.T, t).view(len(x_), -1)
                by_channel[part] += (x_.T @ t).view(by_channel[part].shape)
        return dx.to(ctx.dtype), None, None, None, None


def _parts(batch_index: Tensor, matrices: tuple[Tensor, ...] | list[Tensor]) -> Iterator[tuple[int, Any, list[Tensor]]]:
    """For every box its number, the part of the features it touches, and the three matrices cut to that part."""
    ranges = []
    for m in matrices:
        used = (m > 0).any(1).long()
        ranges.append((used.argmax(1), m.shape[2] - used.flip(1).argmax(1)))
    table = (
        torch.stack([batch_index, *(t for both in ranges for t in both)], dim=1).tolist() if len(batch_index) else []
    )
    for n, (b, *edges) in enumerate(table):
        slices = [slice(*edges[2 * i : 2 * i + 2]) for i in range(3)]
        yield n, (b, *slices), [m[n, :, s] for m, s in zip(matrices, slices, strict=True)]


# ---- grid_sample


def _grid_sample(features: Tensor, samples: list[Tensor], batch_index: Tensor, dtype: torch.dtype) -> Tensor:
    cells, ratio = tuple(at.shape[1] for at in samples), samples[0].shape[2]
    channels, shape = features.shape[1], features.shape[2:]
    count = channels * ratio**3 * cells[0] * cells[1] * cells[2]
    y = features.new_zeros((len(batch_index), channels, *cells))
    for b in batch_index.unique().tolist():
        image = features[b : b + 1].to(dtype)
        for chosen in (batch_index == b).nonzero()[:, 0].split(max(1, MOST_SAMPLES // count)):
            flat = [at[chosen].flatten(1) for at in samples]
            # grid_sample counts from -1 at the map's outer face to 1 at the other, last axis first.
            x_, y_, z_ = ((2 * at + 1) / n - 1 for at, n in zip(flat, shape, strict=True))
            full = (len(chosen), x_.shape[1], y_.shape[1], z_.shape[1])
            grid = torch.stack(
                [
                    z_[:, None, None, :].expand(full),
                    y_[:, None, :, None].expand(full),
                    x_[:, :, None, None].expand(full),
                ],
                dim=-1,
            ).flatten(0, 1)
            t = F.grid_sample(image, grid[None], padding_mode="border", align_corners=False)[0]
            t = t.unflatten(1, full[:2]).transpose(0, 1)
            x_, y_, z_ = (_inside(at, n).to(dtype) for at, n in zip(flat, shape, strict=True))
            if not all(bool(t.all()) for t in (x_, y_, z_)):
                t = t * (x_[:, :, None, None] * y_[:, None, :, None] * z_[:, None, None, :])[:, None]
            y = y.index_copy(0, chosen, F.avg_pool3d(t, ratio).to(y.dtype))
    return y


# ---- one sample at a time


def _reference(features: Tensor, samples: list[Tensor], batch_index: Tensor, dtype: torch.dtype) -> Tensor:
    """What the fast backends must equal, and the definition: see the module's first lines."""
    cells, ratio, shape = [at.shape[1] for at in samples], samples[0].shape[2], features.shape[2:]
    out = []
    for n, b in enumerate(batch_index.tolist()):
        for cell in product(*(range(c) for c in cells)):
            value = features.new_zeros(features.shape[1], dtype=dtype)
            for sample in product(range(ratio), repeat=3):
                at = [float(samples[axis][n, cell[axis], sample[axis]]) for axis in range(3)]
                if any(p < -1 or p > m for p, m in zip(at, shape, strict=True)):
                    continue
                at = [min(max(p, 0.0), m - 1.0) for p, m in zip(at, shape, strict=True)]
                for corner in product((0, 1), repeat=3):
                    low = [int(p) for p in at]
                    share = [1 - (p - i) if c == 0 else p - i for p, i, c in zip(at, low, corner, strict=True)]
                    if all(share):
                        x, y, z = (i + c for i, c in zip(low, corner, strict=True))
                        value = value + share[0] * share[1] * share[2] * features[b, :, x, y, z].to(dtype)
            out.append(value / ratio**3)
    if not out:
        return features.flatten(2).sum(2)[:0, :, None, None, None].expand(0, -1, *cells)
    return torch.stack(out).unflatten(0, (-1, *cells)).movedim(-1, 1).to(features.dtype)


# ---- what is refused


def _three(value: Any, name: str) -> tuple[Any, Any, Any]:
    three = tuple(value) if isinstance(value, (tuple, list)) else (value,) * 3
    if len(three) != 3:
        raise ValueError(f"{name} must be one number or three, got {len(three)}: {three}")
    return three


def _check(features, boxes, batch_index, size, scale, sampling_ratio, backend) -> None:
    if features.ndim != 5 or not features.is_floating_point() or features.numel() == 0:
        raise ValueError(
            f"features must be floating (B, C, X, Y, Z) with voxels, got {features.dtype} {tuple(features.shape)}"
        )
    if batch_index.shape != boxes.shape[:1] or batch_index.dtype != torch.long:
        raise ValueError(
            f"batch_index must be long ({len(boxes)},) beside {len(boxes)} boxes, "
            f"got {batch_index.dtype} {tuple(batch_index.shape)}"
        )
    if len(batch_index) and not 0 <= int(batch_index.min()) <= int(batch_index.max()) < len(features):
        raise ValueError(
            f"batch_index goes from {int(batch_index.min())} to {int(batch_index.max())}, "
            f"features hold {len(features)} images"
        )
    if min(*size, sampling_ratio) < 1:
        raise ValueError(f"output_size {size} and sampling_ratio {sampling_ratio} must be at least 1")
    if not all(s > 0 for s in scale):
        raise ValueError(f"spatial_scale must be positive (1 / stride), got {scale}")
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f'unknown backend "{backend}"; choose "auto" or one of {", ".join(BACKENDS)}')
