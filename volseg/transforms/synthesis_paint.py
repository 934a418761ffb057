"""One lesion painted into one small box of CT: a `Site` enters, the new voxels and the lesion's weight leave.

Figures: soft-tissue texture 50 +- 15 HU, osteoblastic metastases 654 +- 176 HU (AJR 2016, in synthesis.md); the milder
sclerosis (+80 to +300 HU over the marrow) and the small lucent lesions (-100 to -150) are what the real boxed
metastases of BLDS measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from volseg.ops.random_fields import smooth_noise
from volseg.transforms.synthesis_scanner import Scanner
from volseg.transforms.synthesis_shape import smooth_step

SMALLEST_CONTRAST_HU = 45.0


@dataclass(frozen=True, eq=False)
class Site:
    """Where a lesion grows: a box of the CT with what is known about it. Arrays are (X, Y, Z), lengths in mm.

    `outline_mm` is the lesion's signed depth, `bone_depth_mm` the signed depth in its bone, `other_bone` bone that is
    not the lesion's; `xyz_mm` (3, X, Y, Z) RAS+ offsets from the center; `marrow_hu` the local normal marrow.
    """

    hu: NDArray[np.float32]
    smooth_hu: NDArray[np.float32]
    outline_mm: NDArray
    bone_depth_mm: NDArray
    other_bone: NDArray[np.bool_]
    cortex: NDArray[np.bool_]
    xyz_mm: NDArray
    spacing_mm: NDArray
    superior_axis: int
    diameter_mm: float
    marrow_hu: float
    noise_hu: float
    scanner: Scanner

    @property
    def bone_weight(self) -> NDArray:
        return smooth_step(self.bone_depth_mm + 0.25, 0.5)

    def texture(self, sigma_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
        """A smooth random field over the box, mean 0, deviation 1."""
        return smooth_noise(self.hu.shape, self.spacing_mm, sigma_mm, rng)

    def blur(self, field: NDArray) -> NDArray:
        """The scanner's point spread."""
        sigma = np.asarray(self.scanner.blur_mm) / self.spacing_mm
        return ndimage.gaussian_filter(np.asarray(field, np.float32), sigma, truncate=3.0)


@dataclass(frozen=True, eq=False)
class Painted:
    """`voxels`: float32 HU, the site's own where nothing changed; `weight`: 0..1 of the lesion; and what was drawn."""

    voxels: NDArray[np.float32]
    weight: NDArray
    parameters: dict[str, float]


Painter = Callable[[Site, np.random.Generator], Painted]


