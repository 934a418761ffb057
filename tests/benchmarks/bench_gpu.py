"""What only a GPU can show: our Triton scan beside mamba_ssm's, SegMamba's window rate beside SwinUNETR's, a whole CT.

    python tests/benchmarks/bench_gpu.py [--ct CT.nii.gz] [--mamba mamba_ssm.tar.gz] [--out RESULTS]

Run `pytest tests/ops/test_scan_triton.py` first: on a machine with CUDA it tests the compiled kernels. mamba_ssm is
built from `--mamba` (a carried sdist, or a requirement for pip) where it is missing and nvcc is there, and timed where
it can be imported. Writes one JSON; refuses to run without CUDA. Not yet run (no GPU was lent until 2026-11-22).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Channels and tokens of SegMamba's four stages for a window of 128^3.
STAGES = ((96, 262144), (192, 32768), (384, 4096), (768, 512))
BACKENDS = ("triton", "mamba_ssm", "torch")


def milliseconds(call: Callable[[], Any], repeats: int = 20) -> float:
    """Median of `repeats` timed calls after three warm ones."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(sorted(times)[len(times) // 2], 4)


def build_mamba(requirement: str) -> str:
    """Build mamba_ssm with this environment's torch; says what came of it, for the JSON."""
    if importlib.util.find_spec("mamba_ssm"):
        return "was there"
    if not shutil.which("nvcc"):
        return "not built: no nvcc"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", requirement]
    done = subprocess.run(pip, capture_output=True, text=True)
    return "built" if done.returncode == 0 else f"not built: {done.stderr.strip().splitlines()[-1]}"


def scans() -> list[dict[str, Any]]:
    """Forward and backward of every backend at SegMamba's shapes, and the error against float64."""
    from volseg.ops.selective_scan import selective_scan

    rows = []
    for channels, length in STAGES:
        for dtype in (torch.bfloat16, torch.float32):
            torch.manual_seed(0)
            u, delta = (torch.randn(1, channels, length, device="cuda", dtype=dtype) for _ in range(2))
            B, C = (torch.randn(1, 16, length, device="cuda", dtype=dtype) for _ in range(2))
            A = -torch.arange(1.0, 17.0, device="cuda").repeat(channels, 1)
            D, bias = torch.ones(channels, device="cuda"), torch.randn(channels, device="cuda") - 4
            given = [t.requires_grad_() for t in (u, delta, A, B, C, D, bias)]
            short = [t.detach()[..., :2048].double() if t.ndim == 3 else t.detach().double() for t in given]
            exact = selective_scan(*short[:6], None, short[6], True, backend="torch")
            for backend in BACKENDS:

                def forward(backend: str = backend, given: list[torch.Tensor] = given) -> torch.Tensor:
                    return selective_scan(*given[:6], None, given[6], True, backend=backend)  # type: ignore[arg-type]

                row: dict[str, Any] = {"channels": channels, "tokens": length, "type": str(dtype), "backend": backend}
                try:
                    y = forward()
                    seed = torch.randn_like(y)
                    difference = (y[..., :2048].double() - exact).abs().max() / exact.abs().max()
                    row["forward_ms"] = milliseconds(forward)
                    row["both_ms"] = milliseconds(lambda f=forward, g=given, s=seed: torch.autograd.grad(f(), g, s))
                    row["relative_error"] = float(difference)
                except (ImportError, torch.OutOfMemoryError) as error:
                    row["not_run"] = str(error).splitlines()[0]
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def windows() -> dict[str, Any]:
    """Windows of 128^3 per second in bf16, full-size SegMamba and SwinUNETR(48), and bf16 matmul for a ceiling."""
    from monai.networks.nets import SwinUNETR

    from volseg.networks import SegMamba

    x = torch.randn(1, 1, 128, 128, 128, device="cuda")
    rows: dict[str, Any] = {}
    for name, net in (("segmamba", SegMamba(1, 2)), ("swin", SwinUNETR(1, 2, feature_size=48))):
        net = net.cuda().eval()
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            rows[f"{name}_windows_per_s"] = round(1000 / milliseconds(lambda net=net: net(x)), 2)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    rows["matmul_tflops"] = round(2 * 8192**3 / milliseconds(lambda: a @ a) / 1e9, 1)
    return rows


def chest(ct: Path) -> dict[str, Any]:
    """The whole CT, file to mask, with a full-size SegMamba (random weights: the time is the same)."""
    from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
    from volseg.inference.source_grid import SourceGridInferer
    from volseg.io import read_study
    from volseg.networks import SegMamba
    from volseg.transforms.metatensor import to_metatensor

    net = SegMamba(3, 2).cuda().eval()  # the shipped bundle's channels
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE), device="cpu", overrides={"spacing_mm": 1.0})
    start = time.perf_counter()
    volume = read_study(ct).volumes["CT"]
    data = bundle.preprocessing({"image": to_metatensor(volume)})
    inferer = SourceGridInferer(128, 2, 0.5, precision="bfloat16")
    with torch.inference_mode():
        labels = inferer(data["image"].cuda()[None], net, occupancy=data["bone"][None]).cpu()
    return {"seconds": round(time.perf_counter() - start, 2), "voxels": list(labels.shape[2:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ct", type=Path, help="a chest CT for the run from file to mask")
    parser.add_argument("--mamba", default="mamba-ssm", help="what pip builds where mamba_ssm is missing")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench_gpu: no CUDA device here")
    date, device = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), torch.cuda.get_device_name()
    document: dict[str, Any] = {"date": date, "device": device, "torch": torch.__version__}
    document["mamba_ssm"] = build_mamba(args.mamba)
    document |= {"scans": scans(), "windows": windows()}
    if args.ct:
        document["chest"] = chest(args.ct)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{date}_{device.replace(' ', '-').lower()}_gpu.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
