"""Lesions grown in real MRI: the sequences of an examination and a mask of its vertebrae enter; cases on disk leave.

There is no bone mask without a model in MRI, so the mask is given: SPIDER, for one, has vertebrae outlined by people.
A lesion is drawn once in RAS mm and painted in every sequence by the contrasts to marrow of
`volseg.phantoms.mri_signal`, against the marrow around it. Synthetic results are never clinical accuracy.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import InputError
from volseg.geometry import Affine, ras_mm_to_voxel, spacing_mm, voxel_to_ras_mm, voxel_volume_mm3
from volseg.io.kept_cases import fingerprint
from volseg.labels import LesionKind, MriChannel
from volseg.ops.random_fields import smooth_noise
from volseg.phantoms.mri import KIND_WEIGHTS, MriLesion, sampled
from volseg.phantoms.mri_signal import draw_contrasts
from volseg.synth_mri.files import MriCase, Recipe, write_cases
from volseg.synth_mri.phantoms import MriSynthOptions
from volseg.transforms.synthesis_shape import depth_in_bone_mm, draw_parts, outline_mm, smooth_step
from volseg.types import Study, Volume

log = logging.getLogger(__name__)

FINE_MM = 1.0
TRIES = 12
DEEPEST_CENTER_MM = 3.0  # a lesion starts this deep in the bone, or as deep as the mask allows
SMALLEST_MM3 = 150.0
NEIGHBOURHOOD_MM = 25.0
EDGE_MM = 0.6  # deviation of the blur of a lesion's edge
GAP_MM = 4.0
WHITE = 2000  # of int16, where voxels come as fractions


@dataclass(frozen=True, eq=False)
class MarrowMask:
    """Where lesions may grow: signed depth in the bone in mm (X, Y, Z), positive inside, and voxel -> RAS+ mm."""

    depth_mm: NDArray[np.float32]
    affine: Affine

    @classmethod
    def of(cls, mask: Volume, labels: Collection[int] | None = None, name: str = "mask") -> MarrowMask:
        """From a label map: vertebrae are the voxels of `labels`, by default all above 0.

        Raises InputError (marrow-mask-empty) where there are none.
        """
        inside = np.isin(mask.voxels, list(labels)) if labels else mask.voxels > 0
        if not inside.any():
            there = ", ".join(f"{v:g}" for v in np.unique(mask.voxels)[:20])
            raise InputError("marrow-mask-empty", f"{name}: no voxel to grow lesions in; its values are {there}")
        depth = depth_in_bone_mm(inside, spacing_mm(mask.affine)).astype(np.float32)
        return cls(depth, mask.affine)

    def seen_from(self, affine: Affine, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The depth on another grid; far outside where the mask was never drawn."""
        across = np.linalg.inv(self.affine) @ affine
        return ndimage.affine_transform(
            self.depth_mm, across[:3, :3], across[:3, 3], output_shape=shape, order=1, cval=-99.0
        )