def replace(site: Site, weight: NDArray, tissue_hu: NDArray | float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Old tissue fades out, new tissue fades in, both seen by the scanner; noise is topped up to what was there."""
    seen = site.blur(weight)
    fresh = site.blur(weight * tissue_hu)
    old = 1 - seen
    grain = site.scanner.noise(site.hu.shape, rng) * np.sqrt(np.clip(1 - old**2, 0, 1)) * site.noise_hu
    return np.where(seen > 0.004, old * site.hu + fresh + grain, site.hu).astype(np.float32)


def add(site: Site, voxels: NDArray, extra_hu: NDArray) -> NDArray[np.float32]:
    """Mineral added on top: what was there, and its noise, stays visible through it."""
    seen = site.blur(extra_hu)
    return np.where(np.abs(seen) > 0.5, voxels + seen, voxels).astype(np.float32)


def soft_tissue_hu(site: Site, rng: np.random.Generator) -> float:
    """N(50, 15), or a value that stands out from the local marrow where 50 would not (fatty marrow is -50 to 60 HU)."""
    value = float(rng.normal(50, 15))
    gap = SMALLEST_CONTRAST_HU + float(rng.uniform(0, 50))
    if abs(value - site.marrow_hu) >= SMALLEST_CONTRAST_HU:
        return value
    if site.marrow_hu - gap > -25:
        return site.marrow_hu - gap
    return site.marrow_hu + gap


@dataclass(frozen=True, eq=False)
class Erosion:
    """What a destructive lesion does to the cortex: the weight to paint with, the weight to label with, what was drawn.

    They differ where a broken cortex loses its blurred outer edge: painted, but tumour only if there is a soft part.
    """

    weight: NDArray
    labelled: NDArray
    removed_fraction: float
    kept_mm: float
    soft_part_mm: float


def erode_cortex(site: Site, edge_mm: float, p_break: float, p_soft_part: float, rng: np.random.Generator) -> Erosion:
    """Thin the cortex from inside (scalloped), break it over 20-60 % of the contact, let tumour out of the gap."""
    shape_weight = smooth_step(site.outline_mm, edge_mm)
    contact = (site.bone_depth_mm > 0) & (site.bone_depth_mm < 1.5) & (site.outline_mm > 0)
    kept_mm = float(rng.uniform(0.5, 2.2))
    kept = kept_mm * (1 + 0.35 * site.texture(3.2, rng))
    removed, soft_part_mm = 0.0, 0.0
    outside = np.zeros_like(shape_weight)
    if rng.random() < p_break and contact.sum() > 5:
        removed = float(rng.uniform(0.2, 0.6))
        field = site.texture(5.0 if site.diameter_mm > 14 else 3.2, rng) + 0.15 * site.outline_mm
        margin = field - np.quantile(field[contact], 1 - removed)
        kept = kept * np.clip(-margin / 0.4, -1.5, 1)
        # A removed cortex takes its blurred outer edge with it: at least 0.9 mm beyond the mask.
        soft_part_mm = float(rng.uniform(3, 10)) if rng.random() < p_soft_part else 0.0
        reach = soft_part_mm if soft_part_mm else 0.9
        gate = smooth_step(margin, 0.3) * smooth_step(site.bone_depth_mm + reach, 0.7)
        open_ground = (site.smooth_hu > -250) & ~site.other_bone
        outside = shape_weight * gate * open_ground * (1 - site.bone_weight)
    keep = smooth_step(kept - site.bone_depth_mm, 0.45)
    weight = shape_weight * site.bone_weight * (1 - keep) + outside
    labelled = weight if soft_part_mm else weight - outside
    return Erosion(np.clip(weight, 0, 1), np.clip(labelled, 0, 1), removed, kept_mm, soft_part_mm)


def _infiltration(site: Site, opacity: float) -> NDArray:
    """Old trabeculae shine through deep in the marrow only: a uniform veil over cortex would look painted."""
    return opacity + (1 - opacity) * (1 - smooth_step(site.bone_depth_mm - 2, 0.7))


def _rim(site: Site, width_mm: float, rng: np.random.Generator) -> NDArray:
    """A shell of reactive bone just outside the outline, broken here and there, inside the marrow only."""
    shell = np.exp(-0.5 * ((site.outline_mm + width_mm / 2) / (width_mm / 2)) ** 2)
    shell[site.outline_mm < -3 * width_mm] = 0
    return shell * smooth_step(site.texture(3.2, rng) + 0.7, 0.4) * smooth_step(site.bone_depth_mm - 1, 0.5)


def lytic(site: Site, rng: np.random.Generator) -> Painted:
    """Bone dissolved: soft tissue in the marrow, cortex thinned or broken; at times bone islands, rim, soft part."""
    edge_mm = float(rng.uniform(0.5, 1.5))
    tissue = soft_tissue_hu(site, rng)
    faint = abs(tissue - site.marrow_hu) < 80
    erosion = erode_cortex(site, edge_mm, 0.85 if faint else 0.5, 0.4, rng)
    opacity = float(rng.uniform(0.75, 1.0))
    weight = erosion.weight * _infiltration(site, opacity)
    spared = 0.0
    if site.diameter_mm > 14 and rng.random() < 0.4:
        spared = float(rng.uniform(0.05, 0.25))
        field = site.texture(2.0, rng)
        weight = weight * (1 - 0.85 * smooth_step(field - np.quantile(field, 1 - spared), 0.35))
    voxels = replace(site, weight, tissue + 15 * site.texture(2.0, rng), rng)
    rim_hu = 0.0
    if rng.random() < 0.3:
        rim_hu = float(rng.uniform(150, 300))
        voxels = add(site, voxels, rim_hu * _rim(site, float(rng.uniform(1, 2)), rng))
    drawn = {
        "tissue_hu": tissue,
        "edge_mm": edge_mm,
        "opacity": opacity,
        "cortex_removed": erosion.removed_fraction,
        "cortex_kept_mm": erosion.kept_mm,
        "soft_part_mm": erosion.soft_part_mm,
        "spared": spared,
        "rim_hu": rim_hu,
    }
    return Painted(voxels, erosion.labelled, drawn)


def sclerotic(site: Site, rng: np.random.Generator) -> Painted:
    """Bone laid down: mineral added to the marrow up to the target; dense, or mild as small real ones are."""
    edge_mm = float(rng.uniform(0.5, 1.6))
    mild = bool(rng.random() < 0.55)
    if mild:
        target = site.marrow_hu + float(rng.uniform(110, 320))
    else:
        target = max(float(np.clip(rng.normal(650, 175), 350, 1100)), site.marrow_hu + 150)
    rise = target - site.marrow_hu
    grain_hu = min(80.0, 0.35 * rise)
    field = target + grain_hu * site.texture(float(rng.uniform(2, 4)) / 2, rng)
    patchy = 0.0
    if site.diameter_mm > 12 and rng.random() < 0.5:
        # Diffuse, blotchy sclerosis of a whole vertebral body, as in BLDS patch 7.
        patchy = float(rng.uniform(0.3, 0.8))
        blotches = smooth_step(site.texture(float(rng.uniform(2, 4)), rng) + 0.2, 0.8)
        field = field - patchy * rise * (1 - blotches)
    if rng.random() < 0.4:
        field = field - 0.4 * rise * np.clip(1 - site.outline_mm / (0.3 * site.diameter_mm), 0, 1)
    weight = smooth_step(site.outline_mm, edge_mm) * site.bone_weight
    voxels = add(site, site.hu, weight * np.maximum(field - site.smooth_hu, 0))
    return Painted(voxels, weight, {"target_hu": target, "edge_mm": edge_mm, "mild": float(mild), "patchy": patchy})


def mixed(site: Site, rng: np.random.Generator) -> Painted:
    """A lytic core with sclerotic nodules over 30-70 % of it."""
    edge_mm = float(rng.uniform(0.6, 1.6))
    tissue = soft_tissue_hu(site, rng)
    share = float(rng.uniform(0.3, 0.7))
    dense = float(np.clip(rng.normal(520, 150), max(250, site.marrow_hu + 130), 1000))
    opacity = float(rng.uniform(0.65, 1.0))
    erosion = erode_cortex(site, edge_mm, 0.35, 0.15, rng)
    field = site.texture(float(np.clip(0.14 * site.diameter_mm, 1.0, 3.0)), rng) + 0.5 * site.texture(0.8, rng)
    inside = erosion.weight > 0.5
    level = np.quantile(field[inside], 1 - share) if inside.any() else 0.0
    nodules = smooth_step(field - level, 0.3) * smooth_step(site.bone_depth_mm, 0.5)
    tissues = tissue + 15 * site.texture(2.0, rng) + nodules * (dense - tissue + 60 * site.texture(1.2, rng))
    voxels = replace(site, erosion.weight * _infiltration(site, opacity), tissues, rng)
    drawn = {
        "tissue_hu": tissue,
        "nodule_hu": dense,
        "nodule_share": share,
        "edge_mm": edge_mm,
        "opacity": opacity,
        "cortex_removed": erosion.removed_fraction,
        "soft_part_mm": erosion.soft_part_mm,
    }
    return Painted(voxels, erosion.labelled, drawn)
