"""Seconds of the detector's operations, each beside what it replaces, in alternation.

    python tests/benchmarks/bench_detection_ops.py [--parts nms roi depthwise backbone] [--rounds 5] [--threads 2]

Every pair runs in turn (ours, theirs, ours, theirs ...) in one process; the medians' ratio is what counts, for the
machine's speed drifts. Writes results/<date>_<machine>_detection_ops.json. Peers: MONAI's `non_max_suppression` (boxes
jittered around 60 places, or around a thousand), RoIAlign by einsums over the whole map and by grid_sample, torch's
depthwise convolution in both layouts (forward and backward), and ConvNeXt-V2 through torch's own operations.
"""

from __future__ import annotations

import os

# Idle OpenMP threads would spin on the core that a compiled kernel's second thread wants; to be set before torch comes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_speed import alternate, run_parts  # noqa: E402

Result = dict[str, Any]


def boxes_around(lesions: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    centers = torch.rand(lesions, 3, generator=g) * torch.tensor([96.0, 80.0, 64.0])
    sizes = 4 + 20 * torch.rand(lesions, 3, generator=g)
    which = torch.randint(lesions, (n,), generator=g)
    center = centers[which] + 3 * torch.randn(n, 3, generator=g)
    half = sizes[which] * (0.7 + 0.6 * torch.rand(n, 3, generator=g)) / 2
    return torch.cat([center - half, center + half], 1), torch.rand(n, generator=g)


def nms(rounds: int) -> Result:
    from monai.data.box_utils import non_max_suppression

    from volseg.ops.nms3d import nms3d

    rows = {}
    for lesions, n, threshold in ((60, 1000, 0.1), (60, 1000, 0.5), (1000, 1000, 0.1), (1000, 1000, 0.5)):
        boxes, scores = boxes_around(lesions, n)
        seconds = alternate(
            rounds,
            volseg=lambda b=boxes, s=scores, t=threshold: nms3d(b, s, t),
            monai=lambda b=boxes, s=scores, t=threshold: non_max_suppression(b, s, t),
        )
        ours, theirs = nms3d(boxes, scores, threshold), non_max_suppression(boxes, scores, threshold)
        rows[f"{n} boxes around {lesions} places, IoU {threshold}"] = seconds | {
            "times_faster": round(seconds["monai"] / seconds["volseg"], 1),
            "kept": len(ours),
            "same_indices": ours.tolist() == theirs.tolist(),
        }
    return rows


def roi(rounds: int) -> Result:
    """The three matrices cut to each box, beside the same over the whole map as three einsums, and grid_sample."""
    from volseg.ops.roi_align3d import _matrix, _samples, roi_align3d

    rows = {}
    for size, n, cells, ratio, extent in ((32, 32, 7, 2, 16), (32, 64, 14, 2, 16), (48, 200, 7, 1, 16)):
        g = torch.Generator().manual_seed(1)
        features = torch.randn(1, 96, size, size, size, generator=g)
        features = features.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        center, half = torch.rand(n, 3, generator=g) * 4 * size, extent * (0.5 + torch.rand(n, 3, generator=g)) / 2
        boxes, index = torch.cat([center - half, center + half], 1), torch.zeros(n, dtype=torch.long)

        def align(backend: str, f=features, b=boxes, i=index, c=cells, r=ratio) -> torch.Tensor:
            return roi_align3d(f, b, i, output_size=c, spatial_scale=0.25, sampling_ratio=r, backend=backend)

        def einsums(f=features, b=boxes, c=cells, r=ratio, m=size) -> torch.Tensor:
            x, y, z = (_matrix(_samples(b[:, i], b[:, i + 3], c, 0.25, r), m) for i in range(3))
            t = torch.einsum("cxyz,nkz->ncxyk", f[0], z)
            return torch.einsum("ncxjk,nix->ncijk", torch.einsum("ncxyk,njy->ncxjk", t, y), x)

        seed = torch.randn_like(align("matrices"))
        with torch.inference_mode():
            seconds = alternate(
                rounds,
                volseg=lambda a=align: a("matrices"),
                einsums=einsums,
                grid_sample=lambda a=align: a("grid_sample"),
            )
            difference = float((align("matrices") - einsums()).abs().max())
        both = alternate(
            rounds,
            volseg=lambda a=align, s=seed: a("matrices").backward(s),
            einsums=lambda e=einsums, s=seed: e().backward(s),
        )
        rows[f"{n} boxes of {extent} voxels, {cells}^3, {ratio} samples, map 96 x {size}^3 at stride 4"] = {
            "forward": seconds,
            "forward_and_backward": both,
            "largest_difference_to_einsums": difference,
        }
    return rows


def depthwise(rounds: int) -> Result:
    from torch.nn import functional as F

    from volseg.ops.depthwise_conv3d import depthwise_conv3d

    rows = {}
    for channels, size in ((48, 32), (48, 48), (96, 24), (192, 12), (384, 6)):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(1, channels, size, size, size, dtype=dtype)
            last = x.contiguous(memory_format=torch.channels_last_3d)
            weight = torch.randn(channels, 1, 5, 5, 5, dtype=dtype, requires_grad=True)
            x, last, seed = x.requires_grad_(), last.requires_grad_(), torch.randn_like(last)

            def torchs(x: torch.Tensor, w=weight, s=seed) -> None:
                F.conv3d(x, w, padding=2, groups=len(w)).backward(s)

            seconds = alternate(
                rounds,
                volseg=lambda x=last, w=weight, s=seed: depthwise_conv3d(x, w).backward(s),
                torch_channels_last=lambda x=last, t=torchs: t(x),
                **({"torch": lambda x=x, t=torchs: t(x)} if size < 48 else {}),
            )
            rows[f"{channels} channels, {size}^3, 5^3, {str(dtype)[6:]}"] = seconds | {
                "times_faster": round(seconds["torch_channels_last"] / seconds["volseg"], 1)
            }
    return rows


def backbone(rounds: int) -> Result:
    """ConvNeXt-V2 femto, and the same network through torch's own operations in either layout."""
    from torch.nn import functional as F

    from volseg.networks import ConvNeXtV2, convnextv2
    from volseg.ops.gelu_squares import gelu_squares_reference

    torch.manual_seed(0)
    net = ConvNeXtV2.of_size("femto")

    def run(x: torch.Tensor, short: bool, train: bool, plain: torch.memory_format | None = None) -> None:
        def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return F.conv3d(x.contiguous(memory_format=plain), w, b, padding=w.shape[-1] // 2, groups=len(w))

        with contextlib.ExitStack() as stack:
            if plain is not None:
                stack.enter_context(mock.patch.object(convnextv2, "depthwise_conv3d", convolve))
                stack.enter_context(mock.patch.object(convnextv2, "gelu_squares", gelu_squares_reference))
            stack.enter_context(torch.set_grad_enabled(train))
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=short))
            loss = sum(f.float().square().mean() for f in net(x))
        if train:
            loss.backward()

    rows = {}
    for size in (64, 96):
        x = torch.randn(1, 1, size, size, size)
        for short in (False, True):
            for train in (False, True):
                contenders: dict[str, torch.memory_format | None] = {
                    "volseg": None,
                    "torch_channels_last": torch.channels_last_3d,
                }
                if size == 64:
                    contenders["torch"] = torch.contiguous_format
                seconds = alternate(
                    rounds,
                    **{k: lambda x=x, s=short, t=train, p=p: run(x, s, t, p) for k, p in contenders.items()},
                )
                name = f"{size}^3, {'bfloat16' if short else 'float32'}, {'a step' if train else 'inference'}"
                rows[name] = seconds | {"times_faster": round(seconds["torch_channels_last"] / seconds["volseg"], 1)}
    return rows


PARTS: dict[str, Callable[[int], Result]] = {"nms": nms, "roi": roi, "depthwise": depthwise, "backbone": backbone}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    print(run_parts(PARTS, args, "detection_ops")[1])


if __name__ == "__main__":
    main()
