"""What a machine without numba, or without a place to keep compiled code, gets: the same answer, later."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys
if {hidden}:
    sys.modules["numba"] = None  # importing it now raises ImportError
import torch
from volseg.ops import selective_scan
torch.manual_seed(0)
u, B = torch.rand(1, 4, 40, requires_grad=True), torch.rand(1, 3, 40)
y = selective_scan(u, u, -torch.rand(4, 3), B, B, torch.ones(4), delta_softplus=True)
y.sum().backward()
assert torch.isfinite(u.grad).all()
assert ("volseg.ops._scan_numba" in sys.modules) is not {hidden}
try:
    selective_scan(u, u, -torch.rand(4, 3), B, B, backend="numba")
    assert not {hidden}
except ImportError as error:
    assert {hidden} and "needs numba" in str(error)
print(repr(y.sum().item()))
"""


def run(hidden: bool) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(hidden=hidden)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def expected() -> float:
    from volseg.ops import selective_scan

    torch.manual_seed(0)
    u, B = torch.rand(1, 4, 40), torch.rand(1, 3, 40)
    y = selective_scan(u, u, -torch.rand(4, 3), B, B, torch.ones(4), delta_softplus=True, backend="reference")
    return y.sum().item()


def test_where_numba_is_missing_auto_falls_back_to_torch():
    assert run(hidden=True) == pytest.approx(expected(), rel=1e-5)


def test_where_no_cache_folder_can_be_found_numba_compiles_without_one(monkeypatch: pytest.MonkeyPatch):
    from numba.core import caching

    from volseg.ops._scan_numba import _compiled

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert _compiled(lambda x: x + 1)(1) == 2
