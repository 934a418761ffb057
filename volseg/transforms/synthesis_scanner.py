"""How sharp and how noisy is this CT? A volume enters; a `Scanner` leaves, which can blur and grain as that CT does.

A lesion painted without the scanner's own blur and noise is learnt by its missing noise (synthesis.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from volseg.geometry import spacing_mm
from volseg.ops.random_fields import BANK, random_cut

# Cortex against fat or muscle as the 99th percentile edge sees it. Chosen so that the 1 mm chest CT gives about
# 0.4 mm in all axes and the 4.25 mm slices of ACRIN-FLT about 1.9 mm along z (measured 2026-11).
BONE_EDGE_HU = 640.0
SOFT_TISSUE_HU = (-20.0, 110.0)
SMOOTH_MM = 1.6
PATCH = 12
FALLBACK_NOISE_HU = 12.0
ENOUGH_VOXELS = 8_000_000


@dataclass(frozen=True, eq=False)
class Scanner:
    """What one CT does to what it sees, on its own grid.

    `blur_mm` (3,) is the Gaussian sigma of the point spread along each voxel axis; `noise_hu` the standard deviation in
    homogeneous soft tissue; `grain` (64, 64, 64) a periodic field of mean 0 and deviation 1 with the CT's own noise
    power spectrum, of which `grain_residual` is left once it is smoothed by 1.6 mm and that is taken off.
    """

    blur_mm: tuple[float, float, float]
    noise_hu: float
    grain: NDArray[np.float32]
    grain_residual: float

    def local_noise_hu(self, hu: NDArray, smooth_hu: NDArray, soft: NDArray[np.bool_]) -> float:
        """Noise deviation in a box's soft tissue, from what smoothing takes off; the whole CT's if little is there."""
        rest = (hu - smooth_hu)[soft]
        if rest.size < 400:
            return self.noise_hu
        local = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) / max(self.grain_residual, 0.1)
        return float(np.clip(local, 0.6 * self.noise_hu, 2.0 * self.noise_hu))

    def noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """A random cut of the grain, deviation 1, of any shape (periodic beyond 64 voxels)."""
        return random_cut(self.grain, shape, rng)


def measure_scanner(hu: NDArray, affine: NDArray, *, seed: int = 0) -> Scanner:
    """Measure blur and noise of a CT (X, Y, Z) in HU: about 1 s. Reuse it for cuts of one CT."""
    spacing = spacing_mm(affine)
    hu = _middle(hu)
    patches = _soft_patches(hu)
    sigma, grain = _grain(patches, np.random.default_rng(seed))
    rest = grain - ndimage.gaussian_filter(grain, SMOOTH_MM / spacing, mode="wrap", truncate=2.5)
    return Scanner(blur_mm=_blur_mm(hu, spacing), noise_hu=sigma, grain=grain, grain_residual=float(rest.std()))


def _middle(hu: NDArray) -> NDArray:
    """A cut of at most 8 million voxels around the middle: enough to measure."""
    while hu.size > ENOUGH_VOXELS:
        axis = int(np.argmax(hu.shape))
        hu = hu[tuple(slice(n // 10, n - n // 10) if a == axis else slice(None) for a, n in enumerate(hu.shape))]
    return hu


def _blur_mm(hu: NDArray, spacing: NDArray) -> tuple[float, float, float]:
    """Edge sigma per axis from the steepest one percent of the gradients around bone."""
    step = max(1, hu.shape[2] // 160)
    bone = (hu[:, :, ::step] > 250) & (hu[:, :, ::step] < 2500)
    bone = ndimage.binary_dilation(bone, iterations=2)
    sigmas = []
    for axis in range(3):
        if hu.shape[axis] < 3:
            sigmas.append(0.5 * float(spacing[axis]))
            continue
        slope = np.abs(np.diff(hu.astype(np.float32, copy=False), axis=axis)) / spacing[axis]
        slope = slope[:, :, ::step][:, :, : bone.shape[2]]
        near = bone[tuple(slice(0, n) for n in slope.shape)]
        steep = float(np.percentile(slope[near], 99)) if near.any() else 0.0
        sigma = BONE_EDGE_HU / (np.sqrt(2 * np.pi) * max(steep, 1.0))
        sigmas.append(float(np.clip(sigma, 0.35 * spacing[axis], max(2.5, 0.6 * spacing[axis]))))
    return (sigmas[0], sigmas[1], sigmas[2])


def _soft_patches(hu: NDArray, wanted: int = 48) -> NDArray[np.float32]:
    """Up to `wanted` patches (n, 12, 12, 12) of almost wholly homogeneous soft tissue, trends removed."""
    low, high = SOFT_TISSUE_HU
    grid = [np.arange(0, n - PATCH + 1, PATCH // 2) for n in hu.shape]
    if any(len(g) == 0 for g in grid):
        return np.zeros((0, PATCH, PATCH, PATCH), np.float32)
    soft = (hu > low) & (hu < high)
    fraction = ndimage.uniform_filter(soft.astype(np.float32), PATCH)[np.ix_(*[g + PATCH // 2 for g in grid])]
    ranked = np.argsort(fraction, axis=None)[::-1][: 4 * wanted]
    ranked = ranked[fraction.flat[ranked] > 0.9]
    found = []
    axes = np.indices((PATCH, PATCH, PATCH)).reshape(3, -1) / PATCH - 0.5
    design = np.stack(
        [np.ones(PATCH**3), *axes, *(axes**2), axes[0] * axes[1], axes[0] * axes[2], axes[1] * axes[2]], 1
    )
    project = design @ np.linalg.pinv(design)
    for flat in ranked:
        corner = [g[i] for g, i in zip(grid, np.unravel_index(flat, fraction.shape), strict=True)]
        patch = hu[tuple(slice(c, c + PATCH) for c in corner)].astype(np.float64).ravel()
        middle = np.median(patch)
        patch = np.clip(patch, middle - 80, middle + 80)
        found.append((patch - project @ patch).reshape(PATCH, PATCH, PATCH))
    if not found:
        return np.zeros((0, PATCH, PATCH, PATCH), np.float32)
    # Anatomy can only add variance: the quieter half of the patches is the noise.
    found.sort(key=lambda p: float(p.std()))
    return np.asarray(found[: max(4, min(wanted, len(found) // 2 + 1))], np.float32)


def _grain(patches: NDArray[np.float32], rng: np.random.Generator) -> tuple[float, NDArray[np.float32]]:
    """Noise deviation in HU, and white noise shaped by the patches' mean autocorrelation."""
    white = rng.standard_normal((BANK, BANK, BANK)).astype(np.float32)
    if len(patches) < 4:
        field = ndimage.gaussian_filter(white, 0.6, mode="wrap")
        return FALLBACK_NOISE_HU, (field / field.std()).astype(np.float32)
    sigma = float(np.median(patches.std(axis=(1, 2, 3))))
    padded = 2 * PATCH
    power = (np.abs(fft.rfftn(patches, s=(padded,) * 3, axes=(1, 2, 3))) ** 2).mean(0)
    correlation = fft.fftshift(fft.irfftn(power, s=(padded,) * 3))
    taper = np.hanning(padded + 1)[:-1]
    correlation = correlation * taper[:, None, None] * taper[None, :, None] * taper[None, None, :]
    bank = np.zeros((BANK,) * 3)
    lo = BANK // 2 - padded // 2
    bank[lo : lo + padded, lo : lo + padded, lo : lo + padded] = correlation
    amplitude = np.sqrt(np.clip(fft.rfftn(fft.ifftshift(bank)).real, 0, None))
    amplitude[0, 0, 0] = 0
    field = fft.irfftn(fft.rfftn(white) * amplitude, s=(BANK,) * 3)
    return max(sigma, 1.0), (field / max(float(field.std()), 1e-9)).astype(np.float32)
