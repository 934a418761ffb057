"""The Triton scan says what the step-by-step twin says: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and triton then stays like that; so this
file, run as a script in a process of its own, computes all CASES into one file, and the tests read it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import volseg.ops.selective_scan  # noqa: F401  (the package exports the function under the module's name)
from volseg.ops import selective_scan

MODULE = sys.modules["volseg.ops.selective_scan"]
SMALL = {"CHANNELS": 2, "TIME": 16, "ROWS": 4, "COLUMNS": 8}  # several tiles of everything, in seconds
# Largest difference from the reference, relative to the largest value. Seen in the interpreter: 6e-7 and 1.4e-15.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}

# name: (arguments, delta_softplus, sizes of tiles)
CASES: dict[str, tuple[dict, bool, dict]] = {
    "all options, two batch items, 16 states": ({"batch": 2, "length": 33, "states": 16}, True, SMALL),
    "one token": ({"length": 1}, True, SMALL),
    "a tile not full": ({"length": 7, "states": 16}, True, SMALL),
    "tiles just full": ({"length": 32, "channels": 4}, True, SMALL),
    "float64": ({"batch": 2, "length": 33, "dtype": torch.float64}, True, SMALL),
    "seven chunks, a state that lasts": ({"length": 100, "decay": 1e-3, "dtype": torch.float64}, True, SMALL),
    "no gate": ({"length": 10, "gate": False}, True, SMALL),
    "no skip": ({"length": 10, "skip": False}, True, SMALL),
    "no bias": ({"length": 10, "bias": False}, True, SMALL),
    "no gate, no skip, no bias": ({"length": 10, "gate": False, "skip": False, "bias": False}, True, SMALL),
    "steps as given": ({"length": 20, "positive": True}, False, SMALL),
    "steps up to 400": ({"length": 40, "step": 200.0}, True, SMALL),
    "tiles as on a GPU": ({"length": 140, "states": 1}, True, {}),
}


def arguments(
    *, batch=1, channels=3, length=20, states=3, dtype=torch.float32, decay=1.0, step=1.0, positive=False,
    gate=True, skip=True, bias=True,
) -> dict[str, Tensor | None]:  # fmt: skip
    """Inputs like a network's: A near -1..-N times `decay`, steps around softplus(-2). With gradients."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    given = {
        "u": normal(batch, channels, length),
        "delta": 0.5 * step * normal(batch, channels, length),
        "A": decay * (-torch.arange(1.0, states + 1) - 0.1 * normal(channels, states)),
        "B": normal(batch, states, length),
        "C": normal(batch, states, length),
        "D": 1 + normal(channels) if skip else None,
        "z": normal(batch, channels, length) if gate else None,
        "delta_bias": normal(channels) - 2 if bias else None,
    }
    if positive:
        given |= {k: given[k].abs() for k in ("delta", "delta_bias") if given[k] is not None}
    return {k: None if v is None else v.to(dtype).requires_grad_() for k, v in given.items()}


