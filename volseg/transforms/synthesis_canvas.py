"""Where in the bone does a lesion fit? The CT while it is grown in: places are tried, painted, kept or refused.

Enter a `Volume`, its bone and a painter; leave the changed voxels, the instance masks and one `GrownLesion` per call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import InputError
from volseg.geometry import closest_axes, spacing_mm, voxel_to_ras_mm, voxel_volume_mm3
from volseg.transforms.synthesis_paint import Painted, Painter, Site
from volseg.transforms.synthesis_scanner import SMOOTH_MM, SOFT_TISSUE_HU, Scanner, measure_scanner
from volseg.transforms.synthesis_shape import Superellipsoid, depth_in_bone_mm, draw_parts, outline_mm, smooth_step
from volseg.types import Volume

SMALLEST_LESION_MM3 = 60.0
SMALLEST_GAP_MM = 3.0
# A label on something invisible teaches noise: the mean change inside the mask, smoothed, must reach this, and a
# share of the deviation that was there before.
SMALLEST_CHANGE_HU = 50.0
SMALLEST_CHANGE_IN_DEVIATIONS = 0.35
# Lesions begin in cancellous bone; solid facets and shafts are left to those that reach them.
DENSE_MARROW_HU = 450.0
# A plate this much denser than the marrow stops a lesion; the plate itself, this thick, is still the lesion's bone.
PLATE_HU = 200.0
PLATE_MM = 2.5
# Soft edge, reactive rim and point spread end within this distance of the mask (and fade out over 1.5 mm).
REACH_MM = 4.5
TRIES = 25


class Bone(Protocol):
    """Three bool arrays (X, Y, Z) on the CT's grid, as `volseg.transforms.bone.BoneMask` has them."""

    @property
    def bone(self) -> NDArray[np.bool_]: ...
    @property
    def marrow(self) -> NDArray[np.bool_]: ...
    @property
    def cortex(self) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class GrownLesion:
    """One grown thing. `id` is its voxel value; `radii_mm` those of its largest part; `parameters` what was drawn."""

    id: int
    kind: str
    center_ras_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    volume_mm3: float
    marrow_hu: float
    parameters: Mapping[str, Any]


