"""`volseg bmseg`: a BM-Seg folder under a named protocol. Every fold is trained, tested, and all tables are written.

Enters: slices with their patients, and bundles. Leaves: OUT/<bundle>/fold_<k>/ (weights, predicted masks), tables, one
page and bmseg.json. A fold that is finished is not run again; one that was cut off goes on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from PIL import Image
from tqdm import tqdm

from volseg import __version__
from volseg.errors import UsageError
from volseg.evaluation.bmseg import FOLDS, Protocol, Split, find_leak, protocol
from volseg.evaluation.bmseg_tables import Ours, bmseg_tables
from volseg.evaluation.page import Section, render_page
from volseg.evaluation.slices import SliceResult, compare_slice, summarise_slices
from volseg.evaluation.tables import Table
from volseg.inference.bundle import BundleFiles, sha256_of
from volseg.inference.sliding_window import OccupiedSlidingWindowInferer
from volseg.io.bmseg import BmSeg, SliceFiles
from volseg.io.monai_pictures import LoadPicturesd
from volseg.io.pictures import read_mask
from volseg.networks import SliceWise
from volseg.report.files import write_whole
from volseg.report.tables import as_json
from volseg.train import TrainOptions, train_bundle
from volseg.transforms.slices2d import HIGHEST, as_rows

RUN_FILE = "run.json"
STRIDE = 16  # of both networks: a crop is a multiple of it
VALIDATIONS = 10  # per fold: so often the best epoch may change
DONE = "test.csv"


@dataclass(frozen=True)
class BmSegOptions:
    """What decides the figures: a folder begun with other options is refused. None keeps what the bundle says.

    `crop` is the edge of the training crops and of the windows at test, in pixels.
    """

    protocol: str = "bmseg-patient"
    folds: int = FOLDS
    crop: int = 256
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    start_from: str | None = None


def run_protocol(
    found: BmSeg,
    bundles: Sequence[BundleFiles],
    out: Path,
    options: BmSegOptions,
    *,
    device: str | None = None,
    precision: str | None = None,
    resamples: int = 2000,
    grey_rgb: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train and test every bundle on every fold, and write the tables; returns the page.

    Raises:
        UsageError: patients unknown (`bmseg-patient`), too few slices or patients, `out` begun otherwise, odd crop.
        InputError: what training says of its data.
    """
    if options.crop < 2 * STRIDE or options.crop % STRIDE:
        told = f"--crop {options.crop}: a multiple of {STRIDE} from {2 * STRIDE} on is due, for example 256"
        raise UsageError("bmseg-crop", told)
    chosen = protocol(options.protocol)
    names = [one.name for one in found.slices]
    splits = chosen.splits(names, found.patients, folds=options.folds)
    _claim(out, found, options)
    say(chosen.describe())
    runs: list[tuple[str, list[SliceResult]]] = []
    provenance: dict[str, list[dict[str, Any]]] = {}
    for files in bundles:
        by_fold: list[list[SliceResult]] = []
        for split in splits:
            leak = find_leak(split, found.patients)
            if chosen.leaky:
                say(f"{files.name}, fold {split.number + 1} of {len(splits)}: LEAKY: {leak.text()}")
            folder = out / files.name / f"fold_{split.number + 1}"
            start = time.perf_counter()
            if not (folder / DONE).is_file():
                say(f"{files.name}, fold {split.number + 1} of {len(splits)}: training into {folder}")
                weights = _train(files, found, split, folder, options, device, precision, grey_rgb, say)
                _predict(files, weights, found, split, folder, options, device, grey_rgb, progress)
                say(f"{files.name}, fold {split.number + 1}: done in {time.perf_counter() - start:.0f} s")
            by_fold.append(_results(files, found, split, folder, grey_rgb))
            provenance.setdefault(files.name, []).append(json.loads((folder / "fold.json").read_text("utf-8")))
        tested = [result.name for results in by_fold for result in results]
        if len(set(tested)) == len(tested):
            runs.append((f"{files.name} {files.version}", [result for results in by_fold for result in results]))
        else:  # bmseg-mfp tests the same tenth in every fold
            runs += [(f"{files.name} {files.version}, fold {k + 1}", results) for k, results in enumerate(by_fold)]
    return _write(out, chosen, found, runs, provenance, options, resamples, say)


