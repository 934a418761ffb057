"""What is no metastasis and looks a little like one in MRI: places and contrasts for the phantom. No files, no labels.

Contrasts to marrow are ours, after textbook descriptions: a haemangioma is fat and slow blood (bright in T1 and T2), a
fat island follows fat (bright in T1, dark where fat is suppressed), a bone island is dark in all and small, a cyst
outside the bone is fluid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.labels import MriChannel
from volseg.ops.random_fields import smooth_noise
from volseg.phantoms.canvas import Canvas
from volseg.phantoms.mri_signal import PROTOCOLS, TISSUES, marrow_signal, spin_echo

Contrasts = Mapping[MriChannel, float]
FLUID = next(tissue for _, name, tissue in TISSUES if name == "fluid")

# kind -> contrasts of its middle to marrow; each varies by a fifth.
IN_MARROW: Mapping[str, Contrasts] = {
    "haemangioma": {"T1": 0.55, "T1c": 0.8, "T2": 0.7, "STIR": 0.3},
    "fat island": {"T1": 0.45, "T1c": 0.4, "T2": 0.3, "STIR": -0.5},
    "bone island": {"T1": -0.75, "T1c": -0.7, "T2": -0.7, "STIR": -0.7},
}
DIAMETERS_MM: Mapping[str, tuple[float, float]] = {
    "haemangioma": (7.0, 18.0),
    "fat island": (6.0, 16.0),
    "bone island": (3.5, 6.5),
    "cyst": (6.0, 28.0),
}


def blob(canvas: Canvas, ijk: Sequence[np.intp], radius_mm: float, rng: np.random.Generator) -> NDArray:
    """Signed depth in mm of a rough ellipsoid about a voxel, positive inside; the whole grid."""
    radii = radius_mm * np.exp(rng.normal(0, 0.15, 3))
    rough = 0.12 * smooth_noise(canvas.hu.shape, canvas.spacing_mm, 0.5 * radius_mm, rng)
    axes = [
        ((v - v[i]) / r).reshape(d)
        for v, i, r, d in zip(
            (canvas.x, canvas.y, canvas.z), ijk, radii, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True
        )
    ]
    return (1 + rough - np.sqrt(axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2)) * radius_mm


def lookalikes(
    canvas: Canvas,
    bone: NDArray,
    marrow: NDArray,
    lesions: Sequence[NDArray],
    count: int,
    fat_fraction: float,
    rng: np.random.Generator,
) -> list[tuple[str, NDArray[np.float32], Contrasts]]:
    """At most `count` look-alikes clear of the lesions: kind, weight 0..1 on the canvas, contrasts to marrow."""
    taken = np.zeros(canvas.hu.shape, bool)
    for weight in lesions:
        taken |= weight > 0.1
    taken = ndimage.binary_dilation(taken, iterations=3)
    inside = np.flatnonzero((marrow > 0.9) & (canvas.bone_depth_mm > 3) & ~taken)
    beside = np.flatnonzero((canvas.plain_hu > -200) & (canvas.bone_depth_mm < -4) & ~taken)
    kinds = (*IN_MARROW, "cyst")
    drawn: list[tuple[str, NDArray[np.float32], Contrasts]] = []
    for _ in range(4 * count):
        if len(drawn) == count:
            break
        kind = kinds[int(rng.integers(len(kinds)))]
        places = beside if kind == "cyst" else inside
        if not places.size:
            continue
        ijk = np.unravel_index(places[rng.integers(places.size)], canvas.hu.shape)
        radius = float(np.exp(rng.uniform(*np.log(DIAMETERS_MM[kind])))) / 2
        weight = (canvas.cover(blob(canvas, ijk, radius, rng)) * (1 - bone if kind == "cyst" else bone)).astype(
            np.float32
        )
        if (taken & (weight > 0.1)).any():
            continue
        taken |= weight > 0.1
        if kind == "cyst":
            contrasts: Contrasts = {
                c: spin_echo(FLUID, p) / marrow_signal(c, fat_fraction) - 1 for c, p in PROTOCOLS.items()
            }
        else:
            contrasts = {c: float(v * rng.normal(1, 0.2)) for c, v in IN_MARROW[kind].items()}
        drawn.append((kind, weight, contrasts))
    return drawn
