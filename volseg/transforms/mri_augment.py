"""Training MRI -> the same anatomy as other scanners would show it: every channel's scale, curve, noise and blur vary.

A missing channel is zeros and must stay zeros (`volseg.networks.any_channels`), so MONAI's own noise will not do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from scipy import ndimage


@dataclass(frozen=True)
class SequenceVariation:
    """How far a channel may go, in deviations of its z-score. `curve`: exponent range of a signed power about 0;
    `blur`: of the slices, in pixels; `noise`: deviation; `shading`: slope from one edge to the other."""

    scale: float = 0.25
    shift: float = 0.25
    curve: float = 0.25
    noise: float = 0.25
    blur: float = 0.8
    shading: float = 0.25


class RandSequenceIntensityd(RandomizableTransform, MapTransform):
    """Vary every channel of (C, X, Y, Z) that is there, each by itself; zeros stay zeros. float32.

    Args:
        prob: that an image is varied at all.
        variation: how far.
    """

    def __init__(
        self, keys: KeysCollection = "image", *, prob: float = 0.8, variation: SequenceVariation | None = None
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.variation = variation or SequenceVariation()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        for key in self.key_iterator(d):
            image = d[key]
            values = image.as_tensor() if isinstance(image, MetaTensor) else image
            varied = np.stack([self._varied(channel) for channel in values.to(torch.float32).cpu().numpy()])
            out = torch.from_numpy(varied)
            d[key] = MetaTensor(out, meta=dict(image.meta)) if isinstance(image, MetaTensor) else out
        return d

    def _varied(self, x: np.ndarray) -> np.ndarray:
        """One channel (X, Y, Z)."""
        v, draw = self.variation, self.R.uniform
        scale, shift, curve = draw(1 - v.scale, 1 + v.scale), draw(-v.shift, v.shift), draw(1 - v.curve, 1 + v.curve)
        noise, blur, slopes = draw(0, v.noise), draw(0, v.blur), draw(-v.shading, v.shading, 3)
        grain = self.R.standard_normal(x.shape)  # drawn for missing channels too: the stream does not depend on them
        there = x != 0
        if not there.any():
            return x
        y = np.sign(x) * np.abs(x) ** curve
        if blur > 0.3:
            y = ndimage.gaussian_filter(y, (0.0, blur, blur))
        steps = np.meshgrid(*[np.linspace(-0.5, 0.5, n) for n in x.shape], indexing="ij", sparse=True)
        y = y * (scale + sum(s * g for s, g in zip(slopes, steps, strict=True))) + shift + noise * grain
        return (y * there).astype(np.float32)
