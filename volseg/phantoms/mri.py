"""A spine in MRI of exactly known truth: chance enters; T1, T1c, T2 and STIR with their lesions' masks leave.

The anatomy is the CT phantom's. Each sequence has its own grid, coil shading, noise and scale, and was measured a
moment later, the patient having moved a little, which its header does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import UsageError
from volseg.geometry import Affine, voxel_to_ras_mm, voxel_volume_mm3
from volseg.labels import MRI_CHANNELS, LesionKind, MriChannel
from volseg.ops.random_fields import smooth_noise
from volseg.phantoms import BUILDS, Region, _canvas, _draw, _mineral
from volseg.phantoms.canvas import Canvas
from volseg.phantoms.mri_benign import blob, lookalikes
from volseg.phantoms.mri_signal import CORTEX, PROTOCOLS, TISSUES, draw_contrasts, marrow_signal, spin_echo
from volseg.types import Volume

SCENE_MM = 1.1
KIND_WEIGHTS: Mapping[LesionKind, float] = {"lytic": 0.65, "sclerotic": 0.35}


@dataclass(frozen=True)
class MriOptions:
    """The examination. Sagittal slices: `spacing_mm` is along R, A, S of the first channel; the others differ a little.

    `bias` is the largest shading (0.3 is +-30 %), `noise` the deviation over the marrow's mean signal in T1;
    `motion_mm` and `motion_degrees` bound each channel's movement against the first along and about each axis;
    `lookalikes` are benign things of `mri_benign`, drawn and not labelled.
    """

    region: Region = "abdomen"
    channels: Sequence[MriChannel] = MRI_CHANNELS
    spacing_mm: tuple[float, float, float] = (3.6, 1.0, 1.0)
    size_mm: tuple[float, float, float] = (90.0, 170.0, 160.0)
    lesions: int = 3
    lookalikes: int = 0
    diameters_mm: tuple[float, float] = (8.0, 26.0)
    kinds: Mapping[LesionKind, float] = field(default_factory=lambda: dict(KIND_WEIGHTS))
    bias: float = 0.3
    noise: float = 0.04
    motion_mm: float = 1.5
    motion_degrees: float = 1.0


@dataclass(frozen=True)
class MriLesion:
    """One lesion. `id` is its voxel value; `contrasts` are (lesion - marrow) / marrow by channel, before blur."""

    id: int
    kind: LesionKind
    center_ras_mm: tuple[float, float, float]
    volume_mm3: float
    contrasts: Mapping[MriChannel, float]


@dataclass(frozen=True, eq=False)
class MriPhantom:
    """`volumes` by channel, each int16 on its own grid; the masks lie on the first one's.

    `motion` (4, 4) takes a point of the patient, in RAS+ mm at the time of the first channel, to where it was at the
    time of another. `fat_fraction` is the marrow's; `lookalikes` names what was drawn that is no lesion.
    """

    volumes: Mapping[MriChannel, Volume]
    instances: NDArray[np.uint16]
    bone: NDArray[np.bool_]
    marrow: NDArray[np.bool_]
    lesions: tuple[MriLesion, ...]
    motion: Mapping[MriChannel, Affine]
    fat_fraction: float
    lookalikes: tuple[str, ...] = ()


def mri_phantom(rng: np.random.Generator, options: MriOptions | None = None) -> MriPhantom:
    """A spine of one region with lesions: lytic ones dark in T1, bright in T2 and STIR, enhancing; sclerotic ones dark.

    The same seed gives the same phantom. Lesions that meet one another, or have their centre within 4 mm of the
    picture's edge, are not drawn, so there may be fewer than asked for; a large one can still be cut by the edge.

    Raises:
        UsageError: phantom-region, phantom-spacing.
    """
    o = options or MriOptions()
    if o.region not in BUILDS or not o.channels:
        raise UsageError("phantom-region", f"no MRI phantom for {o.region!r} with channels {list(o.channels)}")
    if not all(0.5 <= s <= 8 for s in o.spacing_mm):
        raise UsageError("phantom-spacing", f"MRI phantom spacing {o.spacing_mm} mm lies outside 0.5..8 mm")
    # The scene reaches 8 mm beyond the picture, so that motion does not bring in its edge.
    size = (o.size_mm[0] + 16, o.size_mm[1] + 16, o.size_mm[2] + 16)
    _, position, canvas = _canvas((SCENE_MM,) * 3, size, BUILDS[o.region], rng)
    _draw(canvas, o.region, BUILDS[o.region], size, 150.0, rng)
    bone, marrow = _mineral(canvas, rng)
    scene = np.diag([SCENE_MM, SCENE_MM, SCENE_MM, 1.0])
    scene[:3, 3] = position
    fat_fraction = float(rng.uniform(0.35, 0.6))
    weights, drawn = _grow(canvas, marrow, o, rng)
    benign = lookalikes(canvas, bone, marrow, weights, o.lookalikes, fat_fraction, rng) if o.lookalikes else []
    painted = [(w, c) for w, (_, c) in zip(weights, drawn, strict=True)] + [(w, c) for _, w, c in benign]

    volumes: dict[MriChannel, Volume] = {}
    motion: dict[MriChannel, Affine] = {}
    for channel in o.channels:
        affine, shape = _grid(o, rng, reference=not volumes, scene=scene)
        motion[channel] = _movement(o, rng, scene, canvas.hu.shape) if volumes else np.eye(4)
        signal = _signal(canvas, bone, marrow, channel, fat_fraction, rng)
        for weight, contrasts in painted:
            tissue = marrow_signal(channel, fat_fraction) * (1 + contrasts[channel])
            grain = 1 + 0.08 * smooth_noise(signal.shape, canvas.spacing_mm, 2.0, rng)
            signal += weight * (tissue * grain - signal)
        seen = sampled(signal, scene, np.linalg.inv(motion[channel]) @ affine, shape)
        noise = o.noise * marrow_signal("T1", fat_fraction)
        volumes[channel] = Volume(_receive(seen, affine, noise, o.bias, rng), affine, channel)

    first = volumes[o.channels[0]]
    grid = (first.affine, first.voxels.shape)
    shares = [sampled(w, scene, *grid) for w in (bone, marrow)]
    instances = np.zeros(first.voxels.shape, np.uint16)
    lesions: list[MriLesion] = []
    for weight, (kind, contrasts) in zip(weights, drawn, strict=True):
        mask = (sampled(weight, scene, *grid) > 0.5) & (instances == 0)
        if mask.any():
            instances[mask] = number = len(lesions) + 1
            center = voxel_to_ras_mm(first.affine, np.argwhere(mask).mean(0))
            volume_mm3 = float(mask.sum()) * voxel_volume_mm3(first.affine)
            middle = (float(center[0]), float(center[1]), float(center[2]))
            lesions.append(MriLesion(number, kind, middle, volume_mm3, contrasts))
    is_bone = shares[0] > 0.5
    return MriPhantom(
        volumes, instances, is_bone, is_bone & (shares[1] > 0.5), tuple(lesions), motion, fat_fraction,
        tuple(kind for kind, _, _ in benign),
    )  # fmt: skip


def _grow(
    canvas: Canvas, marrow: NDArray, o: MriOptions, rng: np.random.Generator
) -> tuple[list[NDArray[np.float32]], list[tuple[LesionKind, Mapping[MriChannel, float]]]]:
    """Rough ellipsoids cut to their bone: their weights 0..1 on the drawing grid, and kind and contrasts of each."""
    kinds, odds = list(o.kinds), np.asarray(list(o.kinds.values()), float)
    spacing, shape = canvas.spacing_mm, canvas.hu.shape
    inner = np.zeros(shape, bool)
    edge = [round(12 / s) for s in spacing]
    inner[edge[0] : -edge[0], edge[1] : -edge[1], edge[2] : -edge[2]] = True
    places = np.flatnonzero(inner & (marrow > 0.9) & (canvas.bone_depth_mm > 4) & (canvas.dense < 0.3))
    weights: list[NDArray[np.float32]] = []
    drawn: list[tuple[LesionKind, Mapping[MriChannel, float]]] = []
    taken = np.zeros(shape, bool)
    for _ in range(12 * o.lesions if places.size else 0):
        if len(weights) == o.lesions:
            break
        kind = kinds[int(rng.choice(len(kinds), p=odds / odds.sum()))]
        radius = float(np.exp(rng.uniform(*np.log(o.diameters_mm)))) / 2
        ijk = np.unravel_index(places[rng.integers(places.size)], shape)
        depth = blob(canvas, ijk, radius, rng)
        weight = (canvas.cover(depth) * canvas.cover(canvas.bone_depth_mm - 0.5)).astype(np.float32)
        weight[_elsewhere(weight > 0.5, ijk)] = 0
        mask = weight > 0.5
        if (taken & ndimage.binary_dilation(mask, iterations=4)).any() or mask.sum() * np.prod(spacing) < 150:
            continue
        taken |= mask
        weights.append(weight)
        drawn.append((kind, draw_contrasts(kind, rng)))
    return weights, drawn


def _elsewhere(mask: NDArray[np.bool_], ijk: Sequence[np.intp]) -> NDArray[np.bool_]:
    """What is not connected with a voxel: the neighbouring vertebra, reached across the disc."""
    pieces, _ = ndimage.label(mask)
    home = ndimage.binary_dilation(pieces == pieces[tuple(ijk)]) if pieces[tuple(ijk)] else np.zeros_like(mask)
    return ~home


def _signal(
    canvas: Canvas, bone: NDArray, marrow: NDArray, channel: MriChannel, fat_fraction: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """The healthy scene in one channel."""
    protocol, spacing = PROTOCOLS[channel], canvas.spacing_mm
    edges = [row[0] for row in TISSUES[:-1]]
    levels = np.asarray([spin_echo(tissue, protocol) for _, _, tissue in TISSUES], np.float32)
    soft = levels[np.digitize(canvas.plain_hu, edges)]
    soft = soft * (1 + 0.06 * smooth_noise(soft.shape, spacing, 3.2, rng))
    # Red and fatty marrow in islands; solid facets hold little of either.
    islands = (
        1 + 0.08 * smooth_noise(soft.shape, spacing, 3.2, rng) + 0.05 * smooth_noise(soft.shape, spacing, 1.2, rng)
    )
    cancellous = marrow_signal(channel, fat_fraction) * islands * (1 - 0.7 * canvas.dense)
    mineral = marrow * cancellous + (bone - marrow) * spin_echo(CORTEX, protocol)
    return ((1 - bone) * soft + mineral).astype(np.float32)


def _grid(
    o: MriOptions, rng: np.random.Generator, *, reference: bool, scene: Affine
) -> tuple[Affine, tuple[int, int, int]]:
    """A sagittal block of slices. Other channels than the first have their own voxels, somewhat shifted."""
    vary = np.ones(3) if reference else np.asarray([rng.uniform(0.9, 1.2), *[rng.uniform(0.9, 1.25)] * 2])
    steps = np.asarray(o.spacing_mm) * vary
    counts = [max(4, round(extent / s)) for extent, s in zip(o.size_mm, steps, strict=True)]
    affine = np.diag([*steps, 1.0])
    shift = np.zeros(3) if reference else rng.uniform(-2, 2, 3)
    affine[:3, 3] = scene[:3, 3] + 8 + steps / 2 + shift
    return affine, (counts[0], counts[1], counts[2])


def _movement(o: MriOptions, rng: np.random.Generator, scene: Affine, shape: Sequence[int]) -> Affine:
    """A small rigid motion about the middle of the scene."""
    angles = np.radians(rng.uniform(-o.motion_degrees, o.motion_degrees, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    middle = voxel_to_ras_mm(scene, (np.asarray(shape) - 1) / 2)
    out = np.eye(4)
    out[:3, :3] = turn
    out[:3, 3] = middle + rng.uniform(-o.motion_mm, o.motion_mm, 3) - turn @ middle
    return out


def sampled(fine: NDArray, scene: Affine, affine: Affine, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The drawing seen by thick slices: a Gaussian as wide as a voxel at half height, then its centers."""
    to_fine = np.linalg.inv(scene) @ affine
    widths = np.abs(to_fine[:3, :3]).max(axis=1)
    blurred = ndimage.gaussian_filter(fine, widths / 2.355 * (widths > 1.5), truncate=3.0)
    return ndimage.affine_transform(
        blurred, to_fine[:3, :3], to_fine[:3, 3], output_shape=shape, order=1, mode="nearest"
    )


def _receive(seen: NDArray, affine: Affine, noise: float, bias: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Coil shading, Rician noise and the arbitrary scale of the scanner."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in seen.shape], indexing="ij", sparse=True)
    c = rng.normal(0, 1, 6)
    shade = c[0] * x + c[1] * y + c[2] * z + c[3] * (y * y - z * z) + c[4] * y * z + c[5] * (z * z - 0.5)
    seen = seen * (1 + bias * shade / np.abs(shade).max())
    real, imaginary = noise * rng.standard_normal((2, *seen.shape))
    magnitude = np.hypot(seen + real, imaginary)
    scale = float(np.exp(rng.uniform(np.log(300), np.log(3000)))) / float(np.percentile(magnitude, 99))
    return np.clip(np.rint(magnitude * scale), 0, 32767).astype(np.int16)
