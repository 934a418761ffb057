"""Seconds and memory of volseg's kernels, network and inference engine, each beside what it replaces, in alternation.

    python tests/benchmarks/bench_speed.py [--parts scan conv network train window chest growth] [--rounds 3]

Every pair runs in turn (ours, theirs, ours, theirs ...) in one process; the medians' ratio is what counts, for the
machine's speed drifts. Memory is that of a process of its own. Writes results/<date>_<machine>_speed.json.
`chest` needs ../shared. Peers: MONAI's SwinUNETR, SlidingWindowInferer, Spacingd and Invertd, torch's convolution, and
the plain build of SegMamba (the same weights through torch's operations).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

HERE = Path(__file__).resolve().parent
Result = dict[str, Any]


def alternate(rounds: int, **contenders: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each contender, after one unmeasured call each; one that returns a float has timed itself."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for lap in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            measured = call()
            if lap:
                seconds[name].append(measured if isinstance(measured, float) else time.perf_counter() - start)
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


@contextlib.contextmanager
def plain_build() -> Iterator[None]:
    """Inside, SegMamba's convolutions and norms are torch's own (the scan stays: torch has none)."""
    from volseg.ops import conv3d, instance_norm

    def nothing(package: str) -> bool:
        return False

    with mock.patch.object(conv3d, "installed", nothing), mock.patch.object(instance_norm, "installed", nothing):
        yield


def scan(rounds: int) -> Result:
    from volseg.ops.selective_scan import selective_scan

    torch.manual_seed(0)
    u, delta = torch.randn(1, 96, 262144), torch.rand(1, 96, 262144) * 0.1
    A, B, C, D = -torch.rand(96, 16), torch.randn(1, 16, 262144), torch.randn(1, 16, 262144), torch.randn(96)
    inputs = [t.requires_grad_() for t in (u, delta, A, B, C, D)]

    def forward() -> None:
        with torch.inference_mode():
            selective_scan(*inputs, delta_softplus=True)

    def both() -> None:
        selective_scan(*inputs, delta_softplus=True).sum().backward()

    return alternate(rounds, forward=forward, forward_and_backward=both)


def conv(rounds: int) -> Result:
    from torch.nn import functional as F

    from volseg.ops.conv3d import conv3d_3x3x3

    rows = {}
    for channels, size in ((16, 96), (48, 96), (96, 48), (192, 24)):
        x, weight = torch.randn(1, channels, size, size, size), torch.randn(channels, channels, 3, 3, 3) * 0.03
        with torch.inference_mode():
            seconds = alternate(
                rounds,
                volseg=lambda x=x, w=weight: conv3d_3x3x3(x, w),
                torch=lambda x=x, w=weight: F.conv3d(x, w, padding=1),
            )
            exact = F.conv3d(x[..., :24].double(), weight.double(), padding=1)[..., :20]
            error = float((conv3d_3x3x3(x, weight)[..., :20] - exact).abs().max() / exact.abs().max())
        rows[f"{channels} channels, {size}^3"] = seconds | {
            "ratio": round(seconds["volseg"] / seconds["torch"], 3),
            "relative_error": error,
        }
    return rows


def network(rounds: int, sizes: tuple[int, ...] = (96, 128)) -> Result:
    from monai.networks.nets import SwinUNETR

    from volseg.networks import SegMamba

    torch.manual_seed(0)
    ours, swin = SegMamba(1, 2).eval(), SwinUNETR(in_channels=1, out_channels=2, feature_size=48).eval()
    rows = {}
    for size in sizes:
        x = torch.randn(1, 1, size, size, size)

        def plain(x: torch.Tensor = x) -> torch.Tensor:
            with plain_build():
                return ours(x)

        def half(x: torch.Tensor = x) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return ours(x)

        with torch.inference_mode():
            seconds = alternate(
                rounds, segmamba=lambda x=x: ours(x), segmamba_bf16=half, segmamba_plain=plain, swin=lambda x=x: swin(x)
            )
            difference = float((ours(x) - plain()).abs().max())
        rows[f"{size}^3"] = seconds | {
            "float32_over_swin": round(seconds["segmamba"] / seconds["swin"], 3),
            "bf16_over_swin": round(seconds["segmamba_bf16"] / seconds["swin"], 3),
            "plain_over_swin": round(seconds["segmamba_plain"] / seconds["swin"], 3),
            "largest_difference_to_plain": difference,
        }
    return rows


def train(rounds: int, size: int = 96) -> Result:
    from volseg.networks import SegMamba

    torch.manual_seed(0)
    net = SegMamba(1, 2)
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    x = torch.randn(1, 1, size, size, size)

    def step() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    def plain() -> None:
        with plain_build():
            step()

    seconds = alternate(rounds, volseg=step, plain=plain)
    return seconds | {"ratio": round(seconds["volseg"] / seconds["plain"], 3)}


NEAR_BONE_MM = 5.0  # where the shipped bundle lets a lesion end
CHEST = ("volseg", "volseg_same_windows", "volseg_same_windows_bf16", "monai")
PREFIX: list[str] = []  # in front of what runs in a process of its own


def window(rounds: int) -> Result:
    """Seconds per window of the shipped network, two at a time: what a whole CT cannot go below."""
    from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
    from volseg.inference.workers import in_order, workers_for

    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE))
    net = bundle.network
    channels = bundle.files.metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    pair = torch.randn(2, channels, *bundle.inferer.roi_size)
    workers = workers_for(torch.device("cpu"), 2)

    # In each row eight windows count; side by side a ninth goes first, alone.
    def together(x: torch.Tensor = pair) -> None:
        for _ in range(4):
            net(x)

    def plain_network() -> None:
        with plain_build():
            together()

    def side_by_side() -> float:
        arriving = in_order(net, [pair[:1]] * 9, workers)
        next(arriving)
        start = time.perf_counter()
        list(arriving)
        return time.perf_counter() - start

    def side_by_side_bf16() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return side_by_side()

    with torch.inference_mode():
        seconds = alternate(
            rounds,
            together=together,
            together_plain_network=plain_network,
            side_by_side=side_by_side,
            side_by_side_bf16=side_by_side_bf16,
        )
    return {name: round(value / 8, 4) for name, value in seconds.items()}


def chest(rounds: int) -> Result:
    """A whole chest CT, file to mask: `chest_run.py` runs each pipeline in a process of its own."""
    import nibabel as nib
    import numpy as np
    from scipy import ndimage

    from volseg.geometry import spacing_mm
    from volseg.io import read_study, write_nifti

    rows: Result = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shared = (HERE / "../../../shared/data/lidc0314_chest_1mm").resolve()
        with tarfile.open(next(shared.glob("*.tar.xz"))) as tar:
            tar.extractall(work / "dicom", filter="data")
        volume = read_study(work / "dicom").volumes["CT"]
        write_nifti(work / "ct.nii.gz", volume.voxels, volume.affine, dtype=np.int16)
        runs: dict[str, list[Result]] = {name: [] for name in CHEST}
        for _ in range(rounds):
            for name, results in runs.items():
                command = [
                    *PREFIX,
                    sys.executable,
                    HERE / "chest_run.py",
                    name,
                    work / "ct.nii.gz",
                    work / f"{name}.nii.gz",
                ]
                done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"  chest, {name}: {results[-1]['seconds']:.1f} s", flush=True)
        for name, results in runs.items():
            rows[name] = {key: round(statistics.median(r[key] for r in results), 2) for key in results[0]}
        masks = {n: np.asarray(nib.load(work / f"{n}.nii.gz").dataobj) > 0 for n in (*CHEST, "bone")}
        near = masks["bone"]
        for axis, step in enumerate(spacing_mm(volume.affine)):
            near = ndimage.maximum_filter1d(near, 2 * round(NEAR_BONE_MM / step) + 1, axis=axis)
        for place, where in (("in_bone", masks["bone"]), ("near_bone", near)):
            truth = masks["monai"] & where
            for name in CHEST:
                both = int((masks[name] & truth).sum())
                size = int((masks[name] & where).sum()) + int(truth.sum())
                rows[name][f"dice_{place}"] = round(2 * both / max(1, size), 4)
                rows[name][f"voxels_{place}"] = int((masks[name] & where).sum())
    for name in CHEST:
        rows[name]["times_faster_than_monai"] = round(rows["monai"]["seconds"] / rows[name]["seconds"], 2)
        rows[name]["memory_ratio"] = round(rows[name]["peak_gb"] / rows["monai"]["peak_gb"], 3)
    return rows


GROWTH = {"volume": (1, 2, 4, 8), "classes": (2, 20, 120), "classes_blended": (2, 20, 120)}


def growth(rounds: int) -> Result:
    """Seconds and peak memory against volume (a phantom tiled) and against the number of classes."""
    rows: Result = {block: {} for block in GROWTH}
    for block, values in GROWTH.items():
        for value in values:
            command = [sys.executable, str(HERE / "growth_run.py"), block, str(value)]
            done = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(rounds)]
            results = [json.loads(d.stdout.splitlines()[-1]) for d in done]
            rows[block][str(value)] = {k: round(statistics.median(r[k] for r in results), 3) for k in results[0]}
    return rows


PARTS: dict[str, Callable[[int], Result]] = {
    "scan": scan,
    "conv": conv,
    "network": network,
    "train": train,
    "window": window,
    "chest": chest,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prefix", default="", help="command in front of each chest pipeline, such as 'nice -n -5'")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    PREFIX.extend(shlex.split(args.prefix))
    document, path = run_parts(PARTS, args, "speed")
    if "growth" in args.parts:
        from growth_figure import draw, table

        print(table(document["growth"]))
        draw(document["growth"], path.with_name(path.name.replace("_speed.json", "_growth.png")))
    print(path)


def run_parts(parts: dict[str, Callable[[int], Result]], args: argparse.Namespace, name: str) -> tuple[Result, Path]:
    """Run `args.parts` and write each into args.out/<date>_<machine>_<name>.json; the parts of earlier runs stay."""
    torch.set_num_threads(args.threads)
    machine = f"{platform.system()}-{platform.machine()}-{args.threads}threads".lower()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    path = args.out / f"{date}_{machine}_{name}.json"
    document = json.loads(path.read_text()) if path.is_file() else {"date": date, "machine": machine}
    document["torch"], document["cpu"] = torch.__version__, _cpu()
    for part in args.parts:
        document[part] = parts[part](args.rounds)
        print(part, json.dumps(document[part], indent=1), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    return document, path


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
