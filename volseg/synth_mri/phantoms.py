"""Synthetic MRI studies from nothing: phantoms of the spine with lesions of exactly known mask, on disk.

Every case is a site of its own: coil, noise, scale, spacing and field of view are drawn. It depends on (seed, number)
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from volseg.phantoms import Region
from volseg.phantoms.mri import MriOptions, MriPhantom, mri_phantom
from volseg.report.tables import as_json
from volseg.synth_mri.files import MriCase, Recipe, write_cases

MRI_PHANTOM = "mri-phantom"
REGIONS: tuple[Region, ...] = ("abdomen", "thorax", "pelvis")


@dataclass(frozen=True)
class MriSynthOptions:
    """How many cases and what they hold. Ranges are inclusive; `healthy` is the fraction of cases without lesions."""

    n: int = 10
    seed: int = 0
    lesions: tuple[int, int] = (1, 6)
    lookalikes: tuple[int, int] = (0, 3)
    healthy: float = 0.15
    section: str = "training"


def mri_case(options: MriSynthOptions, number: int) -> tuple[MriPhantom, MriOptions]:
    """One case in memory, and the examination that was drawn for it."""
    rng = np.random.default_rng([options.seed, 77, number])
    in_plane = float(rng.uniform(0.8, 1.4))
    healthy = bool(rng.random() < options.healthy)
    examination = MriOptions(
        region=REGIONS[number % len(REGIONS)],
        spacing_mm=(float(rng.uniform(3.0, 4.8)), in_plane, in_plane),
        size_mm=(float(rng.uniform(60, 96)), float(rng.uniform(130, 180)), float(rng.uniform(130, 190))),
        lesions=0 if healthy else int(rng.integers(options.lesions[0], options.lesions[1] + 1)),
        lookalikes=int(rng.integers(options.lookalikes[0], options.lookalikes[1] + 1)),
        diameters_mm=(8.0, 30.0),
        bias=float(rng.uniform(0.05, 0.35)),
        noise=float(rng.uniform(0.015, 0.07)),
        motion_mm=float(rng.uniform(0, 1.8)),
        motion_degrees=float(rng.uniform(0, 1.2)),
    )
    return mri_phantom(rng, examination), examination


def write_mri_cases(
    folder: Path,
    options: MriSynthOptions,
    *,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write `options.n` cases and list them in `folder`/datalist.json; returns the studies' folders.

    Cases already there are kept. Raises InputError: cases-of-another where they were made with other options.
    """

    def make(number: int) -> MriCase:
        phantom, examination = mri_case(options, number)
        facts = {
            "source": MRI_PHANTOM,
            "examination": as_json(asdict(examination)),
            "fat_fraction": phantom.fat_fraction,
            "lookalikes": list(phantom.lookalikes),
        }
        return MriCase(phantom.volumes, phantom.instances, phantom.lesions, facts)

    names = [f"mri_s{options.seed}_{number:03d}" for number in range(options.n)]
    return write_cases(folder, names, make, Recipe(asdict(options)), progress=progress, say=say)
