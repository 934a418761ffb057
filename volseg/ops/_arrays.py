"""Torch tensors as the token kernels take them: rows of float32, float64 or the bits of bfloat16, shared by channel."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from volseg.ops.cpu_tasks import even_ranges


def in_rows(t: Tensor) -> Tensor:
    """(batch, ...) with every batch item contiguous; half of the channels of a larger tensor already is."""
    return t if t[0].is_contiguous() else t.contiguous()


def array(t: Tensor) -> np.ndarray:
    """The tensor's own memory; bfloat16 as int16, see `_bfloat16.py`."""
    t = t.detach()
    return (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()


def computed_in(*given: Tensor) -> torch.dtype:
    """float64 where any of them is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32


def readable(t: Tensor, dtype: torch.dtype) -> Tensor:
    """As kernels that compute in `dtype` read it: bfloat16 stays beside float32, everything else is cast."""
    return t if t.dtype == torch.bfloat16 and dtype == torch.float32 else t.to(dtype)


def channel_tasks(batch: int, channels: int) -> list[tuple[int, int, int]]:
    """(batch item, first channel, last channel), as many as the threads can share evenly."""
    groups = -(-torch.get_num_threads() // batch)
    return [(b, *channels_) for b in range(batch) for channels_ in even_ranges(channels, groups)]
