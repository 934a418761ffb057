"""Windows on the CPU, several at once: each on its share of the cores, results in the order asked for.

Two windows of 48^3 on a core each take 0.14 s per window where both cores share first one, then the other in 0.19 s
(SegMamba of the shipped bundle, 2 cores, 2026-11-21): small feature maps do not fill two cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from threading import Barrier
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def workers_for(device: torch.device, batch: int) -> int:
    """How many of a batch's windows to run at once: one per thread on the CPU, all together elsewhere (1)."""
    # Only OpenMP keeps the number of threads per calling thread; torch's own pool has one number for all.
    if device.type != "cpu" or "OpenMP" not in torch.__config__.parallel_info():
        return 1
    return max(1, min(batch, torch.get_num_threads()))


def in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """(task, function(task)) for every task in order; `workers` run at once and one result waits beside them.

    Each worker has its share of torch's threads, and grad, inference and autocast modes of the caller. Until the last
    result is out the caller has such a share too: idle threads of a larger team would spin on the workers' cores.
    The first task runs in the caller's thread, alone: what is imported or compiled at first use, is so once.
    """
    tasks = iter(tasks)
    for task in islice(tasks, 1):
        yield task, function(task)
    threads, modes = torch.get_num_threads(), _modes()
    share = max(1, threads // workers)
    ready = Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # only the first question makes a thread adopt the common number
        torch.set_num_threads(share)
        ready.wait()

    def work(task: Task) -> Result:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            return function(task)

    waiting: deque[tuple[Task, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="window", initializer=start) as pool:
        try:
            for _ in range(workers):
                pool.submit(lambda: None)
            ready.wait()
            torch.set_num_threads(share)
            for task in tasks:
                waiting.append((task, pool.submit(work, task)))
                if len(waiting) > workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
            torch.set_num_threads(threads)


def _modes() -> list[Callable[[], AbstractContextManager[object]]]:
    """Those of torch's modes that are kept per thread, to be entered elsewhere."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    modes: list[Callable[[], AbstractContextManager[object]]] = [
        lambda: torch.inference_mode(inference),
        lambda: torch.set_grad_enabled(grad),
    ]
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        modes.append(lambda: torch.autocast("cpu", dtype))
    return modes
