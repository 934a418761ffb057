"""Module by module: what the parts of BMSMM-Net and MFP-DeepLabv3+ are worth on synthetic BM-Seg-shaped slices.

    python tests/benchmarks/bench_bmseg.py --size small            # the ablation (resumable) and the costs
    python tests/benchmarks/bench_bmseg.py --parts costs

Every variant of a network sees the same crops of the same training patients in the same order (paired by seed), and is
tested on whole slices of other patients. Figures: pooled lesion IoU and Dice, mean over seeds; the difference to the
variant above it in the table with a 95 % t interval over seeds. An interval that holds 0 is a tie. These are short
trainings of computed pictures: they say whether a part helps there, and nothing about the papers' figures, which stand
beside them only for parameters, time and memory. Finished runs are kept in --work; the same command goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_speed import _cpu
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from volseg.evaluation.overlap import pooled
from volseg.evaluation.slices import class_mean, compare_slice
from volseg.io.bmseg import read_bmseg
from volseg.io.pictures import read_mask, read_picture
from volseg.networks import BMSMMNet, MFPDeepLabV3Plus
from volseg.synth_slices import write_bmseg_like
from volseg.training.regions import RegionLoss

HERE = Path(__file__).resolve().parent
DATA_SEED = 20261121
SHRINK = 2  # pixels are merged 2 x 2: 1.5 to 2.1 mm
STRIDE = 16
LESION_CROPS = 0.3


@dataclass(frozen=True)
class Size:
    """How much of it: a third of the patients is tested."""

    patients: int
    slices: int
    seeds: int
    steps: int
    batch: int
    crop: int
    widths: tuple[int, ...]


SIZES = {
    "tiny": Size(3, 2, 2, 2, 2, 32, (2, 2, 4, 4, 8)),
    "small": Size(90, 6, 3, 800, 8, 64, (8, 16, 32, 64, 128)),
    "large": Size(23, 66, 5, 20_000, 8, 224, (32, 64, 128, 256, 512)),
}
Build = Callable[[Size], nn.Module]


def _bmsmm(**parts: bool) -> Build:
    off = {"mpe": False, "bgm": False, "skm": False}
    return lambda size: BMSMMNet(1, widths=size.widths, **{**off, **parts})


def _mfp(**parts: Any) -> Build:
    off = {"fsm": False, "frm": False, "sppm": False, "pscan": False, "multi_skips": False, "upsample": "bilinear"}
    return lambda size: MFPDeepLabV3Plus(1, 2, **{**off, **parts})


AFPP = {"fsm": True, "frm": True, "sppm": True}
PSCAN = {**AFPP, "pscan": True, "multi_skips": True}
# Rows in the papers' order: each adds to the one above it.
VARIANTS: dict[str, dict[str, Build]] = {
    "BMSMM-Net": {
        "plain U-Net": _bmsmm(),
        "+ MPE": _bmsmm(mpe=True),
        "+ BGM": _bmsmm(mpe=True, bgm=True),
        "+ SKM (all)": _bmsmm(mpe=True, bgm=True, skm=True),
    },
    "MFP-DeepLabv3+": {
        "DeepLabv3+": _mfp(),
        "+ AFPP": _mfp(**AFPP),
        "+ PSCAN and skips": _mfp(**PSCAN),
        "+ DySample (all)": _mfp(**PSCAN, upsample="dysample"),
    },
}
PAPER = {
    "BMSMM-Net": {"note": "no parameters, time or memory reported"},
    "MFP-DeepLabv3+": {
        "parameters": 5_633_832, "seconds_per_512x512": 0.0521, "training_memory_gb": 5.91, "on": "RTX 2080 Ti",
    },
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """Grey scaled to [-1, 1], bone and lesion, each (rows, columns)."""

    patient: str
    grey: NDArray[np.float32]
    masks: NDArray[np.bool_]  # (2, rows, columns): bone, lesion


def load(work: Path, size: Size) -> tuple[list[Slice], list[Slice]]:
    """(training, test) slices, by patient; every third patient is tested."""
    folder = work / f"slices_{size.patients}x{size.slices}"
    write_bmseg_like(folder, size.patients, size.slices, DATA_SEED)
    slices = []
    for one in read_bmseg(folder).slices:
        masks = np.stack([_halved(read_mask(path)) >= 0.5 for path in (one.bone, one.lesion)])
        grey = _halved(read_picture(one.image).astype(np.float32)) / 127.5 - 1
        slices.append(Slice(one.patient, grey.astype(np.float32), masks))
    tested = set(sorted({one.patient for one in slices})[2::3])
    return [s for s in slices if s.patient not in tested], [s for s in slices if s.patient in tested]


def _halved(pixels: NDArray) -> NDArray[np.float32]:
    rows, columns = (n // SHRINK for n in pixels.shape)
    cut = pixels[: rows * SHRINK, : columns * SHRINK].astype(np.float32)
    return cut.reshape(rows, SHRINK, columns, SHRINK).mean((1, 3))


def crops(slices: list[Slice], size: Size, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A batch: (B, 1, crop, crop) and masks (B, 2, crop, crop), mirrored and their grey varied at random.

    `LESION_CROPS` of them lie round a lesion pixel, the others round bone.
    """
    images, masks = [], []
    while len(images) < size.batch:
        one = slices[rng.integers(len(slices))]
        places = np.argwhere(one.masks[1] if rng.random() < LESION_CROPS and one.masks[1].any() else one.masks[0])
        if not len(places):
            continue
        middle = places[rng.integers(len(places))] + rng.integers(-size.crop // 4, size.crop // 4, 2)
        start = np.clip(middle - size.crop // 2, 0, np.maximum(np.array(one.grey.shape) - size.crop, 0))
        box = tuple(slice(int(s), int(s) + size.crop) for s in start)
        flip = slice(None, None, -1) if rng.random() < 0.5 else slice(None)
        grey = one.grey[box][None, :, flip] * rng.normal(1, 0.1) + rng.normal(0, 0.05)
        images.append(grey.astype(np.float32))
        masks.append(one.masks[(slice(None), *box)][..., flip].copy())
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)).float()


