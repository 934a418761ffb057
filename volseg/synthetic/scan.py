"""A scene of exactly known truth -> the same scene as one site's CT shows it: point spread, voxel grid, noise.

The order is the physics': blur, sample, then noise with the kernel's own grain. Truth is sampled on the same grid.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.geometry import Affine, spacing_mm, voxel_to_ras_mm, voxel_volume_mm3
from volseg.synthetic.sites import Site
from volseg.transforms.synthesis_scanner import Scanner
from volseg.types import Volume

# A lesion that fills less than this of the site's grid cannot be seen there, and is no truth.
SMALLEST_VOXELS, SMALLEST_MM3 = 2, 30.0


def scanned(
    scene: Volume,
    instances: NDArray[np.uint16],
    scanner: Scanner,
    site: Site,
    noise_hu: float,
    rng: np.random.Generator,
) -> tuple[Volume, NDArray[np.uint16], NDArray[np.int64]]:
    """(X, Y, Z) HU and instances in RAS order -> both on the site's grid, and the ids that were kept, in order.

    The kept lesions are numbered 1, 2, 3 ... anew. `scanner` is what the scene has seen already: only what it lacks of
    the site's blur and noise is added.
    """
    fine = spacing_mm(scene.affine)
    coarse = np.maximum(fine, site.spacing_mm)
    wanted = np.asarray([site.blur_mm[0], site.blur_mm[0], site.blur_mm[1]])
    sigma = np.sqrt(np.clip(wanted**2 - np.asarray(scanner.blur_mm) ** 2, 0, None)) / fine
    affine, shape, steps, offset = _grid(scene, coarse)

    soft = ndimage.gaussian_filter(scene.voxels.astype(np.float32), sigma, truncate=3.0)
    seen = _sampled(soft, steps, offset, shape)
    left = scanner.noise_hu * float(ndimage.gaussian_filter(scanner.grain, sigma, mode="wrap", truncate=3.0).std())
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), site.grain_mm / coarse, truncate=3.0)
    seen += grain * (np.sqrt(max(noise_hu**2 - left**2, 0.0)) / max(float(grain.std()), 1e-6))
    voxels = np.clip(np.rint(seen), -1024, 8000).astype(np.int16)

    truth = np.zeros(shape, np.uint16)
    kept = []
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        low = np.maximum(np.floor(([s.start for s in box] - offset) / steps).astype(int) - 1, 0)
        high = np.minimum(np.ceil(([s.stop for s in box] - offset) / steps).astype(int) + 2, shape)
        inside = (instances == number).astype(np.float32)
        share = _sampled(inside, steps, offset + low * steps, tuple(int(n) for n in high - low))
        here = truth[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
        mask = (share >= 0.5) & (here == 0)
        if mask.sum() >= SMALLEST_VOXELS and mask.sum() * voxel_volume_mm3(affine) >= SMALLEST_MM3:
            kept.append(number)
            here[mask] = len(kept)
    return replace(scene, voxels=voxels, affine=affine), truth, np.asarray(kept, np.int64)


def _grid(scene: Volume, coarse: NDArray) -> tuple[Affine, tuple[int, int, int], NDArray, NDArray]:
    """The site's grid over the same picture, outer edges aligned: affine, shape, and voxel j at offset + j * steps."""
    steps = coarse / spacing_mm(scene.affine)
    offset = (steps - 1) / 2
    n = np.maximum(1, np.floor(np.asarray(scene.voxels.shape) / steps + 1e-6)).astype(int)
    affine = np.array(scene.affine, dtype=np.float64)
    affine[:3, 3] = voxel_to_ras_mm(scene.affine, offset)
    affine[:3, :3] = affine[:3, :3] * steps
    return affine, (int(n[0]), int(n[1]), int(n[2])), steps, offset


def _sampled(fine: NDArray[np.float32], steps: NDArray, offset: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear samples at offset + j * steps. The point spread through the slices stands for their thickness."""
    sampled: NDArray[np.float32] = ndimage.affine_transform(
        fine, steps, offset, output_shape=shape, order=1, mode="nearest"
    )
    return sampled
