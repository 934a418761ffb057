"""Tensor mathematics with more than one implementation: each fast kernel has its plain twin beside it."""

from volseg.ops.selective_scan import selective_scan

__all__ = ["selective_scan"]