def values_and_gradients(given: dict, softplus: bool, backend: str) -> list[Tensor]:
    """y, then the gradients of all tensors given, in their order."""
    y = selective_scan(**given, delta_softplus=softplus, backend=backend)
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64, device=y.device)).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [t for t in given.values() if t is not None])]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value; over 1 where everything is 0 (dA of a single step)."""
    return float((a - b).detach().abs().max() / (b.detach().abs().max() or 1))


def short(dtype: torch.dtype) -> dict[str, Tensor | None]:
    """As under autocast: activations short, parameters float32."""
    return {
        k: t.detach().to(torch.float32 if k in ("A", "D", "delta_bias") else dtype).requires_grad_()
        for k, t in arguments(length=33).items()
    }


def compute(out: Path) -> None:
    """Every case by the Triton kernels, into `out`."""
    import numpy as np
    from triton.runtime import interpreter

    from volseg.ops import _scan_triton

    def scan_whole_slices(self, given):
        """The interpreter combines one number at a time; the same combination, a slice at a time: 5 times as fast."""
        rows = [np.moveaxis(t.handle.data, self.axis, 0) for t in given]
        steps = [
            tuple(self.to_tensor(r[i], t.dtype) for r, t in zip(rows, given, strict=True)) for i in range(len(rows[0]))
        ]
        for i in range(1, len(steps)):
            steps[i] = self.combine_fn.fn(*steps[i - 1], *steps[i])
        stacked = (np.stack([s[k].handle.data for s in steps], axis=self.axis) for k in range(len(given)))
        return [self.to_tensor(data, t.dtype) for data, t in zip(stacked, given, strict=True)]

    interpreter.ScanOps.generic_scan = scan_whole_slices
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = {name: getattr(_scan_triton, name) for name in SMALL}

    def run(given: dict, softplus: bool, tiles: dict) -> list[Tensor]:
        for name, value in (usual | tiles).items():
            setattr(_scan_triton, name, value)
        there = {k: None if t is None else t.detach().to(device).requires_grad_() for k, t in given.items()}
        return [t.cpu() for t in values_and_gradients(there, softplus, "triton")]

    done = {name: run(arguments(**options), softplus, tiles) for name, (options, softplus, tiles) in CASES.items()}
    for dtype in (torch.bfloat16, torch.float16):
        done[str(dtype)] = run(short(dtype), True, SMALL)
        done[f"{dtype} without gate"] = run(short(dtype) | {"z": None}, True, SMALL)
    strided = {k: t.detach().transpose(-1, 0).contiguous().transpose(-1, 0) for k, t in arguments().items()}
    done["strided"] = run(strided, True, SMALL)
    broken = arguments(length=40)
    broken["u"].data[0, 1, 20] = torch.nan
    done["not a number"] = run(broken, True, SMALL)[:1]
    torch.save(done, out)


@pytest.fixture(scope="module")
def triton_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    pytest.importorskip("triton", reason="triton is not installed (pip install triton; Linux only)")
    out = tmp_path_factory.mktemp("triton") / "cases.pt"
    interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(out)], env=os.environ | interpret, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.mark.parametrize("case", CASES)
def test_values_and_all_gradients_agree_with_the_reference(case, triton_says):
    options, softplus, _ = CASES[case]
    given = arguments(**options)
    names = ["y", *(name for name, t in given.items() if t is not None)]
    for name, ours, twin in zip(
        names, triton_says[case], values_and_gradients(given, softplus, "reference"), strict=True
    ):
        assert ours.dtype == twin.dtype
        assert relative(ours, twin) < TOLERANCE[ours.dtype], name


def test_the_state_that_lasts_comes_from_chunks_ago():
    """The case above proves the carry over two tiles of four only if the first chunk is still heard in the seventh."""
    options, softplus, _ = CASES["seven chunks, a state that lasts"]
    given = arguments(**options)
    whole = selective_scan(**given, delta_softplus=softplus, backend="reference")
    given["u"].data[..., :16] = 0
    without = selective_scan(**given, delta_softplus=softplus, backend="reference")
    assert relative(without[..., 96:], whole[..., 96:]) > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", [True, False])
def test_short_floats_are_computed_in_float32_and_given_back_short(dtype, gate, triton_says):
    given = short(dtype) | ({} if gate else {"z": None})
    exact = {k: None if t is None else t.detach().double().requires_grad_() for k, t in given.items()}
    twins = values_and_gradients(exact, True, "reference")
    ours = triton_says[str(dtype) if gate else f"{dtype} without gate"]
    assert [t.dtype for t in ours] == [dtype, *(t.dtype for t in given.values() if t is not None)]
    for a, b in zip(ours, twins, strict=True):
        assert relative(a.double(), b) < torch.finfo(dtype).eps


def test_strided_inputs_give_what_contiguous_ones_give(triton_says):
    for ours, twin in zip(triton_says["strided"], values_and_gradients(arguments(), True, "reference"), strict=True):
        assert relative(ours, twin) < TOLERANCE[torch.float32]


def test_not_a_number_goes_in_and_comes_out_from_there_on(triton_says):
    (y,) = triton_says["not a number"]
    assert torch.isfinite(y[0, ::2]).all() and torch.isfinite(y[0, 1, :20]).all() and y[0, 1, 20:].isnan().all()


COMPILE = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from volseg.ops import _triton_kernels as kernels
sizes = {"SOFTPLUS": True, "REVERSE": True, "CHANNELS": 4, "TIME": 32, "ROWS": 8, "COLUMNS": 4}
sizes["DTYPE"] = kernels.FLOAT32
short = ("u", "delta", "B", "C", "y", "dy", "du", "ddelta")
whole = ("batch", "channels", "length", "states", "chunks")
for name in ("chunk_states", "carry", "outputs", "chunk_gradients", "gradients"):
    kernel = getattr(kernels, name)
    kinds = {n: "constexpr" if n in sizes else "i32" if n in whole else "*bf16" if n in short else "*fp32"
             for n in kernel.arg_names}
    source = ASTSource(kernel, kinds, {(kernel.arg_names.index(n),): v for n, v in sizes.items() if n in kinds})
    options = {"num_warps": 1, "enable_fp_fusion": True}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(binary.asm["cubin"]) > 1000 and ".target sm_90" in binary.asm["ptx"]
"""


def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """Down to sm_90 machine code, by Triton's own ptxas: what the interpreter accepts, the compiler may not."""
    pytest.importorskip("triton", reason="triton is not installed (pip install triton; Linux only)")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_cpu_tensors_are_refused_with_the_backends_that_take_them(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed (pip install triton; Linux only)")
    from volseg.ops import _triton_kernels

    monkeypatch.setattr(_triton_kernels, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r'"triton" takes CUDA tensors, these are on cpu; use "numba", "torch"'):
        selective_scan(**arguments(length=4), backend="triton")


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch):
    """Says which packages import."""
    return lambda *names: monkeypatch.setattr(MODULE, "_installed", lambda package: package in names)


def test_without_triton_the_import_error_says_where_it_comes_from(packages):
    packages("numba")
    with pytest.raises(ImportError, match=r'"triton" needs triton, which cannot be imported here'):
        selective_scan(**arguments(length=4), backend="triton")


def test_auto_on_cuda_is_mamba_ssm_then_triton_then_torch(packages, monkeypatch):
    monkeypatch.setattr(MODULE, "_triton_runs", lambda: MODULE._installed("triton"))
    for names, chosen in ((("mamba_ssm", "triton"), "mamba_ssm"), (("triton",), "triton"), ((), "torch")):
        packages(*names)
        assert MODULE._choose("cuda") == chosen
    packages("triton")
    assert MODULE._choose("cpu") == "torch"


def test_a_triton_without_driver_or_compiler_is_not_chosen_and_says_so(monkeypatch, caplog):
    triton = pytest.importorskip("triton", reason="triton is not installed (pip install triton; Linux only)")

    class NoDriver:
        @property
        def active(self):
            raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(triton.runtime, "driver", NoDriver())
    MODULE._triton_runs.cache_clear()
    assert MODULE._triton_runs() is False
    MODULE._triton_runs.cache_clear()
    assert "Failed to find C compiler" in caplog.text


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
