"""How every numba kernel here is compiled."""

from __future__ import annotations

from numba import njit

# NaN and infinity keep their meaning; sums over time may be reordered.
_OPTIONS = {"nogil": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}, "error_model": "numpy"}


def _compiled(function):
    """njit with an on-disk cache where any place for one is writable, without one otherwise."""
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # "no locator available": neither __pycache__ nor the user's cache folder can be written
        return njit(**_OPTIONS)(function)
