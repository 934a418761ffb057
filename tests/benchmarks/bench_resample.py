"""volseg's spacing and way back against MONAI's Spacing and Invertd, on the same tensors in alternation.

    python tests/benchmarks/bench_resample.py [--rounds 5] [--threads 2] [--shape 512 512 275]

Prints medians and ratios, the largest difference of the results, and each contender's extra memory (its own process),
and writes results/<date>_<machine>_resample.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacing, Spacingd
from resident import resident_mb

from volseg.transforms.ct import RasIsotropicd
from volseg.transforms.invert import ToSourceGridd
from volseg.transforms.metatensor import to_metatensor
from volseg.transforms.resample import AxisAlignedSpacing
from volseg.types import Volume

# A chest CT's, to 1 mm. Neither way does a position fall midway between two voxels, where MONAI's nearest goes by the
# rounding of float32 and ours up.
HERE = Path(__file__).resolve().parent
SPACING_MM = (0.7031, 0.7031, 1.2497)
HU_RANGE = 3024.0
Pair = tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]


def grid() -> np.ndarray:
    return np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])


def chest(shape: tuple[int, int, int], order: str, channels: int = 1) -> MetaTensor:
    """Noise over the HU range in a chest CT's grid (LPS), stored along x (`F`, as DICOM series) or along z (`C`)."""
    rng = np.random.default_rng(1)
    voxels = rng.integers(-1024, 2000, shape[::-1], dtype=np.int16).T
    image = to_metatensor(Volume(np.array(voxels, order=order), grid()))
    return (
        MetaTensor(image.as_tensor().expand(channels, *shape).contiguous(), meta=image.meta) if channels > 1 else image
    )


def labels(shape: tuple[int, int, int], channels: int) -> MetaTensor:
    """Four classes at random in the same grid, uint8."""
    values = torch.randint(0, 4, (channels, *shape), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    return MetaTensor(values, meta=chest((2, 2, 2), "C").meta)


def spacing(shape: tuple[int, int, int], order: str, channels: int, mode: str) -> Pair:
    image = chest(shape, order, channels) if mode == "bilinear" else labels(shape, channels)
    ours, theirs = AxisAlignedSpacing(1.0, mode=mode), Spacing((1.0, 1.0, 1.0), mode=mode)
    return lambda: ours(image), lambda: theirs(image)


def ras_and_spacing(shape: tuple[int, int, int], order: str) -> Pair:
    image = chest(shape, order)
    ours = RasIsotropicd("image")
    theirs = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0))])
    return lambda: ours({"image": image})["image"], lambda: theirs({"image": image})["image"]


def way_back(shape: tuple[int, int, int], channels: int, mode: str) -> Pair:
    steps = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0))])
    working = steps({"image": chest(shape, "F")})
    size = (channels, *working["image"].shape[1:])
    generator = torch.Generator().manual_seed(1)
    values = (
        torch.rand(size, generator=generator) * HU_RANGE
        if mode == "linear"
        else torch.randint(0, 4, size, generator=generator).to(torch.uint8)
    )
    pred = MetaTensor(values, meta=working["image"].meta)
    del values
    # Only its metadata are read; its voxels would count as memory of both.
    working["image"] = MetaTensor(torch.zeros(1).expand(size), meta=working["image"].meta).copy_meta_from(
        working["image"]
    )
    ours = ToSourceGridd("pred", mode=mode)
    theirs = Invertd("pred", steps, orig_keys="image", nearest_interp=mode == "nearest")
    return lambda: ours({"pred": pred})["pred"], lambda: theirs({"image": working["image"], "pred": pred})["pred"]


