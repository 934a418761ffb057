"""Compiled kernels on threads: they release the GIL, so a pool of torch's own size is enough."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool; `process` is part of the key because threads do not survive a fork (DataLoader workers)."""
    return ThreadPoolExecutor(threads, thread_name_prefix="volseg")


def run_tasks(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> None:
    """Call `function(*task)` for every task on as many threads as torch uses; raises what a task raised."""
    tasks, threads = list(tasks), torch.get_num_threads()
    if threads == 1 or len(tasks) == 1:
        for task in tasks:
            function(*task)
    else:
        list(_pool(threads, os.getpid()).map(lambda task: function(*task), tasks))


def even_ranges(length: int, parts: int) -> list[tuple[int, int]]:
    """[0, length) in at most `parts` ranges of equal size, none of them empty."""
    edges = np.linspace(0, length, max(1, min(parts, length)) + 1).astype(int).tolist()
    return [(i, j) for i, j in itertools.pairwise(edges) if j > i]
