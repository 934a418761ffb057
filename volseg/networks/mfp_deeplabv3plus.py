"""MFP-DeepLabv3+ (Gu et al., Traitement du Signal 41(2) 771-780, 2024, doi 10.18280/ts.410218). 2D, logits out.

DeepLabv3+ over MobileNetV2, changed in four places, each a switch of the constructor: the atrous branches filter and
reconstruct their features (FSM, FRM; the SRU and CRU of SCConv), a pyramid of poolings takes the place of the global
one (SPPM; the three together are AFPP), attention follows (PSCAN), three more skips join the decoder, and DySample
enlarges. `STEPS` names the paper's ablation. Parameters with 3 input and 2 output channels, stated / ours:

    DeepLabv3+     5,813,266 / the same
    FSM + FRM      4,553,554 / the same
    AFPP           4,882,258 / the same
    AFPP + PSCAN   5,325,000 / the same (the three further skips are counted with PSCAN)
    full           5,633,832 / 5,370,440 (5,415,496 with "dysample+")

The last row and the paper's table of upsamplings cannot be reproduced: that table gives "nearest" 5,817,224 parameters,
183,392 more than DySample, although nearest has no weights, and no placement of DySample that we tried gives the stated
sum. Ours enlarges by DySample what comes at a sixteenth of the size: the attended features and the skips 7 and 14.

Silent in the paper, chosen here: SPPM's pools (5, 9, 13), 16 groups in FSM's norm (as SCConv), ReLU between PSCAN's
two full connections, kernel = stride in "deconv", bilinear for the logits. The text cuts FSM's gate hard, which leaves
its norm without a gradient; by default the sigmoid stays below the threshold, as in SCConv (`hard_gate` cuts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.networks.mobilenetv2 import CHANNELS, MobileNetV2
from volseg.networks.sizes import check_size
from volseg.networks.upsampling import Upsampling, upsampling

STRIDE = 16  # of the deepest features
DILATIONS = (6, 12, 18)
LOW_LEVEL, MORE_SKIPS = 3, (2, 7, 14)  # indices of MobileNetV2's features
SIXTEENTH = 7  # features from this index on are a sixteenth of the size, 2 and 3 a quarter
WIDTH, SKIP_WIDTH = 256, 48

_PLAIN = {"fsm": False, "frm": False, "sppm": False, "pscan": False, "multi_skips": False, "upsample": "bilinear"}
# The paper's ablation, row by row: what to hand to the constructor.
STEPS: dict[str, dict[str, Any]] = {
    "DeepLabv3+": _PLAIN,
    "FSM + FRM": {**_PLAIN, "fsm": True, "frm": True},
    "AFPP": {**_PLAIN, "fsm": True, "frm": True, "sppm": True},
    "AFPP + PSCAN": {"upsample": "bilinear"},
    "full": {},
}


class ConvNormReLU(nn.Sequential):
    """Convolution with bias, batch norm, ReLU, at unchanged size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class FeatureScreening(nn.Module):
    """FSM: features that carry much keep their place, the others cross over to the other half. (B, C, X, Y) -> same.

    The weight of a pixel in a channel is sigmoid(share of the channel's gamma * GroupNorm(x)). From the threshold on it
    carries much and counts fully; below it goes with its weight, or with nothing if `hard`.
    """

    def __init__(self, channels: int, *, groups: int = 16, threshold: float = 0.5, hard: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.threshold, self.hard = threshold, hard

    def forward(self, x: Tensor) -> Tensor:
        share = self.norm.weight / self.norm.weight.sum()
        weight = torch.sigmoid(share[:, None, None] * self.norm(x))
        much = weight >= self.threshold
        if self.hard:
            up, low = x * much, x * ~much
        else:
            up, low = x * weight.masked_fill(much, 1.0), x * weight.masked_fill(much, 0.0)
        (up1, up2), (low1, low2) = up.chunk(2, dim=1), low.chunk(2, dim=1)
        return torch.cat([up1 + low2, up2 + low1], dim=1)


class FeatureReconstruction(nn.Module):
    """FRM: one half of the channels is convolved richly, the other cheaply, and their means decide how they mix.

    (B, C, X, Y) -> same; `dilation` of the 3x3 convolution. The two rich paths are summed: a concatenation, as the
    text has it, does not fit the paper's own number of parameters.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.squeeze_up, self.squeeze_low = (nn.Conv2d(half, quarter, 1, bias=False) for _ in range(2))
        self.rich = nn.Conv2d(quarter, channels, 3, padding=dilation, dilation=dilation)
        self.rich_point = nn.Conv2d(quarter, channels, 1, bias=False)
        self.cheap = nn.Conv2d(quarter, channels - quarter, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        up, low = x.chunk(2, dim=1)
        up, low = self.squeeze_up(up), self.squeeze_low(low)
        both = torch.stack([self.rich(up) + self.rich_point(up), torch.cat([self.cheap(low), low], dim=1)])
        return (both.mean((3, 4), keepdim=True).softmax(0) * both).sum(0)


class PoolingPyramid(nn.Module):
    """SPPM: maxima over three neighbourhoods beside the features themselves. (B, C, X, Y) -> (B, width, X, Y)."""

    def __init__(self, in_channels: int, width: int, pools: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        self.reduce = ConvNormReLU(in_channels, width)
        self.residual = ConvNormReLU(width, width)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, stride=1, padding=k // 2) for k in pools)
        self.fuse = nn.Conv2d(width * (1 + len(pools)), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        return self.fuse(torch.cat([self.residual(y), *(pool(y) for pool in self.pools)], dim=1))


class GlobalPooling(nn.Module):
    """DeepLab's image-level features: one mean per channel, spread over the map. (B, C, X, Y) -> (B, width, X, Y)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.reduce = ConvNormReLU(in_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])


class AtrousPyramid(nn.Module):
    """ASPP with everything off, AFPP with everything on: five views of one map, side by side, then 1x1.

    (B, in_channels, X, Y) -> (B, WIDTH, X, Y).
    """

    def __init__(
        self, in_channels: int, *, fsm: bool, frm: bool, sppm: bool, hard_gate: bool, pools: Sequence[int]
    ) -> None:
        super().__init__()
        self.point = ConvNormReLU(in_channels, WIDTH)
        branches = []
        for dilation in DILATIONS:
            screen = [FeatureScreening(in_channels, hard=hard_gate)] if fsm else []
            see = FeatureReconstruction(in_channels, dilation) if frm else ConvNormReLU(in_channels, WIDTH, 3, dilation)
            branches.append(nn.Sequential(*screen, see))
        self.branches = nn.ModuleList(branches)
        self.pooled = PoolingPyramid(in_channels, WIDTH, pools) if sppm else GlobalPooling(in_channels, WIDTH)
        wide = len(DILATIONS) * (in_channels if frm else WIDTH)
        self.fuse = ConvNormReLU(2 * WIDTH + wide, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.point(x), *(branch(x) for branch in self.branches), self.pooled(x)], dim=1))


