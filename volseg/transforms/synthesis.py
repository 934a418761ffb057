"""Lesions grown in the bone of any CT: a `Volume` enters; the same CT with lesions and their exact masks leave.

Everything is in mm on the CT's own grid, chance comes from one numpy Generator, and only a small box around each
lesion is touched. Synthetic results are never clinical accuracy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from volseg.transforms.bone import bone_mask
from volseg.transforms.synthesis_canvas import Bone, Canvas, GrownLesion
from volseg.transforms.synthesis_distractors import DISTRACTORS
from volseg.transforms.synthesis_paint import Painter, lytic, mixed, sclerotic
from volseg.transforms.synthesis_scanner import Scanner
from volseg.types import Volume

log = logging.getLogger(__name__)

KIND_WEIGHTS: Mapping[str, float] = {"lytic": 0.4, "sclerotic": 0.35, "mixed": 0.25}
PAINTERS: dict[str, Painter] = {"lytic": lytic, "sclerotic": sclerotic, "mixed": mixed}


@dataclass(frozen=True, eq=False)
class Grown:
    """A CT with lesions. `instances` (uint16, same grid) holds the lesions' ids 1..n, `distractor_instances` those of
    the benign things, which are background to a network."""

    volume: Volume
    instances: NDArray[np.uint16]
    lesions: tuple[GrownLesion, ...]
    distractor_instances: NDArray[np.uint16]
    distractors: tuple[GrownLesion, ...]


def draw_diameter_mm(rng: np.random.Generator) -> float:
    """Log-uniform over 6-40 mm, before the lesion is cut to its bone: many small ones and some large."""
    return float(np.exp(rng.uniform(np.log(6), np.log(40))))


def grow_lesions(
    volume: Volume,
    *,
    n: int,
    rng: np.random.Generator,
    bone: Bone | None = None,
    scanner: Scanner | None = None,
    kinds: Mapping[str, float] = KIND_WEIGHTS,
    distractors: int = 0,
    diameters_mm: tuple[float, float] | None = None,
    warn: bool = True,
) -> Grown:
    """Grow `n` lesions and `distractors` benign look-alikes in the bone of a CT in HU.

    `bone` is found by `volseg.transforms.bone.bone_mask` unless given; `scanner` is measured unless given (give it for
    cuts of one CT: it costs a second). `kinds` weighs lytic, sclerotic and mixed; `diameters_mm` narrows the sizes to a
    log-uniform range. Where bone runs out of room fewer are grown and, with `warn`, a warning is logged: ids are
    1..len(lesions). The voxels keep their type. Raises InputError where there is no bone.
    """
    if bone is None:
        bone = bone_mask(volume.voxels, volume.affine)
    canvas = Canvas(volume, bone, scanner, n + distractors)
    names, weights = list(kinds), np.asarray(list(kinds.values()), float)
    lesions: list[GrownLesion] = []
    for _ in range(n):
        kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        size = float(np.exp(rng.uniform(*np.log(diameters_mm)))) if diameters_mm else draw_diameter_mm(rng)
        grown = canvas.grow(kind, PAINTERS[kind], size, "marrow", canvas.instances, len(lesions) + 1, rng)
        lesions += [grown] if grown else []
    benign = grow_distractors(canvas, distractors, rng)
    if warn and len(lesions) < n:
        log.warning("grew %d of %d lesions: no room left in %.0f ml of bone", len(lesions), n, canvas.bone_ml)
    return Grown(
        volume=replace(volume, voxels=canvas.voxels),
        instances=canvas.instances,
        lesions=tuple(lesions),
        distractor_instances=canvas.distractors,
        distractors=tuple(benign),
    )


def grow_distractors(canvas: Canvas, count: int, rng: np.random.Generator) -> list[GrownLesion]:
    """Up to `count` benign look-alikes, kinds drawn by `DISTRACTORS`' own weights; those for which bone had room."""
    names = list(DISTRACTORS)
    odds = np.asarray([DISTRACTORS[name][3] for name in names])
    benign: list[GrownLesion] = []
    for _ in range(count):
        name = names[int(rng.choice(len(names), p=odds / odds.sum()))]
        painter, size_mm, place, _ = DISTRACTORS[name]
        diameter_mm = float(rng.uniform(*size_mm))
        grown = canvas.grow(name, painter, diameter_mm, place, canvas.distractors, len(benign) + 1, rng)
        benign += [grown] if grown else []
    return benign