class Canvas:
    """The CT while lesions are grown in it; knows what is taken."""

    def __init__(self, volume: Volume, bone: Bone, scanner: Scanner | None, wanted: int) -> None:
        self.affine = volume.affine
        self.spacing = spacing_mm(volume.affine)
        self.bone, self.marrow, self.cortex = bone.bone, bone.marrow, bone.cortex
        self.voxels = volume.voxels.copy()
        self.instances = np.zeros(volume.voxels.shape, np.uint16)
        self.distractors = np.zeros(volume.voxels.shape, np.uint16)
        cancellous = self.marrow & (self.voxels < DENSE_MARROW_HU)
        self.places = {"marrow": np.flatnonzero(cancellous), "bone": np.flatnonzero(self.bone)}
        self.bone_ml = self.places["bone"].size * voxel_volume_mm3(volume.affine) / 1000
        if wanted and not self.places["bone"].size:
            raise InputError("no-bone", f"no bone in the {volume.channel} volume; lesions need bone to grow in")
        self.scanner = scanner or (measure_scanner(volume.voxels, volume.affine) if wanted else None)
        self.superior_axis = closest_axes(volume.affine)[0][2]
        self.taken: list[tuple[NDArray, float]] = []

    def center(self, place: str, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """A voxel where something may begin: in marrow (1 in 6 anywhere in bone), or on a surface that leans right."""
        if place == "marrow":
            pool = self.places["marrow" if self.places["marrow"].size and rng.random() < 5 / 6 else "bone"]
            return np.asarray(np.unravel_index(pool[rng.integers(pool.size)], self.bone.shape))
        pool = self.places["bone"]
        for _ in range(40):
            ijk = np.asarray(np.unravel_index(pool[rng.integers(pool.size)], self.bone.shape))
            if not self.cortex[tuple(ijk)]:
                continue
            slices = _box(ijk, np.ceil(4 / self.spacing).astype(int), self.bone.shape)
            local = self.bone[slices]
            offsets = np.indices(local.shape).reshape(3, -1)[:, local.ravel()].mean(1)
            lean = ((np.asarray(local.shape) - 1) / 2 - offsets) * self.spacing
            steep = abs(lean[self.superior_axis]) / (np.linalg.norm(lean) + 1e-6)
            if (steep > 0.85) == (place == "endplate"):
                return ijk
        return None

    def grow(
        self,
        kind: str,
        painter: Painter,
        diameter_mm: float,
        place: str,
        into: NDArray[np.uint16],
        number: int,
        rng: np.random.Generator,
    ) -> GrownLesion | None:
        """Try places until one takes the lesion; smaller after every eighth refusal."""
        for attempt in range(TRIES):
            size = diameter_mm * 0.8 ** (attempt // 8)
            ijk = self.center(place, rng)
            if ijk is None:
                continue
            center = voxel_to_ras_mm(self.affine, ijk)
            if any(np.linalg.norm(center - c) < 0.5 * size + 0.5 * d + SMALLEST_GAP_MM for c, d in self.taken):
                continue
            grown = self._try(kind, painter, size, ijk, into, number, rng)
            if grown is not None:
                self.taken.append((center, size))
                return grown
        return None

    def _try(
        self,
        kind: str,
        painter: Painter,
        diameter_mm: float,
        ijk: NDArray,
        into: NDArray[np.uint16],
        number: int,
        rng: np.random.Generator,
    ) -> GrownLesion | None:
        parts = draw_parts(diameter_mm, rng)
        roughness = float(rng.uniform(0.1, 0.25))
        reach_mm = max(float(np.linalg.norm(p.offset_mm)) + max(p.radii_mm) for p in parts) * (1 + roughness) + 7
        slices = _box(ijk, np.ceil(reach_mm / self.spacing).astype(int), self.bone.shape)
        site = self._site(slices, ijk, diameter_mm, parts, roughness, rng)
        if site is None:
            return None
        painted = painter(site, rng)
        mask = _largest_piece(painted.weight > 0.5)
        volume_mm3 = float(mask.sum()) * voxel_volume_mm3(self.affine)
        smallest = SMALLEST_LESION_MM3 if into is self.instances else SMALLEST_LESION_MM3 / 3
        if volume_mm3 < smallest or self._touches(mask, slices) or not _visible(site, painted, mask):
            return None
        old = self.voxels[slices]
        new = painted.voxels
        # Nothing unlabelled may stay behind where a thin bone lets the lesion fade and come back.
        distance = ndimage.distance_transform_edt(~mask, sampling=self.spacing)
        share = smooth_step(REACH_MM - distance, 0.8)
        new = np.where(share > 0, site.hu + share * (new - site.hu), site.hu)
        changed = new != site.hu
        if np.issubdtype(old.dtype, np.integer):
            limits = np.iinfo(old.dtype)
            new = np.clip(np.rint(new), limits.min, limits.max)
        self.voxels[slices] = np.where(changed, new, old).astype(old.dtype)
        into[slices][mask] = number
        where = np.argwhere(mask).mean(0) + [s.start for s in slices]
        middle = voxel_to_ras_mm(self.affine, where)
        return GrownLesion(
            id=number,
            kind=kind,
            center_ras_mm=(float(middle[0]), float(middle[1]), float(middle[2])),
            radii_mm=parts[0].radii_mm,
            volume_mm3=volume_mm3,
            marrow_hu=site.marrow_hu,
            parameters={"diameter_mm": diameter_mm, "roughness": roughness, "parts": len(parts), **painted.parameters},
        )

    def _site(
        self,
        slices: tuple[slice, ...],
        ijk: NDArray,
        diameter_mm: float,
        parts: tuple[Superellipsoid, ...],
        roughness: float,
        rng: np.random.Generator,
    ) -> Site | None:
        """Gather the box around a center; None where the center's own piece of bone is too small."""
        hu = self.voxels[slices].astype(np.float32)
        start = np.asarray([s.start for s in slices])
        offsets = np.indices(hu.shape, dtype=np.float32) - (ijk - start).reshape(3, 1, 1, 1).astype(np.float32)
        xyz = np.tensordot(self.affine[:3, :3].astype(np.float32), offsets, 1)
        outline = outline_mm(parts, xyz, self.spacing, roughness, rng).astype(np.float32)
        bone = self.bone[slices]
        here = tuple(ijk - start)
        ring = self.marrow[slices] & (outline < -1) & (outline > -9)
        for sample in (ring, self.marrow[slices], bone):
            if sample.sum() >= 30:
                break
        marrow_hu = float(np.median(hu[sample])) if sample.any() else 100.0
        mine = self._own_bone(hu, bone & (outline > -2), here, marrow_hu)
        if float((mine & (outline > 0)).sum()) * float(np.prod(self.spacing)) < SMALLEST_LESION_MM3 / 3:
            return None
        # Bone beyond the outline still belongs to the lesion's bone: its surface must not be moved.
        other = bone & (outline > -2) & ~mine
        near = bone & ~other
        assert self.scanner is not None
        depth = depth_in_bone_mm(near, self.spacing).astype(np.float32)
        smooth = ndimage.gaussian_filter(hu, SMOOTH_MM / self.spacing, truncate=2.5)
        soft = (depth < -4) & (smooth > SOFT_TISSUE_HU[0]) & (smooth < SOFT_TISSUE_HU[1])
        return Site(
            hu=hu,
            smooth_hu=smooth,
            outline_mm=outline,
            bone_depth_mm=depth,
            other_bone=ndimage.binary_dilation(other),
            cortex=self.cortex[slices],
            xyz_mm=xyz,
            spacing_mm=self.spacing,
            superior_axis=self.superior_axis,
            diameter_mm=diameter_mm,
            marrow_hu=marrow_hu,
            noise_hu=self.scanner.local_noise_hu(hu, smooth, soft),
            scanner=self.scanner,
        )

    def _own_bone(
        self, hu: NDArray, bone: NDArray[np.bool_], here: tuple[int, ...], marrow_hu: float
    ) -> NDArray[np.bool_]:
        """The part of the bone that a lesion can reach from its center without crossing a dense plate.

        Metastases spare discs and joints; a bone mask often bridges them, the endplates seldom do.
        """
        fine = ndimage.gaussian_filter(hu, np.where(self.spacing < 2, 0.6 / self.spacing, 0), truncate=3.0)
        inner = bone & (fine < marrow_hu + PLATE_HU)
        if not inner[here]:
            inner = bone
        pieces, _ = ndimage.label(inner)
        if pieces[here] == 0:
            return np.zeros_like(bone)
        home = pieces == pieces[here]
        return bone & (ndimage.distance_transform_edt(~home, sampling=self.spacing) <= PLATE_MM)

    def _touches(self, mask: NDArray[np.bool_], slices: tuple[slice, ...]) -> bool:
        """Whether the mask comes within 3 mm of another lesion or distractor."""
        taken = (self.instances[slices] > 0) | (self.distractors[slices] > 0)
        if not taken.any():
            return False
        distance = ndimage.distance_transform_edt(~taken, sampling=self.spacing)
        return bool(distance[mask].min() < SMALLEST_GAP_MM)


def _box(ijk: NDArray, radius: NDArray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(0, int(c - r)), min(n, int(c + r) + 1)) for c, r, n in zip(ijk, radius, shape, strict=True))


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))


def _visible(site: Site, painted: Painted, mask: NDArray[np.bool_]) -> bool:
    change = ndimage.gaussian_filter(painted.voxels - site.hu, 1.0 / site.spacing_mm, truncate=2.0)
    before = float(site.smooth_hu[mask].std())
    return float(np.abs(change[mask]).mean()) > max(SMALLEST_CHANGE_HU, SMALLEST_CHANGE_IN_DEVIATIONS * before)