class PSCAN(nn.Module):
    """Parallel spatial and channel attention: the mean of x times where and x times which. (B, C, X, Y) -> same.

    Mean plus population standard deviation summarise a channel (the paper's eq. 3, eps inside the root).
    """

    def __init__(self, channels: int, *, reduction: int = 4, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.query, self.value = (nn.Conv2d(channels, channels // 2, 1, bias=False) for _ in range(2))
        self.excite = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, channels)
        )
        self.neighbours = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.BatchNorm1d(1))

    def forward(self, x: Tensor) -> Tensor:
        q = self._summary(self.query(x)).softmax(1)
        where = torch.sigmoid(torch.einsum("bc,bcxy->bxy", q, self.value(x)))[:, None]
        which = torch.sigmoid(self.neighbours(self.excite(self._summary(x))[:, None])).squeeze(1)[:, :, None, None]
        return (x * where + x * which) / 2

    def _summary(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + (x.var((2, 3), correction=0) + self.eps).sqrt()


class MFPDeepLabV3Plus(nn.Module):
    """(B, in_channels, X, Y) -> logits (B, out_channels, X, Y). X and Y are multiples of 16.

    Args:
        in_channels: 3 in the paper; 1 for a grey slice.
        fsm, frm, sppm: parts of AFPP. Without FRM a branch is DeepLab's 3x3 convolution, without SPPM the global mean.
        pscan: attention on what AFPP gives.
        multi_skips: MobileNetV2's features 2, 7 and 14 join the decoder beside 3.
        upsample: how features at a sixteenth of the size come to a quarter; one of `volseg.networks.upsampling`.
        hard_gate: FSM's gate as the text has it, 1 or 0.
        pools: odd kernel sizes of SPPM.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 2,
        *,
        fsm: bool = True,
        frm: bool = True,
        sppm: bool = True,
        pscan: bool = True,
        multi_skips: bool = True,
        upsample: Upsampling = "dysample",
        hard_gate: bool = False,
        pools: Sequence[int] = (5, 9, 13),
    ) -> None:
        super().__init__()
        self.global_pooling = not sppm
        self.backbone = MobileNetV2(in_channels)
        self.pyramid = AtrousPyramid(CHANNELS[-1], fsm=fsm, frm=frm, sppm=sppm, hard_gate=hard_gate, pools=pools)
        self.attention = PSCAN(WIDTH) if pscan else nn.Identity()
        self.enlarge = upsampling(upsample, WIDTH, 4)
        self.taken = (LOW_LEVEL, *MORE_SKIPS) if multi_skips else (LOW_LEVEL,)
        self.skips = nn.ModuleList(
            nn.Sequential(
                ConvNormReLU(CHANNELS[i], SKIP_WIDTH),
                upsampling(upsample, SKIP_WIDTH, 4) if i >= SIXTEENTH else nn.Identity(),
            )
            for i in self.taken
        )
        self.decode = nn.Sequential(
            ConvNormReLU(WIDTH + SKIP_WIDTH * len(self.taken), WIDTH, 3),
            nn.Dropout(0.5),
            ConvNormReLU(WIDTH, WIDTH, 3),
            nn.Dropout(0.1),
        )
        self.out = nn.Conv2d(WIDTH, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_size("MFPDeepLabV3Plus", x, (STRIDE, STRIDE))
        single = self.global_pooling or tuple(x.shape[2:]) == (STRIDE, STRIDE)
        if self.training and x.shape[0] == 1 and single:
            raise ValueError(
                f"MFPDeepLabV3Plus takes batch norm over one pixel per image, of 1 image of {tuple(x.shape[2:])} here; "
                f"train with batches of 2 or more (drop_last=True)"
            )
        maps = self.backbone(x)
        deep = self.enlarge(self.attention(self.pyramid(maps[-1])))
        skips = [skip(maps[i]) for skip, i in zip(self.skips, self.taken, strict=True)]
        y = self.out(self.decode(torch.cat([deep, *skips], dim=1)))
        return F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=False)
