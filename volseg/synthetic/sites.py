"""What differs between hospitals: scanner and case mix, as numbers. A name or a JSON enters, a Site leaves.

A site is never the origin signal: its scanner is drawn without regard to the primary, and lesions of a given primary
have the same law at every site. What moves from site to site is the picture and the prevalence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from volseg.errors import InputError, UsageError
from volseg.io.files import safe_name, shown


@dataclass(frozen=True)
class Site:
    """A hospital's CT and its patients.

    `spacing_mm` along R, A, S and `blur_mm`, the sigma of the point spread in plane and through the slices, are the
    finest the site gives: a source that is coarser or softer stays as it is, nothing is sharpened. `noise_hu` is the
    range of the noise deviation in soft tissue (dose), `grain_mm` its correlation (the kernel's). `lesion_prevalence`
    is the share of patients with metastases, `lung_prevalence` that of lung primaries, `age_years` mean and deviation.
    """

    name: str
    spacing_mm: tuple[float, float, float]
    blur_mm: tuple[float, float]
    noise_hu: tuple[float, float]
    grain_mm: float
    lesion_prevalence: float
    lung_prevalence: float
    scanner: str
    age_years: tuple[float, float] = (65.0, 10.0)

    def __post_init__(self) -> None:
        if safe_name(self.name) != self.name or not self.name:
            raise ValueError(f"{self.name!r} cannot stand in a file name")
        if not all(0.3 <= s <= 6 for s in self.spacing_mm) or len(self.spacing_mm) != 3:
            raise ValueError(f"spacing {self.spacing_mm} mm: three numbers of 0.3..6 are wanted")
        if len(self.blur_mm) != 2 or not all(0 <= b <= 5 for b in self.blur_mm) or not 0 <= self.grain_mm <= 5:
            raise ValueError(f"blur {self.blur_mm} mm, grain {self.grain_mm} mm: 0..5 are wanted, two and one")
        if len(self.noise_hu) != 2 or not 0 <= self.noise_hu[0] <= self.noise_hu[1] <= 200:
            raise ValueError(f"noise {self.noise_hu} HU: a range within 0..200 is wanted")
        if not (0 <= self.lesion_prevalence <= 1 and 0 <= self.lung_prevalence <= 1):
            raise ValueError(f"prevalences {self.lesion_prevalence} and {self.lung_prevalence} lie outside 0..1")


# B teaches: thin slices, a bone kernel, a referral centre with many metastases and as many lung primaries as others.
# A is another world of everyday: thicker and softer. C is the old scanner with a screening mix.
SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("A", (1.0, 1.0, 2.0), (0.75, 0.95), (7.0, 15.0), 0.8, 0.6, 0.35, "soft kernel, 2 mm", (68.0, 9.0)),
        Site("B", (0.8, 0.8, 1.0), (0.55, 0.60), (12.0, 26.0), 0.4, 0.8, 0.50, "bone kernel, 1 mm", (63.0, 11.0)),
        Site("C", (1.3, 1.3, 4.0), (0.95, 1.60), (18.0, 36.0), 0.9, 0.5, 0.20, "standard kernel, 4 mm", (60.0, 13.0)),
    )
}


def find_site(name: str, file: Path | None = None) -> Site:
    """A site by name, from the three above or from a JSON file {"sites": [{"name": ..., "spacing_mm": ...}, ...]}.

    Raises:
        InputError: the file cannot be read, or a site in it is not complete.
        UsageError: no site of that name.
    """
    sites = SITES if file is None else read_sites(file)
    if name not in sites:
        raise UsageError("site-unknown", f"no site {name!r}; there are {', '.join(sites)}")
    return sites[name]


def read_sites(file: Path) -> dict[str, Site]:
    """Every site of a JSON file, by name. Errors as `find_site`."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["sites"]
        found = [_site(item) for item in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            "sites-unreadable", f"{shown(file.name)}: {error}; wanted {{'sites': [...]}} with {_wanted()}"
        ) from error
    return {site.name: site for site in found}


def write_sites(file: Path, sites: Mapping[str, Site] = SITES) -> None:
    """The inverse of `read_sites`: a file to start from."""
    file.write_text(json.dumps({"sites": [asdict(site) for site in sites.values()]}, indent=1), encoding="utf-8")


def _site(item: Mapping[str, Any]) -> Site:
    unknown = set(item) - {field.name for field in fields(Site)}
    if unknown:
        raise ValueError(f"a site has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in item.items()}
    return Site(**values)


def _wanted() -> str:
    return ", ".join(field.name for field in fields(Site))