def loss_of(family: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Both heads 0.3 and 0.7 for BMSMM-Net; cross entropy and Dice of the lesion for MFP, as a sigmoid of l1 - l0."""
    if family == "BMSMM-Net":
        return RegionLoss((0.3, 0.7))
    one = RegionLoss((1.0,))
    return lambda logits, masks: one(logits[:, 1:] - logits[:, :1], masks[:, 1:])


def run_one(family: str, build: Build, size: Size, seed: int, train: list[Slice], test: list[Slice]) -> dict[str, Any]:
    """Train one variant from scratch in bfloat16 and test it in float32: pooled figures over the test slices."""
    torch.manual_seed(seed)
    net, loss, rng = build(size), loss_of(family), np.random.default_rng([DATA_SEED, seed])
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=size.steps, pct_start=0.1)
    start, losses = time.process_time(), []
    net.train()
    for _ in range(size.steps):
        image, masks = crops(train, size, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(image)
        value = loss(logits.float(), masks)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    net.eval()
    cases = []
    for one in test:
        rows, columns = one.grey.shape
        spare = (0, -columns % STRIDE, 0, -rows % STRIDE)
        with torch.inference_mode():
            logits = net(functional.pad(torch.from_numpy(one.grey)[None, None], spare, value=-1.0))
        lesion = logits[0, 1] if family == "BMSMM-Net" else logits[0, 1] - logits[0, 0]
        cases.append(compare_slice((lesion[:rows, :columns] > 0).numpy(), one.masks[1]))
    whole = pooled(cases)
    return {
        "iou": whole.iou,
        "dice": whole.dice,
        "sensitivity": whole.sensitivity,
        "precision": whole.precision,
        "class_mean_iou": class_mean(lambda c: c.iou)(whole),
        "last_loss": float(np.mean(losses[-20:])),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def run_path(store: Path, family: str, variant: str, seed: int) -> Path:
    """Where a finished run is kept."""
    return store / f"{family}_{variant}_{seed}.json".replace(" ", "_")


def ablation(work: Path, name: str, size: Size) -> dict[str, Any]:
    """Every variant and seed; what is in `work` already is not run again."""
    train, test = load(work, size)
    store = work / f"runs_{name}"
    store.mkdir(parents=True, exist_ok=True)
    block: dict[str, Any] = {
        "size": asdict(size),
        "training_slices": len(train),
        "test_slices": len(test),
        "test_patients": len({s.patient for s in test}),
    }
    for seed in range(size.seeds):  # seeds outermost: cut off early, every variant has the same seeds
        for family, variants in VARIANTS.items():
            for variant, build in variants.items():
                path = run_path(store, family, variant, seed)
                if not path.is_file():
                    path.write_text(json.dumps(run_one(family, build, size, seed, train, test)))
                found = json.loads(path.read_text())
                block.setdefault(family, {}).setdefault(variant, []).append(found)
                print(f"seed {seed} {family} {variant}: IoU {100 * found['iou']:.1f} %", flush=True)
    for family, variants in VARIANTS.items():
        rows, above = {}, None
        for variant in variants:
            runs = block[family][variant]
            rows[variant] = {
                "runs": runs,
                "iou_percent": _mean([100 * r["iou"] for r in runs]),
                "dice_percent": _mean([100 * r["dice"] for r in runs]),
            }
            if above is not None:
                differences = [100 * (r["iou"] - b["iou"]) for r, b in zip(runs, block[family][above], strict=True)]
                rows[variant]["iou_minus_row_above"] = _mean(differences)
            above = variant
        block[family] = rows
    return block


def _mean(values: list[float]) -> dict[str, float]:
    """Mean and 95 % t interval over seeds."""
    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return {"mean": round(mean, 2), "low": round(mean - half, 2), "high": round(mean + half, 2), "n": n}


def costs(pixels: int = 512, batch: int = 8) -> dict[str, Any]:
    """Parameters, GFLOPs, seconds and training memory of every variant at the papers' sizes.

    GFLOPs count a multiply-add as two, convolutions and matrix products alone (the scan and sampling are not counted).
    Memory is what autograd keeps of one image, times the batch, plus weights, gradients and one momentum in float32:
    workspace of a GPU's kernels comes on top.
    """
    full = SIZES["large"]
    table: dict[str, Any] = {"pixels": pixels, "batch": batch, "threads": torch.get_num_threads()}
    for family, variants in VARIANTS.items():
        rows = {}
        for variant, build in variants.items():
            net = build(full)
            x = torch.randn(1, 1, pixels, pixels)
            # Batch norm over one pixel is refused, so the global pooling of plain DeepLabv3+ sees two images.
            images = 2 if family == "MFP-DeepLabv3+" else 1
            kept = saved_bytes(net.train(), x.expand(images, -1, -1, -1).contiguous())
            weights = sum(p.numel() * 4 for p in net.parameters())
            net.eval()
            seconds = []
            with torch.inference_mode():
                with FlopCounterMode(display=False) as counter:
                    net(x)
                for _ in range(2):
                    start = time.process_time()
                    net(x)
                    seconds.append(time.process_time() - start)
            rows[variant] = {
                "parameters": sum(p.numel() for p in net.parameters()),
                "gflops": round(counter.get_total_flops() / 1e9, 1),
                "cpu_seconds_per_image": round(min(seconds), 3),
                "training_memory_gb": round((kept / images * batch + 3 * weights) / 1e9, 2),
            }
            print(family, variant, json.dumps(rows[variant]), flush=True)
        table[family] = {"paper": PAPER[family], "variants": rows}
    return table


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """What autograd keeps for the backward pass of `net(x)`, each piece of memory counted once, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    held: list[Tensor] = []  # alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(x)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for place, size in sizes.items() if place not in own)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--parts", nargs="+", choices=("ablation", "costs"), default=["ablation", "costs"])
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "volseg" / "bench_bmseg")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    machine = f"{platform.system()}-{platform.machine()}-{args.threads}threads".lower()
    path = args.out / f"{date}_{machine}_bmseg.json"
    document = json.loads(path.read_text()) if path.is_file() else {}
    document |= {"date": date, "machine": machine, "cpu": _cpu(), "torch": torch.__version__}
    document["what"] = "SYNTHETIC slices of computed patients, short trainings: no figure compares with the papers'"
    for part in args.parts:
        document[part] = ablation(args.work, args.size, SIZES[args.size]) if part == "ablation" else costs()
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    print(table_of(document))
    print(path)


