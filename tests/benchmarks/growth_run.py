"""The inference engine on a phantom tiled N times, or with K classes: `growth_run.py BLOCK N`. JSON on stdout.

BLOCK is `volume` (N tiles, 2 classes), `classes` (N classes, the network's head named, so that features are blended),
or `classes_blended` (N classes whose logits are blended themselves, as for a network that ends otherwise). The network
is two small convolutions: what grows here is the engine, not the network.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from monai.data import MetaTensor
from resident import peak_gb

from volseg.inference.source_grid import SourceGridInferer

FEATURES = 16  # as many as the shipped network has in front of its head


class Classes(torch.nn.Module):
    """A 3x3x3 convolution to 16 features, and the head: a 1x1x1 convolution to `classes` logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv3d(1, FEATURES, 3, padding=1)
        self.out = torch.nn.Conv3d(FEATURES, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.convolution(x))


def main() -> None:
    block, value = sys.argv[1], int(sys.argv[2])
    tiles, classes = (value, 2) if block == "volume" else (1, value)
    torch.manual_seed(0)
    image = torch.randn(1, 96 * tiles, 128, 128)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    tensor = MetaTensor(image, affine=torch.from_numpy(affine))
    tensor.meta["original_affine"], tensor.meta["spatial_shape"] = affine, np.array(image.shape[1:])
    inferer = SourceGridInferer(64, 1, 0.5, sums="float16", head="out" if block == "classes" else None)
    before = peak_gb()
    start = time.perf_counter()
    with torch.inference_mode():
        labels = inferer(tensor[None], Classes(classes))
    seconds = time.perf_counter() - start
    assert labels.shape[2:] == image.shape[1:]
    peak = peak_gb()
    print(json.dumps({"seconds": seconds, "peak_gb": peak, "engine_gb": peak - before}))


if __name__ == "__main__":
    main()
