"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752): one function, five backends, one choice between them.

h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = <C_t, h_t> + D u_t        out = y * silu(z)
"""

from __future__ import annotations

import functools
import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.ops import _scan_torch
from volseg.ops.installed import installed as _installed

Backend = Literal["auto", "mamba_ssm", "numba", "triton", "torch", "reference"]
BACKENDS = ("mamba_ssm", "numba", "triton", "torch", "reference")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Run a diagonal state space model with input-dependent steps over L tokens. Returns (B, D, L) in the type of `u`.

    Shapes as in mamba-ssm's `selective_scan_fn`: u, delta, z (B, D, L); A (D, N), negative where states decay; B, C
    (B, N, L); D, delta_bias (D,). States are float32, or float64 where any input is; bfloat16 and half are raised.

    backend: "numba" (compiled, CPU tensors), "triton" (compiled, CUDA tensors), "torch" (chunked, any device),
    "mamba_ssm" (CUDA tensors, needs the package), "reference" (one step at a time). "auto" takes numba on the CPU, on
    CUDA mamba_ssm where importable or else triton where it runs, and torch where there is none of these.

    Raises ValueError for shapes that do not fit or a backend that cannot take these tensors, ImportError for a missing
    package.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    chosen = _choose(u.device.type) if backend == "auto" else backend
    if torch.jit.is_tracing():
        chosen = "torch"  # a trace (TorchScript, ONNX) can hold tensor operations only
    given = [t for t in (u, delta, A, B, C, D, delta_bias) if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    if chosen == "mamba_ssm":
        return _mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if chosen == "triton":  # reads short floats as they are, and writes them where no gate follows
        y = _triton(u, delta, A, B, C, D, delta_bias, delta_softplus, u.dtype if z is None else dtype)
    else:
        u_, delta_, A_, B_, C_ = (t.to(dtype) for t in (u, delta, A, B, C))
        D_ = A_.new_zeros(A.shape[0]) if D is None else D.to(dtype)
        bias = A_.new_zeros(A.shape[0]) if delta_bias is None else delta_bias.to(dtype)
        y = _function(chosen, u)(u_, delta_, A_, B_, C_, D_, bias, delta_softplus)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)


def _function(backend: str, u: Tensor):
    """The backend's (u, delta, A, B, C, D, bias, softplus) -> y, all tensors of one dtype."""
    if backend == "torch":
        return _scan_torch.chunked
    if backend == "reference":
        return _scan_torch.reference
    if backend == "numba":
        if u.device.type != "cpu":
            raise ValueError(f'backend "numba" takes CPU tensors, these are on {u.device}; use "torch" or "auto"')
        if not _installed("numba"):
            raise ImportError('backend "numba" needs numba, which cannot be imported here; use "torch" or "auto"')
        from volseg.ops._scan_cpu import selective_scan_numba

        return selective_scan_numba
    raise ValueError(f'unknown backend "{backend}"; choose "auto" or one of {", ".join(BACKENDS)}')


def _triton(u, delta, A, B, C, D, delta_bias, delta_softplus, y_dtype) -> Tensor:
    if not _installed("triton"):
        raise ImportError(
            'backend "triton" needs triton, which cannot be imported here (it comes with torch for CUDA on Linux); '
            'use "torch" or "auto"'
        )
    from volseg.ops._scan_triton import selective_scan_triton

    return selective_scan_triton(u, delta, A, B, C, D, delta_bias, delta_softplus, y_dtype)


def _mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> Tensor:
    if u.device.type != "cuda":
        raise ValueError(
            f'backend "mamba_ssm" takes CUDA tensors, these are on {u.device}; use "numba", "torch" or "auto"'
        )
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise ImportError(
            'backend "mamba_ssm" needs mamba-ssm (pip install "volseg[cuda]"); "torch" runs anywhere'
        ) from error
    same = [t.to(u.dtype).contiguous() for t in (delta, B, C)]
    D, delta_bias = (t if t is None else t.float() for t in (D, delta_bias))
    z = z if z is None else z.to(u.dtype)
    return selective_scan_fn(u.contiguous(), same[0], A.float(), same[1], same[2], D, z, delta_bias, delta_softplus)


@functools.cache
def _triton_runs() -> bool:
    """Whether triton imports and reaches its driver, for which some versions compile C: no compiler, no Triton."""
    if not _installed("triton"):
        return False
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # RuntimeError, CalledProcessError, ...: each version has its own
        logging.getLogger(__name__).warning("Triton cannot run here, the scan takes the slower torch: %s", error)
        return False
    return True


def _choose(device: str) -> str:
    if device == "cpu" and _installed("numba"):
        return "numba"
    if device == "cuda" and _installed("mamba_ssm"):
        return "mamba_ssm"
    if device == "cuda" and _triton_runs():
        return "triton"
    return "torch"


def _check(u, delta, A, B, C, D, z, delta_bias) -> None:
    if u.ndim != 3:
        raise ValueError(f"u must be (batch, channels, length), got shape {tuple(u.shape)}")
    if A.ndim != 2:
        raise ValueError(f"A must be (channels, states), got shape {tuple(A.shape)}")
    batch, channels, length = u.shape
    states = A.shape[1]
    if min(batch, channels, length, states) == 0:
        raise ValueError(f"nothing to scan: u has shape {tuple(u.shape)} and A {tuple(A.shape)}")
    expected = {
        "delta": (delta, (batch, channels, length)),
        "A": (A, (channels, states)),
        "B": (B, (batch, states, length)),
        "C": (C, (batch, states, length)),
        "D": (D, (channels,)),
        "z": (z, (batch, channels, length)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} beside u {tuple(u.shape)} and A {tuple(A.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}; move them to one device")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be real floating point, got {tensor.dtype}")