def table_of(document: dict[str, Any]) -> str:
    """Both blocks as lines of Markdown."""
    lines = []
    for family, variants in VARIANTS.items():
        lines += [
            f"{family}, lesion only, pooled, {document['what']}",
            "",
            "| variant | IoU, % | against the row above |",
        ]
        lines += ["|---|---|---|"]
        for variant in variants:
            row = document.get("ablation", {}).get(family, {}).get(variant)
            if row is None:
                continue
            change = row.get("iou_minus_row_above")
            told = (
                "-" if change is None else f"{_words(change)}{' (tie)' if change['low'] <= 0 <= change['high'] else ''}"
            )
            lines.append(f"| {variant} | {_words(row['iou_percent'])} | {told} |")
        paper = document.get("costs", {}).get(family, {})
        if paper:
            lines += ["", "| variant | parameters | GFLOPs | CPU s | training GB |", "|---|---|---|---|---|"]
            for variant, row in paper["variants"].items():
                lines.append(
                    f"| {variant} | {row['parameters']:,} | {row['gflops']} | {row['cpu_seconds_per_image']} | "
                    f"{row['training_memory_gb']} |"
                )
            lines.append(f"paper: {json.dumps(paper['paper'])}")
        lines.append("")
    return "\n".join(lines)


def _words(value: dict[str, float]) -> str:
    return f"{value['mean']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


if __name__ == "__main__":
    main()
