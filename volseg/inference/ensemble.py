"""Several bundles, one answer: of every voxel, the mean of what they say of it.

Networks that differ in kind (a whole volume or slice by slice, another grid, another window) mistake different anatomy
for lesions, and what they agree on is more often one. The maps are averaged as logits, each held to 1e-4..1 - 1e-4, so
that no network overrules the others by being boundless. Source: averaging of unlike networks' outputs is old
(Perrone and Cooper, 1993); MONAI's MeanEnsemble does it for networks that share one preprocessing, these do not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from volseg.inference.bundle import PROGRESS, LoadedBundle, find_bundle, load_bundle
from volseg.inference.segment import AVERAGED_WITH, lesion_map
from volseg.labels import LESION
from volseg.transforms.resample import resample_to_grid

LEAST_PROBABILITY = 1e-4
MOST = math.log((1 - LEAST_PROBABILITY) / LEAST_PROBABILITY)


class AverageWithBundlesd(MapTransform):
    """Logits of a network on the working grid -> those of the mean of its lesion map and other bundles'.

    Comes first in a bundle's postprocessing; the rest of it, and its thresholds, judge the mean.

    Args:
        keys: logits (2, X, Y, Z) of background and lesion, a MetaTensor with the grid's affine. So is what comes out.
        bundles: names of shipped bundles that outline lesions in the same kind of image. Loaded at the first call.
        source_key: the image as it was read (1, X, Y, Z), from which each bundle makes its own input; it is taken out.
        device: where the other bundles run.
        progress: their bars; None shows them only on a terminal.

    Under `AVERAGED_WITH` a line is added that names the bundles, their versions and weights.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        bundles: Sequence[str],
        source_key: str = "source",
        device: torch.device | str = "cpu",
        progress: bool | None = False,
    ) -> None:
        super().__init__(keys)
        self.names, self.source_key, self.device, self.progress = tuple(bundles), source_key, str(device), progress
        self.loaded: list[LoadedBundle] = []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        source = d.pop(self.source_key)
        if not self.loaded:
            self.loaded = [
                load_bundle(find_bundle(name), device=self.device, overrides={PROGRESS: self.progress})
                for name in self.names
            ]
        maps = [lesion_map({"image": MetaTensor(source.clone(), meta=dict(source.meta))}, one) for one in self.loaded]
        for key in self.key_iterator(d):
            own = d[key]
            affine, shape = own.affine.cpu().numpy(), own.shape[1:]
            total = bounded_logit(own)
            for one in maps:
                there = resample_to_grid(one, affine=affine, shape=shape).as_tensor()[0]
                total = total + torch.logit(there.to(total), LEAST_PROBABILITY)
            mean = total / (1 + len(maps))
            d[key] = MetaTensor(torch.stack([torch.zeros_like(mean), mean]), meta=dict(own.meta))
        d[AVERAGED_WITH] = ", ".join(
            f"{one.files.name} {one.files.version} (weights {one.weights_sha256[:12]})" for one in self.loaded
        )
        return d


def bounded_logit(logits: Tensor) -> Tensor:
    """Logits of background and lesion (2, X, Y, Z) -> the lesion's log odds (X, Y, Z), as far as `MOST`."""
    plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
    return (plain[LESION].float() - plain[1 - LESION].float()).clamp(-MOST, MOST)