JOBS: dict[str, Callable[[tuple[int, int, int]], Pair]] = {
    "spacing, 1 channel linear": lambda shape: spacing(shape, "C", 1, "bilinear"),
    "spacing, 1 channel linear, x fastest": lambda shape: spacing(shape, "F", 1, "bilinear"),
    "spacing, 3 channels linear": lambda shape: spacing(shape, "C", 3, "bilinear"),
    "spacing, 1 channel nearest": lambda shape: spacing(shape, "C", 1, "nearest"),
    "spacing, 3 channels nearest": lambda shape: spacing(shape, "C", 3, "nearest"),
    "RAS + spacing, x fastest": lambda shape: ras_and_spacing(shape, "F"),
    "way back, 1 channel linear": lambda shape: way_back(shape, 1, "linear"),
    "way back, 3 channels linear": lambda shape: way_back(shape, 3, "linear"),
    "way back, 1 channel nearest": lambda shape: way_back(shape, 1, "nearest"),
    "way back, 3 channels nearest": lambda shape: way_back(shape, 3, "nearest"),
}


def seconds_of(job: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """Wall and processor seconds; the second is what a busy machine leaves meaningful (with one thread)."""
    wall, processor = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(name: str, shape: tuple[int, int, int], rounds: int) -> dict[str, object]:
    ours, theirs = JOBS[name](shape)
    a, b = ours().as_tensor(), theirs().as_tensor()
    if a.dtype == torch.uint8:
        exact = {"voxels_that_differ": int((a != b.to(a.dtype)).sum()), "voxels": a.numel()}
    else:
        exact = {"difference_over_hu_range": (a - b).abs_().max().item() / HU_RANGE}
    del a, b
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(rounds)]
    (wall_a, cpu_a), (wall_b, cpu_b) = (
        tuple(statistics.median(clock) for clock in zip(*side, strict=True)) for side in zip(*pairs, strict=True)
    )
    return {
        "volseg_s": round(wall_a, 3),
        "monai_s": round(wall_b, 3),
        "ratio": round(wall_b / wall_a, 1),
        "volseg_cpu_s": round(cpu_a, 3),
        "monai_cpu_s": round(cpu_b, 3),
        "cpu_ratio": round(cpu_b / cpu_a, 1),
        **exact,
    }


def peak_mb(name: str, shape: tuple[int, int, int], side: int, threads: int) -> float:
    """Growth of the process's peak memory while the job runs once, output included (a fresh process)."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grown_mb, (name, shape, side, threads))


def _grown_mb(name: str, shape: tuple[int, int, int], side: int, threads: int) -> float:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    JOBS[name]((16, 16, 16))[side]()
    job = JOBS[name](shape)[side]
    # Linux: forget the peak of the set-up.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    job()
    return round(resident_mb("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 275))
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory (Linux only)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    shape = tuple(arguments.shape)
    load = os.getloadavg()[0]
    print(f"{shape} voxels of {SPACING_MM} mm, {arguments.threads} threads, {arguments.rounds} rounds, load {load:.1f}")
    results = {}
    for name in JOBS:
        results[name] = row = compare(name, shape, arguments.rounds)
        memory = ""
        if not arguments.no_memory:
            for side, key in enumerate(("volseg_mb", "monai_mb")):
                row[key] = peak_mb(name, shape, side, arguments.threads)
            memory = f", {row['volseg_mb']} MB against {row['monai_mb']} MB"
        print(
            f"{name:36s} {row['volseg_s']:7.2f} s against {row['monai_s']:7.2f} s = {row['ratio']:5.1f}x"
            f" (processor {row['volseg_cpu_s']:.2f} and {row['monai_cpu_s']:.2f} s = {row['cpu_ratio']:.1f}x)"
            f"{memory}, {next((k, v) for k, v in row.items() if 'differ' in k)}",
            flush=True,
        )
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    machine = f"{platform.system()}-{platform.machine()}-{arguments.threads}threads".lower()
    versions = {"torch": torch.__version__, "monai": monai.__version__}
    document = {"date": date, "machine": machine, "load": load, **versions, "shape": shape, "spacing_mm": SPACING_MM}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{date}_{machine}_resample.json"
    path.write_text(json.dumps(document | {"results": results}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
