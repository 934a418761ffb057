"""Seconds of the detector's operations, each beside what it replaces, in alternation.

    python tests/benchmarks/bench_detection_ops.py [--parts nms] [--rounds 5] [--threads 2]

Every pair runs in turn (ours, theirs, ours, theirs ...) in one process; the medians' ratio is what counts, for the
machine's speed drifts. Writes results/<date>_<machine>_detection_ops.json. Peer of `nms`: MONAI's
`non_max_suppression`, on boxes jittered around 60 lesions and on boxes strewn at random.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_speed import _cpu, alternate  # noqa: E402

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


PARTS: dict[str, Callable[[int], Result]] = {"nms": nms}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = f"{platform.system()}-{platform.machine()}-{args.threads}threads".lower()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    path = args.out / f"{date}_{machine}_detection_ops.json"
    document = json.loads(path.read_text()) if path.is_file() else {"date": date, "machine": machine}
    document["torch"], document["cpu"] = torch.__version__, _cpu()
    for part in args.parts:
        document[part] = PARTS[part](args.rounds)
        print(part, json.dumps(document[part], indent=1), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
