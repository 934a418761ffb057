"""Several bundles, one answer: of every voxel, the mean of what they say of it.

Networks that differ in kind (a whole volume or slice by slice, another grid, another window) mistake different anatomy
for lesions, and what they agree on is more often one. The maps are averaged as logits, each held to 1e-4..1 - 1e-4, so
that no network overrules the others by being boundless. Source: averaging of unlike networks' outputs is old
(Perrone and Cooper, 1993); MONAI's MeanEnsemble does it for networks that share one preprocessing, these do not.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from volseg.inference.bundle import PROGRESS, LoadedBundle, find_bundle, load_bundle
from volseg.inference.segment import AVERAGED_WITH, lesion_map
from volseg.inference.sliding_window import BESIDE
from volseg.labels import LESION
from volseg.ops.log_odds import MOST, bounded_logit
from volseg.transforms.resample import resample_to_grid


class OtherBundles(MapTransform):
    """What the transforms below share: shipped bundles that outline lesions in the same kind of image.

    Args:
        keys: a MetaTensor (C, X, Y, Z) on whose grid the others' maps are wanted.
        bundles: their names. Loaded at the first call.
        source_key: the image as it was read (1, X, Y, Z), from which each makes its own input; it is taken out.
        device: where they run.
        progress: their bars; None shows them only on a terminal.
        all_windows: they too search where no bone is.

    Under `AVERAGED_WITH` a line is added that names the bundles, their versions and weights.
    """

    said: str

    def __init__(
        self,
        keys: KeysCollection,
        *,
        bundles: Sequence[str],
        source_key: str = "source",
        device: torch.device | str = "cpu",
        progress: bool | None = False,
        all_windows: bool = False,
    ) -> None:
        super().__init__(keys)
        self.names, self.source_key, self.device = tuple(bundles), source_key, str(device)
        self.overrides = {PROGRESS: progress, "all_windows": all_windows}

    @cached_property
    def loaded(self) -> list[LoadedBundle]:
        """The bundles, in the order of their names."""
        return [load_bundle(find_bundle(name), device=self.device, overrides=self.overrides) for name in self.names]

    def maps(self, d: dict[Hashable, Any], grid: MetaTensor) -> Tensor:
        """Probabilities of a lesion on `grid`, (N, X, Y, Z) float32, one per bundle."""
        source = d.pop(self.source_key)
        affine, shape = grid.affine.cpu().numpy(), grid.shape[1:]
        named = [f"{one.files.name} {one.files.version} (weights {one.weights_sha256[:12]})" for one in self.loaded]
        d[AVERAGED_WITH] = self.said.format(" and ".join(named))
        found = [lesion_map({"image": MetaTensor(source.clone(), meta=dict(source.meta))}, one) for one in self.loaded]
        return torch.cat([resample_to_grid(one, affine=affine, shape=shape).as_tensor() for one in found]).float()


class AverageWithBundlesd(OtherBundles):
    """Logits of a network on the working grid -> those of the mean of its lesion map and other bundles'.

    Comes first in a bundle's postprocessing; the rest of it, and its thresholds, judge the mean.

    keys: logits (2, X, Y, Z) of background and lesion, a MetaTensor with the grid's affine. So is what comes out.
    """

    said = "the lesion map is the mean with that of {}"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            own = d[key]
            others = bounded_logit(self.maps(d, own)).to(own.device)
            mean = torch.cat([bounded_difference(own)[None], others]).mean(dim=0)
            d[key] = MetaTensor(torch.stack([torch.zeros_like(mean), mean]), meta=dict(own.meta))
        return d


class LesionMapsBesided(OtherBundles):
    """Adds `BESIDE`: other bundles' lesion maps on the grid of an image, (N, X, Y, Z), for a detector to heed.

    Comes last in a detector's preprocessing; its inferer gets the maps as `beside`, and their mean takes the place of
    the detector's own map (`volseg.detection.MaskRCNN3D.predict`).
    """

    said = "lesions were sought in the lesion map of {}"

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[BESIDE] = MetaTensor(self.maps(d, d[key]), meta=dict(d[key].meta))
        return d


def other_weights(bundle: LoadedBundle) -> dict[str, str]:
    """The other bundles that have a say in a bundle's answer, by name with the sha256 of their weights; {}: none."""
    steps = (*bundle.preprocessing.transforms, *bundle.postprocessing.transforms)
    heeding = [step for step in steps if isinstance(step, OtherBundles)]
    return {name: one.weights_sha256 for step in heeding for name, one in zip(step.names, step.loaded, strict=True)}


def bounded_difference(logits: Tensor) -> Tensor:
    """Logits of background and lesion (2, X, Y, Z) -> the lesion's log odds (X, Y, Z), as far as `MOST`."""
    plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
    return (plain[LESION].float() - plain[1 - LESION].float()).clamp(-MOST, MOST)
