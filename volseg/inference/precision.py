"""bf16 where it pays, with MONAI's engines too: their `amp` switch knows CUDA only."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import Tensor


class AutocastInferer(SimpleInferer):
    """A SimpleInferer that runs the network under autocast on any device and hands back float32 logits.

    For training and validation on CPUs with bf16 instructions; `precision="float32"` switches it off. What is no
    tensor (a detector's dict of losses) comes back as it is.
    """

    def __init__(self, precision: str = "bfloat16") -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', not {precision!r}")
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A MetaTensor would drag its bookkeeping through every operation of the network.
        inputs = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = network(inputs, *args, **kwargs)
        return output.float() if isinstance(output, Tensor) else output


def best_precision(device: str | None = None) -> str:
    """'bfloat16' on a CUDA device that has it and on CPUs with AVX-512 BF16 or AMX; 'float32' elsewhere.

    On a CPU without such instructions bf16 is emulated and slower than float32.
    """
    if (device or "").startswith("cuda") or (device is None and torch.cuda.is_available()):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and flags.is_file():
        text = flags.read_text(errors="replace")
        return "bfloat16" if "avx512_bf16" in text or "amx_bf16" in text else "float32"
    return "float32"
