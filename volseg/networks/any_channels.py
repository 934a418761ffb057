"""Input channels of which any may be missing (T1, T1c, T2, STIR of a study). Tensors in, tensors out.

The convention, the same for every network of a bundle: (B, C, X, Y, Z) with one channel per name, in the order of the
names; a missing one is zeros throughout. So whatever surrounds the image must be zero too (`pad_value` of the sliding
window), and no channel that is there may be zero all over. Networks read from the window itself which channels are
there and get that as further channels of ones and zeros, the presence planes: zeros could otherwise as well be tissue
of mean intensity. In a window of nothing but zeros all channels count as missing. In training whole channels are
dropped, so that absence is nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from volseg.labels import MRI_CHANNELS


def presence(x: Tensor) -> Tensor:
    """(B, C, *axes) -> (B, C) bool: which channels hold anything but zeros."""
    return (x != 0).flatten(2).any(2)


def presence_planes(x: Tensor) -> Tensor:
    """(B, C, *axes) -> same: ones in a channel that is there, zeros in one that is missing."""
    return presence(x).to(x.dtype).view(*x.shape[:2], *(1,) * (x.ndim - 2)).expand_as(x)


def checked_channels(names: Sequence[str]) -> tuple[str, ...]:
    """The names, or ValueError: a subset of `MRI_CHANNELS`, none twice, at least one."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(MRI_CHANNELS):
        raise ValueError(f"channels must be some of {', '.join(MRI_CHANNELS)}, each once; got {list(names)}")
    return tuple(names)


def check_channels(network: str, x: Tensor, names: Sequence[str]) -> None:
    """Raise ValueError unless `x` (B, C, ...) has a channel for each name."""
    if x.ndim < 2 or x.shape[1] != len(names):
        raise ValueError(
            f"{network} takes one channel for each of {', '.join(names)} ({len(names)}, zeros where one is missing), "
            f"got shape {tuple(x.shape)}"
        )


class ChannelDropout(nn.Module):
    """In training, each channel of each sample becomes zeros with probability `p`; one that is there always stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the probability of dropping a channel must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        luck = torch.rand(x.shape[:2], device=x.device)
        luckiest = luck.masked_fill(~presence(x), -1).argmax(1, keepdim=True)
        keep = (luck >= self.p).scatter(1, luckiest, True)
        return x * keep.to(x.dtype).view(*x.shape[:2], *(1,) * (x.ndim - 2))


class AnyChannels(nn.Module):
    """Any network, made to work with channels missing: (B, C, X, Y, Z) -> what `network` says to 2 C channels.

    With it SegMamba stands in a bundle where SpineUNet stands: `{"_target_": "volseg.networks.AnyChannels", "network":
    {"_target_": "volseg.networks.SegMamba", "in_channels": 8, ...}, "channels": ["T1", "T1c", "T2", "STIR"]}`.

    Args:
        network: takes 2 * len(channels) channels, the image's and then their presence planes.
        channels: names, some of `volseg.labels.MRI_CHANNELS`.
        channel_dropout: probability that a channel is dropped in training.
    """

    def __init__(self, network: nn.Module, channels: Sequence[str], *, channel_dropout: float = 0.25) -> None:
        super().__init__()
        self.network, self.channels = network, checked_channels(channels)
        self.drop = ChannelDropout(channel_dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_channels("AnyChannels", x, self.channels)
        x = self.drop(x)
        return self.network(torch.cat([x, presence_planes(x)], dim=1))