def _claim(out: Path, found: BmSeg, options: BmSegOptions) -> None:
    """A folder begun with the same options on the same slices is gone on with; any other is left alone."""
    pictures = hashlib.sha256()
    for one in found.slices:
        pictures.update(f"{one.name}\0{one.patient}\0{one.shape}\n".encode())
    now = {"options": asdict(options), "slices_sha256": pictures.hexdigest()}
    path = out / RUN_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if {key: before.get(key) for key in now} != now:
            changed = [
                f"{key} was {before.get('options', {}).get(key)}, is {value}"
                for key, value in now["options"].items()  # type: ignore[attr-defined]
                if before.get("options", {}).get(key) != value
            ]
            told = f"{out}: begun differently ({'; '.join(changed) or 'other slices'}); choose another folder with -o"
            raise UsageError("bmseg-folder", told)
        return
    if out.exists() and any(out.iterdir()):
        raise UsageError("output-exists", f"{out} is not empty and was not begun by `volseg bmseg`; choose another")
    write_whole(path, json.dumps(now | {"data": str(found.root), "volseg": __version__}, indent=1))


def _train(
    files: BundleFiles,
    found: BmSeg,
    split: Split,
    folder: Path,
    options: BmSegOptions,
    device: str | None,
    precision: str | None,
    grey_rgb: bool,
    say: Callable[[str], None],
) -> Path:
    """The weights of the epoch that did best on the split's validation slices."""
    sections = {
        section: [_item(found.slices[row]) for row in rows]
        for section, rows in (("training", split.train), ("validation", split.validation))
    }
    write_whole(folder / "datalist.json", json.dumps({"name": f"fold {split.number + 1}", **sections}, indent=1))
    epochs = options.epochs or json.loads((files.root / "configs" / "train.json").read_text("utf-8"))["epochs"]
    asked = TrainOptions(
        epochs=epochs,
        iterations_per_epoch=options.iterations,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed + split.number,
        precision=precision,
        device=device,
        start_from=options.start_from,
        overrides={
            "roi_size": [options.crop] * 2,
            "val_interval": max(1, epochs // VALIDATIONS),
            "picture_transforms#0#grey_rgb": grey_rgb,
        },
    )
    training = folder / "training"
    last = train_bundle(files, folder, training, asked, say=say)
    best = training / "model_best.pt"
    return best if best.is_file() else last


def _item(one: SliceFiles) -> dict[str, str]:
    return {key: str(path.resolve()) for key, path in (("image", one.image), ("bone", one.bone), ("label", one.lesion))}


def _predict(
    files: BundleFiles,
    weights: Path,
    found: BmSeg,
    split: Split,
    folder: Path,
    options: BmSegOptions,
    device: str | None,
    grey_rgb: bool,
    progress: bool | None,
) -> None:
    """Write the masks of the test slices, then test.csv, which says that all are there."""
    parser = ConfigParser()
    parser.read_config(str(files.root / "configs" / "inference.json"))
    parser["bundle_root"] = str(files.root)
    if device is not None:
        parser["device"] = f"$torch.device('{device}')"
    on: torch.device = parser.get_parsed_content("device")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    if isinstance(network, SliceWise):
        network.slice_axes = (2,)  # pictures are axial, whatever planes of a volume the bundle reads
    network = network.to(on).eval()
    to_probability = parser.get_parsed_content("postprocessing#transforms#0")
    inferer = OccupiedSlidingWindowInferer((options.crop, options.crop, 1), sw_batch_size=2, overlap=0.25)
    load = LoadPicturesd(["image"], grey_rgb=grey_rgb)
    hidden = not progress if progress is not None else None
    rows = []
    bar = tqdm(split.test, desc=f"fold {split.number + 1}: test", unit="slice", disable=hidden, file=sys.stderr)
    for row in bar:
        one = found.slices[row]
        grey = load({"image": str(one.image)})["image"].as_tensor().float()
        with torch.inference_mode():
            logits = inferer((grey * (2 / HIGHEST) - 1)[None].to(on), network)[0]
        masks = {}
        if _marks_bone(files):
            masks["bone"] = logits[0, ..., 0] > 0
        masks["lesion"] = to_probability({"pred": logits})["probability"][0, ..., 0] >= 0.5
        for kind, mask in masks.items():
            _write_mask(folder / kind / f"{one.name}.png", mask.cpu().numpy())
        rows.append((one.name, one.patient))
    write_whole(folder / "fold.json", json.dumps({"weights": str(weights), "sha256": sha256_of(weights)}, indent=1))
    write_whole(folder / DONE, _csv(("slice", "patient"), rows))


def _marks_bone(files: BundleFiles) -> bool:
    """Whether channel 0 of the network is bone, as the bundle's metadata say."""
    return files.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "bone"


def _write_mask(path: Path, mask: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(as_rows(mask) * np.uint8(255)).save(content, "PNG")
    write_whole(path, content.getvalue())


def _results(files: BundleFiles, found: BmSeg, split: Split, folder: Path, grey_rgb: bool) -> list[SliceResult]:
    """The predicted masks of a fold, read again and compared with the truth."""
    results = []
    for row in split.test:
        one = found.slices[row]
        lesion, bone = (
            compare_slice(read_mask(folder / kind / f"{one.name}.png"), read_mask(truth, grey_rgb=grey_rgb))
            if (folder / kind).is_dir()
            else None
            for kind, truth in (("lesion", one.lesion), ("bone", one.bone))
        )
        assert lesion is not None, f"{files.name}: no lesion masks in {folder}"
        results.append(SliceResult(one.name, one.patient, lesion, bone))
    return results


def _write(
    out: Path,
    chosen: Protocol,
    found: BmSeg,
    runs: Sequence[tuple[str, list[SliceResult]]],
    provenance: Mapping[str, Any],
    options: BmSegOptions,
    resamples: int,
    say: Callable[[str], None],
) -> Path:
    data = "synthetic" if (found.root / "synthetic.json").is_file() else "BM-Seg"
    ours = [
        Ours(name, data, chosen, summarise_slices(results, rng=np.random.default_rng(0), resamples=resamples))
        for name, results in runs
    ]
    tables = bmseg_tables(ours)
    for table in tables:
        write_whole(out / "tables" / f"{_file_name(table.title)}.csv", table.to_csv())
    document = {
        "protocol": chosen.label,
        "how": chosen.describe(),
        "data": data,
        "options": asdict(options),
        "volseg": __version__,
        "weights": provenance,
        "figures": [
            {"method": o.method, **{" ".join(block): as_json(_plain(f)) for block, f in o.summary.figures.items()}}
            for o in ours
        ],
    }
    write_whole(out / "bmseg.json", json.dumps(document, indent=1))
    page = render_page(
        f"BM-Seg, {chosen.label}",
        [Section("Figures beside the published ones", tables)],
        lead=f"{len(found.slices)} slices ({data}). {chosen.describe()}",
        notes=_notes(data, chosen),
        footer=f"volseg {__version__}",
    )
    for line in _headline(tables, chosen):
        say(line)
    return write_whole(out / "bmseg.html", page)


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in figures.items()}


def _notes(data: str, chosen: Protocol) -> list[str]:
    notes = ["Lesion masks are cut at a probability of 0.5; no threshold was tuned."]
    if chosen.leaky:
        notes.append(f"LEAKY: {chosen.leaks} These figures are for comparison with the papers alone.")
    if data != "BM-Seg":
        notes.append("The slices are synthetic: nothing here says how well real metastases are found.")
    return notes


def _headline(tables: Sequence[Table], chosen: Protocol) -> list[str]:
    """Each run's first table (lesion only, pooled) in a line, under the protocol's full name."""
    table = tables[0]
    rows = [row for row in table.rows if "(published)" not in row[0]]
    return [f"{chosen.label}: {row[0]}: lesion IoU {row[2]} %, F1 {row[3]} % ({row[-1]})" for row in rows]


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _file_name(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
