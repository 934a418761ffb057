"""A page to judge realism by: first blind and shuffled, then open, with contours and the bone before the lesion.

Enter: a folder of synthetic cases, a CT or the word "phantom"; and, if there are any, real lesions (patches with boxes,
or cases with masks). Leave: gallery.html with its pictures inside, and answers.csv to score a reader by.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from volseg.errors import InputError, UsageError
from volseg.geometry import spacing_mm, to_ras
from volseg.io import read_study, read_volume
from volseg.io.files import check_path, shown
from volseg.phantoms import ct_phantom
from volseg.report.files import write_whole
from volseg.synth import PHANTOM, cut_block, prepare
from volseg.synthetic.tiles import Exhibit, box_mask, tile, upright_exhibit_volume, without_padding
from volseg.transforms.bone import BoneMask
from volseg.transforms.synthesis import grow_lesions
from volseg.types import Volume

PAGE, ANSWERS = "gallery.html", "answers.csv"
BOX_COLUMNS = ("image_path", "x", "y", "z", "width", "height", "depth")
BLOCK_MM = 110.0
PER_VOLUME = 2  # lesions shown of one volume: a gallery of one patient says little


@dataclass(frozen=True)
class GalleryOptions:
    """`n` synthetic lesions (all real ones are shown), in an order drawn from `seed`; `size_mm` of a tile's planes."""

    n: int = 12
    seed: int = 0
    size_mm: float = 64.0


def write_gallery(
    cases: str | Path, out: Path, options: GalleryOptions = GalleryOptions(), *, real: Path | None = None
) -> Path:
    """Write `out`/gallery.html and `out`/answers.csv; returns the page's path.

    Raises:
        InputError: a folder holds neither cases nor patches with boxes, a file cannot be read, a CT shows no bone.
        UsageError: there is no lesion to show.
    """
    rng = np.random.default_rng(options.seed)
    synthetic = list(_synthetic(cases, options, rng))
    if not synthetic:
        raise UsageError("gallery-empty", f"{cases} holds no lesion; a gallery wants at least one")
    shown_real = [] if real is None else list(_real(real, rng))
    everything = synthetic + shown_real
    order = rng.permutation(len(everything))
    blind = [(n, everything[i], _inline(tile(everything[i], options.size_mm))) for n, i in enumerate(order, start=1)]
    open_part = [
        {
            "number": int(np.flatnonzero(order == i)[0]) + 1,
            "kind": exhibit.kind,
            "words": exhibit.words,
            "contour": _inline(tile(exhibit, options.size_mm, contour=True)),
            "before": _inline(tile(exhibit, options.size_mm, before=True)) if exhibit.before is not None else None,
        }
        for i, exhibit in enumerate(everything)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("gallery.html.j2").read_text("utf-8"))
    page = template.render(
        blind=[{"number": n, "picture": picture} for n, _, picture in blind],
        answers=[{"number": n, "kind": e.kind, "words": e.words} for n, e, _ in blind],
        synthetic=[x for x in open_part if x["kind"] == "synthetic"],
        real=[x for x in open_part if x["kind"] == "real"],
        pictures={n: picture for n, _, picture in blind},
        size_mm=f"{options.size_mm:g}",
        seed=options.seed,
        source=str(cases),
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("number", "kind", "what"))
    writer.writerows((n, e.kind, e.words) for n, e, _ in blind)
    write_whole(out / ANSWERS, text.getvalue())
    return write_whole(out / PAGE, page)


def _synthetic(cases: str | Path, options: GalleryOptions, rng: np.random.Generator) -> Iterator[Exhibit]:
    if str(cases) != PHANTOM and (Path(cases) / "labelsTr").is_dir():
        yield from _of_cases(Path(cases), "synthetic", options.n, rng)
        return
    left = options.n
    source = None if str(cases) == PHANTOM else _read(Path(cases))
    for _ in range(4 * options.n):
        found = list(_grown(source, rng))[: min(PER_VOLUME, left)]
        left -= len(found)
        yield from found
        if not left:
            return


