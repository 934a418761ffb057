"""Tensor mathematics with more than one implementation: each fast kernel has its plain twin beside it."""
