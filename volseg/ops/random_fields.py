"""Banks of smooth random fields in mm, made once per voxel spacing and cut at random for each lesion."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

BANK = 64
SCALES_MM = (0.7, 1.2, 2.0, 3.2, 5.0, 8.0)


def random_cut(bank: NDArray[np.float32], shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """A cut of a periodic bank at a random place, mirrored at random along each axis."""
    starts = rng.integers(0, bank.shape)
    signs = rng.choice((-1, 1), size=3)
    index = [
        (start + sign * np.arange(n)) % size
        for start, sign, n, size in zip(starts, signs, shape, bank.shape, strict=True)
    ]
    return bank[np.ix_(*index)]


@lru_cache(maxsize=16)
def _bank(spacing: tuple[float, float, float], sigma_mm: float) -> NDArray[np.float32]:
    """Periodic white noise smoothed by a Gaussian of `sigma_mm`, mean 0, deviation 1.

    The same for everybody: chance comes in where it is cut.
    """
    white = np.random.default_rng(int(sigma_mm * 1000)).standard_normal((BANK,) * 3).astype(np.float32)
    waves = np.meshgrid(
        *[fft.fftfreq(BANK, d=s) for s in spacing[:2]], fft.rfftfreq(BANK, d=spacing[2]), indexing="ij", sparse=True
    )
    keep = np.exp(-2 * (np.pi * sigma_mm) ** 2 * sum(w**2 for w in waves))
    keep[0, 0, 0] = 0
    field = fft.irfftn(fft.rfftn(white) * keep, s=(BANK,) * 3)
    return (field / field.std()).astype(np.float32)


def smooth_noise(
    shape: tuple[int, ...], spacing: NDArray, sigma_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A field of mean about 0 and deviation about 1 whose grains are `sigma_mm` wide (the nearest of six scales)."""
    scale = min(SCALES_MM, key=lambda s: abs(np.log(s / sigma_mm)))
    key = (round(float(spacing[0]), 3), round(float(spacing[1]), 3), round(float(spacing[2]), 3))
    return random_cut(_bank(key, scale), shape, rng)