def _grown(source: Any, rng: np.random.Generator) -> Iterator[Exhibit]:
    """Lesions grown here and now, so that the bone is known as it was before."""
    if source is None:
        region = ("abdomen", "thorax", "pelvis")[int(rng.integers(3))]
        phantom = ct_phantom(rng, region=region, spacing_mm=(1.0, 1.0, 1.0), size_mm=(110, 120, 100))  # type: ignore[arg-type]
        volume = phantom.volume
        bone, scanner = BoneMask(bone=phantom.bone, marrow=phantom.marrow, cortex=phantom.cortex), None
    else:
        volume, bone = cut_block(source.volume, source.bone, BLOCK_MM, rng)
        scanner = source.scanner
    grown = grow_lesions(volume, n=PER_VOLUME, rng=rng, bone=bone, scanner=scanner)
    for lesion in grown.lesions:
        words = f"{lesion.kind}, {2 * max(lesion.radii_mm):.0f} mm, {lesion.volume_mm3 / 1000:.2g} mL"
        yield Exhibit("synthetic", words, grown.volume, grown.instances == lesion.id, volume.voxels)


def _of_cases(folder: Path, kind: str, n: int, rng: np.random.Generator) -> Iterator[Exhibit]:
    """Lesions of a decathlon-style folder, at most PER_VOLUME of a volume; what they are from parameters/, if there."""
    labels = sorted(p for p in (folder / "labelsTr").iterdir() if p.name.endswith((".nii.gz", ".nii")))
    for place in rng.permutation(len(labels)):
        label = labels[place]
        instances = read_volume(label)[0]
        ids = rng.permutation(np.unique(instances.voxels[instances.voxels > 0]))[:PER_VOLUME]
        if not ids.size:
            continue
        image = read_volume(folder / "imagesTr" / label.name)[0]
        known = _known(folder / "parameters" / f"{label.name.split('.nii')[0]}.json")
        voxels, affine = to_ras(image.voxels, image.affine)
        truth, _ = to_ras(instances.voxels, instances.affine)
        spacing = " x ".join(f"{s:.2g}" for s in spacing_mm(affine))
        for id_ in ids.tolist()[:n]:
            words = f"{known.get(int(id_), 'lesion')}, {label.name.split('.nii')[0]}, voxels of {spacing} mm"
            yield Exhibit(kind, words, Volume(voxels, affine), truth == id_)
            n -= 1
        if n <= 0:
            return


def _real(folder: Path, rng: np.random.Generator) -> Iterator[Exhibit]:
    if (check_path(folder) / "labelsTr").is_dir():
        yield from _of_cases(folder, "real", 10**6, rng)
        return
    tables = sorted(folder.glob("*.csv"))
    if not tables:
        raise InputError(
            "boxes-missing", f"{shown(folder.name)}: neither labelsTr nor a CSV of boxes; see data/README.md"
        )
    with tables[0].open(encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    lacking = [name for name in BOX_COLUMNS if not rows or name not in rows[0]]
    if lacking:
        raise InputError("boxes-missing", f"{shown(tables[0].name)}: no column {', '.join(lacking)} (LPS mm)")
    volumes = {
        name: _patch(folder / name) for name in sorted({r["image_path"] for r in rows}) if (folder / name).is_file()
    }
    for n, row in enumerate(r for r in rows if r["image_path"] in volumes):
        volume = volumes[row["image_path"]]
        mask = box_mask(volume, _corners_ras_mm(row, tables[0], n))
        if mask.any():
            yield Exhibit("real", f"{row['image_path']}, box {n + 1} of {tables[0].name}", volume, mask)


def _patch(path: Path) -> Volume:
    return without_padding(upright_exhibit_volume(read_volume(path)[0]))[0]


def _corners_ras_mm(row: dict[str, str], table: Path, n: int) -> np.ndarray:
    """Center and edges in LPS mm -> (2, 3) corners in RAS mm."""
    try:
        x, y, z, *edges = (float(row[name]) for name in BOX_COLUMNS[1:])
    except ValueError as error:
        raise InputError("boxes-missing", f"{shown(table.name)} box {n + 1}: {error}") from error
    center, half = np.array([-x, -y, z]), np.array(edges) / 2
    return np.stack([center - half, center + half])


def _read(path: Path) -> Any:
    volume = next(iter(read_study(path).volumes.values()))
    return prepare(shown(path.name), upright_exhibit_volume(volume))


def _known(parameters: Path) -> dict[int, str]:
    if not parameters.is_file():
        return {}
    try:
        return {int(x["id"]): str(x["kind"]) for x in json.loads(parameters.read_text(encoding="utf-8"))["lesions"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("cohort-damaged", f"{parameters.name}: {error!r}; grow the cases again") from error


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