def write_grown_mri(
    study: Study,
    marrow: MarrowMask,
    folder: Path,
    options: MriSynthOptions,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Grow `options.n` cases in one examination and list them; returns the studies' folders. See `write_cases`.

    Raises:
        InputError: marrow-mask-elsewhere: the mask does not meet the reference sequence; cases-of-another where cases
            of this name were grown in another examination, within another mask or with other options.
    """
    reference = next(iter(study.volumes.values()))
    if not (marrow.seen_from(reference.affine, reference.voxels.shape) > 0).any():
        raise InputError(
            "marrow-mask-elsewhere",
            f"{study.name}: the mask does not overlap {reference.channel}; is it this patient's?",
        )
    names = [f"{study.name}_s{options.seed}_{number:03d}" for number in range(options.n)]
    # The mask, not its depth: distances are fractions that another scipy may round otherwise.
    where = np.packbits(marrow.depth_mm > 0).tobytes() + marrow.affine.tobytes()
    made_from = fingerprint(*study.volumes.values(), more=where)
    return write_cases(
        folder,
        names,
        lambda number: grow_mri_case(study, marrow, options, number),
        Recipe(asdict(options), made_from, study.name),
        progress=progress,
        say=say,
    )


def grow_mri_case(study: Study, marrow: MarrowMask, options: MriSynthOptions, number: int) -> MriCase:
    """One case in memory; it depends on (seed, the study's name, number) alone."""
    rng = np.random.default_rng([options.seed, zlib.crc32(study.name.encode()), number])
    healthy = bool(rng.random() < options.healthy)
    wanted = 0 if healthy else int(rng.integers(options.lesions[0], options.lesions[1] + 1))
    volumes, instances, lesions = grow_mri_lesions(study.volumes, marrow, n=wanted, rng=rng)
    facts = {"source": study.name, "number": number}
    whole = {channel: replace(v, voxels=_int16(v.voxels)) for channel, v in volumes.items()}
    return MriCase(whole, instances, lesions, facts)


def grow_mri_lesions(
    volumes: Mapping[str, Volume],
    marrow: MarrowMask,
    *,
    n: int,
    rng: np.random.Generator,
    kinds: Mapping[LesionKind, float] = KIND_WEIGHTS,
    diameters_mm: tuple[float, float] = (8.0, 30.0),
) -> tuple[dict[MriChannel, Volume], NDArray[np.uint16], tuple[MriLesion, ...]]:
    """Grow at most `n` lesions in the marrow of an examination.

    Returns (float32 volumes by channel, each on its own grid; instances uint16 on the first one's; the lesions). Where
    the mask or the reference's field of view has no room, fewer are grown and a warning is logged.
    """
    new = {cast(MriChannel, c): replace(v, voxels=v.voxels.astype(np.float32)) for c, v in volumes.items()}
    bone = {c: marrow.seen_from(v.affine, v.voxels.shape) > 1 for c, v in new.items()}
    first = next(iter(new.values()))
    instances = np.zeros(first.voxels.shape, np.uint16)
    # Only where the reference looks: a lesion nobody sees cannot be labelled.
    index = np.argwhere(marrow.depth_mm > min(DEEPEST_CENTER_MM, 0.7 * float(marrow.depth_mm.max())))
    seen = ras_mm_to_voxel(first.affine, voxel_to_ras_mm(marrow.affine, index))
    places = index[((seen >= 0) & (seen <= np.asarray(instances.shape) - 1)).all(1)]
    names, odds = list(kinds), np.asarray(list(kinds.values()), float)
    lesions: list[MriLesion] = []
    for _ in range(TRIES * n if len(places) else 0):
        if len(lesions) == n:
            break
        kind = names[int(rng.choice(len(names), p=odds / odds.sum()))]
        diameter = float(np.exp(rng.uniform(*np.log(diameters_mm))))
        center = voxel_to_ras_mm(marrow.affine, places[rng.integers(len(places))])
        weight, grid = _weight(marrow, center, diameter, rng)
        mask = sampled(weight, grid, first.affine, instances.shape) > 0.5
        if mask.sum() * voxel_volume_mm3(first.affine) < SMALLEST_MM3 or _touches(mask, instances, first.affine):
            continue
        contrasts = draw_contrasts(kind, rng)
        new = {c: _painted(v, bone[c], weight, grid, center, contrasts[c], rng) for c, v in new.items()}
        instances[mask] = number = len(lesions) + 1
        middle = voxel_to_ras_mm(first.affine, np.argwhere(mask).mean(0))
        lesions.append(
            MriLesion(
                number,
                kind,
                (float(middle[0]), float(middle[1]), float(middle[2])),
                float(mask.sum()) * voxel_volume_mm3(first.affine),
                {channel: contrasts[channel] for channel in new},
            )
        )
    if len(lesions) < n:
        log.warning("grew %d of %d lesions: no more room in the mask", len(lesions), n)
    return new, instances, tuple(lesions)


def _weight(
    marrow: MarrowMask, center: NDArray, diameter_mm: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], Affine]:
    """How much of each point is lesion, 0..1, on a fine grid of its own in RAS mm: a rough blob cut to its bone."""
    parts = draw_parts(diameter_mm, rng)
    half = int(np.ceil((1.3 * diameter_mm + 4) / FINE_MM))
    grid = np.diag([FINE_MM, FINE_MM, FINE_MM, 1.0])
    grid[:3, 3] = center - half * FINE_MM
    shape = (2 * half + 1,) * 3
    xyz = (np.indices(shape, dtype=np.float32) - half) * FINE_MM
    outline = outline_mm(parts, xyz, np.full(3, FINE_MM), float(rng.uniform(0.1, 0.2)), rng)
    bone = marrow.seen_from(grid, shape)
    weight = (smooth_step(outline, EDGE_MM) * smooth_step(bone - 0.5, EDGE_MM)).astype(np.float32)
    pieces, _ = ndimage.label(weight > 0.5)
    home = pieces[half, half, half]
    if not home:
        return np.zeros_like(weight), grid
    weight[~ndimage.binary_dilation(pieces == home, iterations=2)] = 0
    return weight, grid


def _touches(mask: NDArray[np.bool_], instances: NDArray[np.uint16], affine: Affine) -> bool:
    """Whether it comes closer than `GAP_MM` to another lesion."""
    if not instances.any():
        return False
    distance = ndimage.distance_transform_edt(instances == 0, sampling=spacing_mm(affine))
    return bool(distance[mask].min() < GAP_MM)


def _painted(
    volume: Volume,
    bone: NDArray[np.bool_],
    weight: NDArray[np.float32],
    grid: Affine,
    center: NDArray,
    contrast: float,
    rng: np.random.Generator,
) -> Volume:
    """One sequence with the lesion: the marrow's level about it times (1 + contrast), some grain, and the old noise."""
    old, affine = volume.voxels, volume.affine
    share = sampled(weight, grid, affine, old.shape)
    if share.max() < 0.1:
        return volume
    spacing = spacing_mm(affine)
    steps = (np.indices(old.shape, dtype=np.float32).reshape(3, -1).T - ras_mm_to_voxel(affine, center)) * spacing
    near = bone & (np.linalg.norm(steps, axis=1).reshape(old.shape) < NEIGHBOURHOOD_MM)
    healthy = near & (share < 0.1)
    level = float(np.median(old[healthy if healthy.sum() >= 30 else near if near.any() else share >= 0.1]))
    grain = 1 + 0.08 * smooth_noise(old.shape, spacing, 2.0, rng)
    noise = old - ndimage.gaussian_filter(old, 1.0)
    lesion = level * (1 + contrast) * grain + noise
    return replace(volume, voxels=(old + share * (lesion - old)).astype(np.float32))


def _int16(voxels: NDArray) -> NDArray[np.int16]:
    """Counts stay counts; fractions, and what int16 cannot hold, are scaled: MRI has no unit."""
    top = float(np.percentile(np.abs(voxels), 99.9))
    factor = 1.0 if 100 <= top <= 16000 else WHITE / max(top, 1e-6)
    return np.clip(np.rint(voxels * factor), -32768, 32767).astype(np.int16)
