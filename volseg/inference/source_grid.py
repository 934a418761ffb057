"""Sliding window and way back in one: labels on the grid the study was read on, without the logits of a volume.

The plain road keeps K channels of the working grid, K channels of the source grid (what `Invertd` makes of them), and
takes the argmax there. Here a slab of blended logits is interpolated to the source planes it covers as soon as it is
final, the argmax is taken there, and only its number is kept: memory does not depend on how many planes the CT has.
Classes pass a few at a time, so that what is held beside the slab does not depend on their number either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch
from numpy.typing import NDArray
from torch import Tensor

from volseg.errors import InputError
from volseg.geometry import Affine
from volseg.inference.slabs import Slab, joined
from volseg.inference.sliding_window import OccupiedSlidingWindowInferer
from volseg.transforms.interpolate import interpolate, separable_axes
from volseg.transforms.invert import clear_padding, source_grid
from volseg.transforms.resample import Shape

# Bytes of logits on the source grid that are interpolated at a time.
BLOCK_BYTES = 4 << 20


class SourceGridInferer(OccupiedSlidingWindowInferer):
    """`OccupiedSlidingWindowInferer` that hands back class numbers on each image's source grid.

    `inferer(image, network)` takes a batch (B, C, X, Y, Z) of MetaTensors that know where they came from
    (`original_affine` and `spatial_shape`, as LoadImaged writes them) and returns (B, 1, *source shape) uint8 (int16
    from 256 classes on) with the source's affine: leave Invertd and AsDiscreted out of the postprocessing. It equals
    trilinear interpolation of all logits followed by argmax. Images of one batch must share the source shape.

    Raises InputError where the metadata do not say where an image came from.
    """

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        occupancy: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, C, X, Y, Z) on the working grid -> class numbers (B, 1, X', Y', Z') on the source grid."""
        if not isinstance(inputs, MetaTensor):
            raise InputError("no-source-grid", "a plain tensor does not say which grid it came from; give a MetaTensor")
        images = decollate_batch(inputs) if inputs.is_batch else [inputs[i] for i in range(len(inputs))]
        results: list[Tensor] = []
        for image, (plain, where) in zip(images, self._volumes(inputs, occupancy), strict=True):
            affine, shape = source_grid(image)
            slabs = self.slabs(plain, network, where, *args, **kwargs)
            voxel_map = np.linalg.solve(np.asarray(image.affine.cpu(), dtype=np.float64), affine)
            labels = labels_on_grid(slabs, tuple(plain.shape[1:]), voxel_map, shape)
            clear_padding(labels, image)
            results.append(_on_source(labels, image, affine))
        return results[0][None] if len(results) == 1 else torch.stack(results)


def _on_source(labels: Tensor, image: MetaTensor, affine: Affine) -> MetaTensor:
    out = MetaTensor(labels[None], meta=dict(image.meta))
    out.affine = torch.from_numpy(np.array(affine))
    return out


def labels_on_grid(slabs: Iterable[Slab], size: Sequence[int], voxel_map: NDArray[Any], shape: Shape) -> Tensor:
    """Argmax of logits interpolated linearly to another grid: (*shape) uint8, int16 from 256 classes on.

    `slabs` are the planes of a (K, *size) volume in order; `voxel_map` (4, 4) takes voxels of the target grid to voxels
    of that volume. Where the slabs' axis runs along a target axis, at most one slab is held at a time; for rotated
    grids the logits are gathered first.
    """
    axes = separable_axes(voxel_map, shape)
    if axes is None:
        volume = joined(list(slabs))
        labels = _empty_labels(volume, shape)
        _fill(labels, volume, voxel_map)
        return labels
    along = axes.index(0)
    position = np.clip(_positions(voxel_map, shape, along), 0, size[0] - 1)
    needed = np.ceil(position - 1e-6).astype(int)
    out: Tensor | None = None
    held: Slab | None = None
    filled = np.zeros(shape[along], dtype=bool)
    for slab in slabs:
        # A target plane between two slabs needs the last plane of the one before.
        planes = slab if held is None else joined([held, slab])
        held = joined([slab.cut(slice(slab.values.shape[1] - 1, None))])
        ready = np.flatnonzero(~filled & (needed < slab.last))
        if out is None:
            out = _empty_labels(planes, shape)
        if not ready.size:
            continue
        start, stop = int(ready[0]), int(ready[-1]) + 1
        filled[start:stop] = True
        here = voxel_map.copy()
        here[:3, 3] += voxel_map[:3, along] * start
        here[0, 3] -= planes.first
        _fill(out.narrow(along, start, stop - start), planes, here)
    assert out is not None and filled.all()
    return out


def _positions(voxel_map: NDArray[Any], shape: Shape, along: int) -> NDArray[np.float64]:
    """Where the target planes of axis `along` lie on the slabs' axis; cross terms as `interpolate` takes them."""
    middle = (np.asarray(shape) - 1) / 2
    middle[along] = 0
    return voxel_map[0, 3] + voxel_map[0, :3] @ middle + voxel_map[0, along] * np.arange(shape[along])


def _empty_labels(slab: Slab, shape: Shape) -> Tensor:
    dtype = torch.uint8 if slab.classes < 256 else torch.int16
    return torch.empty(tuple(shape), dtype=dtype, device=slab.values.device)


def _fill(out: Tensor, slab: Slab, voxel_map: NDArray[Any]) -> None:
    """Write the argmax of the slab's logits at every voxel of `out`: a few classes at a time, and of these a block of
    voxels at a time along its two slower axes."""
    few = max(1, min(slab.classes, BLOCK_BYTES // (4 * slab.values[0].numel())))
    rows = max(1, BLOCK_BYTES // (4 * few * out.shape[2]))
    ty = min(out.shape[1], rows)
    tx = max(1, rows // out.shape[1])
    # The largest logit so far, of all voxels where not all classes pass at once.
    best = torch.empty(out.shape, device=out.device) if few < slab.classes else None
    for first in range(0, slab.classes, few):
        logits = slab.logits(first, min(first + few, slab.classes))
        for x in range(0, out.shape[0], tx):
            for y in range(0, out.shape[1], ty):
                block = (slice(x, x + tx), slice(y, y + ty))
                here = voxel_map.copy()
                here[:3, 3] += voxel_map[:3, :3] @ (x, y, 0)
                values = interpolate(logits, here, out[block].shape)
                _keep_larger(values, first, out[block], None if best is None else best[block])


def _keep_larger(values: Tensor, first: int, labels: Tensor, best: Tensor | None) -> None:
    """Where one of `values` (K, ...), those of classes `first` and up, exceeds `best`, write its number and keep it.

    Not argmax over the first dimension: 4.5 of 5.1 s of a whole chest CT went there (torch 2.13, CPU, 2026-11).
    """
    start = 0
    if best is None:
        best = values[0]
    elif first == 0:
        best.copy_(values[0])
    if first == 0:
        labels.zero_()
        start = 1
    for k in range(start, len(values)):
        labels.masked_fill_(values[k] > best, first + k)
        torch.maximum(best, values[k], out=best)
