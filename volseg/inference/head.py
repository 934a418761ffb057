"""The network's last 1x1x1 convolution, taken off while windows are blended and put to the blended features afterwards.

Blending is linear and so is a 1x1x1 convolution: head(sum of w_i f_i / sum of w_i) is the blend of head(f_i), exactly.
So the sums can hold the few features in front of the head instead of the logits of all classes, and the head works
once per voxel instead of once per window and voxel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Head:
    """weight (K, F) and bias (K,) of a 1x1x1 convolution from F features to K classes."""

    weight: Tensor
    bias: Tensor | None

    @property
    def classes(self) -> int:
        return int(self.weight.shape[0])

    def __call__(self, features: Tensor, start: int, stop: int) -> Tensor:
        """Features (F, X, Y, Z) -> logits of classes start..stop (stop - start, X, Y, Z), float32."""
        weight = self.weight[start:stop].to(features.device)
        flat = features.flatten(1)
        if self.bias is None:
            logits = weight @ flat
        else:
            logits = torch.addmm(self.bias[start:stop, None].to(features.device), weight, flat)
        return logits.unflatten(1, features.shape[1:])


@contextmanager
def without_head(network: Callable[..., Any], name: str) -> Iterator[tuple[Callable[..., Any], Head]]:
    """Inside, `network` is changed: it ends before its submodule `name`. Yields (network, the head that was there).

    `name` is the path of the submodule ("out" of SegMamba, "out.conv.conv" of MONAI's UNETRs): a 1x1x1 Conv3d, or a
    wrapper around nothing else. The network given back raises ValueError where something follows the head.

    Raises:
        ValueError: no module, no such submodule, or one that is not a plain 1x1x1 convolution.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"the head {name!r} can only be taken off an nn.Module, not a {type(network).__name__}")
    modules = dict(network.named_modules())
    if not name or name not in modules:
        ends = [n for n, m in modules.items() if isinstance(m, nn.Conv3d)][-1:]
        raise ValueError(f"{type(network).__name__} has no submodule {name!r}; its last convolution is {ends}")
    taken = modules[name]
    working = [m for m in taken.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    if len(working) != 1 or not _is_pointwise(working[0]):
        raise ValueError(f"the head {name!r} has to be one 1x1x1 convolution, not {taken}")
    convolution = working[0]
    bias = convolution.bias
    head = Head(convolution.weight.detach().float().flatten(1), None if bias is None else bias.detach().float())
    parent, _, last = name.rpartition(".")
    through = _Through()

    def headless(*args: Any, **kwargs: Any) -> Tensor:
        through.seen.last = None
        features = network(*args, **kwargs)
        if features is not through.seen.last:
            raise ValueError(f"{name!r} is not the last step of {type(network).__name__}; leave `head` out")
        return features

    owner = modules[parent]
    setattr(owner, last, through)
    try:
        yield headless, head
    finally:
        setattr(owner, last, taken)


def _is_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv3d)
        and set(module.kernel_size) == set(module.stride) == {1}
        and module.padding in ("valid", (0, 0, 0))
        and module.groups == 1
    )


class _Through(nn.Module):
    """Identity that remembers, for each thread, what went through it last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.local()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.last = x
        return x
