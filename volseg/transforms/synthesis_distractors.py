"""Benign things in bone that a network takes for metastases: painted like lesions, labelled background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from volseg.transforms.synthesis_paint import Painted, Painter, Site, add, replace
from volseg.transforms.synthesis_shape import smooth_step


def enostosis(site: Site, rng: np.random.Generator) -> Painted:
    """A bone island: as dense as cortex, N(1190, 240) HU (AJR 2016), its brush border runs into the trabeculae."""
    target = float(np.clip(rng.normal(1190, 240), 800, 1700))
    bristles = site.outline_mm + (0.3 + 0.05 * site.diameter_mm) * site.texture(0.8, rng)
    weight = smooth_step(bristles, 0.5) * site.bone_weight
    return Painted(add(site, site.hu, weight * np.maximum(target - site.smooth_hu, 0)), weight, {"target_hu": target})


def _subchondral(site: Site, rng: np.random.Generator) -> Painted:
    """Degenerative sclerosis: a band under the bone's surface, dense at the surface, fading inwards."""
    thickness_mm, rise = float(rng.uniform(1.5, 5)), float(rng.uniform(120, 420))
    thickness = thickness_mm * (1 + 0.25 * site.texture(3.2, rng))
    weight = smooth_step(site.outline_mm, 1.2) * smooth_step(thickness - site.bone_depth_mm, 1.0) * site.bone_weight
    extra = weight * rise * (1 + 0.25 * site.texture(1.2, rng)) * (site.smooth_hu < 1100)
    return Painted(add(site, site.hu, extra), weight, {"thickness_mm": thickness_mm, "rise_hu": rise})


def schmorl_node(site: Site, rng: np.random.Generator) -> Painted:
    """Disc pressed into the endplate: a smooth dent of disc density with a thin dense wall."""
    disc, wall = float(rng.uniform(60, 110)), float(rng.uniform(200, 450))
    weight = smooth_step(site.outline_mm, 0.5) * smooth_step(site.bone_depth_mm + 1.0, 0.5)
    voxels = replace(site, weight, disc + 8 * site.texture(2.0, rng), rng)
    width_mm = float(rng.uniform(0.8, 1.6))
    shell = np.exp(-0.5 * ((site.outline_mm + width_mm) / (0.6 * width_mm)) ** 2) * site.bone_weight
    return Painted(
        add(site, voxels, wall * shell * (site.outline_mm > -4 * width_mm)), weight, {"disc_hu": disc, "wall_hu": wall}
    )


def _columns(site: Site, sigma_mm: float, rng: np.random.Generator) -> NDArray:
    """A random field that is constant along the voxel axis closest to the patient's length."""
    sheet = np.take(site.texture(sigma_mm, rng), [0], axis=site.superior_axis)
    return np.broadcast_to(sheet, site.hu.shape)


def haemangioma(site: Site, rng: np.random.Generator) -> Painted:
    """Fatty ground with few coarse vertical trabeculae: polka dots in axial slices, corduroy in coronal ones."""
    ground = float(min(rng.uniform(-60, 40), site.marrow_hu - 40))
    post = float(rng.uniform(250, 450))
    posts = smooth_step(_columns(site, 1.2, rng) - 0.7, 0.3)
    weight = smooth_step(site.outline_mm, 0.8) * smooth_step(site.bone_depth_mm - 1.5, 0.5)
    tissue = ground + posts * (post - ground)
    return Painted(replace(site, 0.9 * weight, tissue, rng), weight, {"ground_hu": ground, "post_hu": post})


def fracture_line(site: Site, rng: np.random.Generator) -> Painted:
    """A thin irregular sheet through the bone: dark (a gap), or dense where trabeculae are pressed into one another."""
    normal = rng.normal(0, 0.35, 3)
    normal[2] += 1
    normal /= np.linalg.norm(normal)
    half_mm = float(rng.uniform(0.5, 1.1))
    distance = np.abs(np.tensordot(normal, site.xyz_mm, 1) + 1.2 * site.texture(3.2, rng))
    sheet = smooth_step(half_mm - distance, 0.4) * smooth_step(site.outline_mm, 1.0) * site.bone_weight
    if rng.random() < 0.5:
        rise = float(rng.uniform(150, 400))
        extra = smooth_step(2 * half_mm - distance, 0.8) * smooth_step(site.outline_mm, 1.0) * site.bone_weight
        return Painted(add(site, site.hu, extra * rise * (site.smooth_hu < 900)), extra, {"rise_hu": rise})
    return Painted(replace(site, sheet, float(rng.uniform(0, 60)), rng), sheet, {"half_width_mm": half_mm})


def cement(site: Site, rng: np.random.Generator) -> Painted:
    """Bone cement: far denser than bone, fingered outline."""
    target = float(rng.uniform(1500, 2600))
    fingers = site.outline_mm + 0.1 * site.diameter_mm * site.texture(1.2, rng)
    weight = smooth_step(fingers, 0.6) * smooth_step(site.bone_depth_mm - 1, 0.5)
    return Painted(replace(site, weight, target + 80 * site.texture(1.2, rng), rng), weight, {"target_hu": target})


# name -> (painter, range of diameters in mm, where its center lies, weight)
PLACES = ("marrow", "endplate", "surface")
DISTRACTORS: dict[str, tuple[Painter, tuple[float, float], str, float]] = {
    "enostosis": (enostosis, (4, 11), "marrow", 0.2),
    "endplate sclerosis": (_subchondral, (10, 24), "endplate", 0.2),
    "facet sclerosis": (_subchondral, (7, 14), "surface", 0.2),
    "schmorl node": (schmorl_node, (6, 12), "endplate", 0.12),
    "haemangioma": (haemangioma, (8, 22), "marrow", 0.12),
    "fracture line": (fracture_line, (14, 32), "marrow", 0.1),
    "cement": (cement, (8, 20), "marrow", 0.06),
}
