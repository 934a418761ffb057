"""ConvNeXt V2 (Woo et al., arXiv 2301.00808) in 3D: an image in, its feature maps at four strides out.

What is ours: a third axis, 5x5x5 kernels in place of 7x7, and a stem of stride 2, for lesions are small. Channels come
last in memory, so that norm and linear layers read rows and the depthwise convolution is oneDNN's quick one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from volseg.ops.depthwise_conv3d import depthwise_conv3d
from volseg.ops.gelu_squares import gelu_squares

EPS = 1e-6

# name: (blocks of the four stages, their channels)
SIZES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int, int]]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
}


class GRN(nn.Module):
    """Global response normalisation, ConvNeXt V2 algorithm 1. (B, X, Y, Z, C) -> same.

    G = L2 norm of a channel over the map, N = G / mean of G over channels, out = gamma (x N) + beta + x. G and N are
    float32, whatever x is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        gain = self.gain(x.to(dtype).square().sum((1, 2, 3)))
        return x * gain[:, None, None, None].to(x.dtype) + self.beta.to(x.dtype)

    def gain(self, squares: Tensor) -> Tensor:
        """What x is multiplied with, 1 + gamma N (B, C), from the sums of squares over the map (B, C)."""
        norm = (squares + torch.finfo(squares.dtype).tiny).sqrt()  # a channel of zeros has a slope, too
        return 1 + self.gamma * (norm / (norm.mean(1, keepdim=True) + EPS))


class Block(nn.Module):
    """ConvNeXt V2 block, fig. 5: x + fc2(GRN(GELU(fc1(LN(depthwise(x)))))). (B, C, X, Y, Z) -> same.

    GRN multiplies channels and adds to them, and so does what follows: its gain goes into the columns of fc2's weight
    (one matrix per image), its beta through fc2 into the bias, and no pass over the widest maps is spent on it.
    """

    def __init__(self, channels: int, kernel_size: int = 5, drop_path: float = 0.0) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.grn = GRN(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = _channels_last(depthwise_conv3d(x, self.depthwise.weight, self.depthwise.bias))
        y, squares = gelu_squares(self.fc1(self.norm(y)).flatten(1, 3))
        weight = (self.fc2.weight * self.grn.gain(squares)[:, None]).mT
        y = torch.baddbmm((self.fc2.bias + self.fc2.weight @ self.grn.beta).to(y.dtype), y, weight.to(y.dtype))
        return x + self.drop_path(_channels_first(y.unflatten(1, x.shape[2:])))


class Patches(nn.Conv3d):
    """Convolution whose stride is its kernel: (B, X, Y, Z, C) -> (B, ceil(X / sx), ..., out_channels).

    Where a stride does not divide an axis, its last voxel is repeated. One matrix product; no bfloat16 convolution, of
    which oneDNN's gradients are sometimes wrong (see `segmamba.py`).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        for axis, stride in enumerate(self.stride, start=1):
            if missing := -x.shape[axis] % stride:
                last = x.narrow(axis, x.shape[axis] - 1, 1)
                x = torch.cat([x, *[last] * missing], dim=axis)
        for axis, stride in zip((1, 3, 5), self.stride, strict=True):
            x = x.unflatten(axis, (-1, stride))
        patches = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class ConvNeXtV2(nn.Module):
    """The encoder: (B, in_channels, X, Y, Z) -> C1, C2, C3, C4, each (B, dims[i], ceil(X / stride), ...).

    C1 has the stem's stride, every further one twice the one before: `strides`. Voxel j of a map covers the image
    voxels from j stride on. An axis may have any length; where a stride does not divide it, its last voxel is repeated.
    Every map leaves through a layer norm of its own.

    Args:
        depths, dims: blocks and channels of the four stages.
        kernel_size: of the depthwise convolutions, odd.
        stem_stride: one number, or one for each axis (thick slices: (2, 2, 1)).
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        in_channels: int = 1,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (48, 96, 192, 384),
        kernel_size: int = 5,
        stem_stride: int | Sequence[int] = 2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check(depths, dims, kernel_size, drop_path_rate)
        stem = _three(stem_stride)
        self.dims = tuple(dims)
        self.strides = tuple((stem[0] * 2**i, stem[1] * 2**i, stem[2] * 2**i) for i in range(4))
        self.stem = nn.Sequential(Patches(in_channels, dims[0], stem), nn.LayerNorm(dims[0], eps=EPS))
        self.downsamples = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dims[i], eps=EPS), Patches(dims[i], dims[i + 1], (2, 2, 2))) for i in range(3)
        )
        rates = iter(drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(c, kernel_size, next(rates)) for _ in range(d)))
            for d, c in zip(depths, dims, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=EPS) for c in dims)
        self.apply(_initialise)

    @classmethod
    def of_size(cls, name: str, **options: Any) -> ConvNeXtV2:
        """ "atto", "femto", "pico", "nano" or "tiny", with the class's other arguments."""
        if name not in SIZES:
            raise ValueError(f'no ConvNeXt V2 is called "{name}"; choose one of {", ".join(SIZES)}')
        depths, dims = SIZES[name]
        return cls(depths=depths, dims=dims, **options)

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.ndim != 5 or x.numel() == 0:
            raise ValueError(f"ConvNeXtV2 takes (batch, channels, X, Y, Z) with voxels, got shape {tuple(x.shape)}")
        features = []
        for down, stage, norm in zip((self.stem, *self.downsamples), self.stages, self.norms, strict=True):
            x = stage(_channels_first(down(_channels_last(x))))
            features.append(_channels_first(norm(_channels_last(x))))
        return features


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) -> (B, X, Y, Z, C), a view."""
    return x.movedim(1, -1)


def _channels_first(x: Tensor) -> Tensor:
    """(B, X, Y, Z, C) -> (B, C, X, Y, Z), a view that torch calls channels_last_3d."""
    return x.movedim(-1, 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv3d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _three(stride: int | Sequence[int]) -> tuple[int, int, int]:
    values = tuple(stride) if isinstance(stride, Sequence) else (stride,) * 3
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"stem_stride must be one or three numbers of at least 1, got {values}")
    return values[0], values[1], values[2]


def _check(depths, dims, kernel_size, drop_path_rate) -> None:
    for name, values in (("depths", depths), ("dims", dims)):
        if len(values) != 4 or min(values) < 1:
            raise ValueError(f"{name} must name four stages of at least 1, got {tuple(values)}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd (3, 5, 7), got {kernel_size}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"drop_path_rate must be at least 0 and below 1, got {drop_path_rate}")
