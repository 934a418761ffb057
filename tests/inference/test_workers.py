"""Several windows at once on the CPU: the same results in the same order, in the caller's modes."""

from __future__ import annotations

import time

import pytest
import torch

from volseg.inference.workers import in_order, workers_for


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks(four_threads):
    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0.001)
        return i * i

    assert list(in_order(slow_at_first, range(9), 3)) == [(i, i * i) for i in range(9)]


def test_each_worker_has_its_share_of_the_threads_and_the_caller_gets_his_back(four_threads):
    if workers_for(torch.device("cpu"), 2) == 1:
        pytest.skip("this torch was built without OpenMP")
    assert [n for _, n in in_order(lambda _: torch.get_num_threads(), range(6), 2)] == [4] + [2] * 5
    assert torch.get_num_threads() == 4


def test_workers_are_in_the_callers_modes(four_threads):
    def modes(_: int) -> tuple[bool, bool, bool, torch.dtype]:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    def in_a_worker() -> tuple[bool, bool, bool, torch.dtype]:
        return list(in_order(modes, range(2), 2))[1][1]

    with torch.inference_mode():
        assert in_a_worker()[:3] == (True, False, False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert in_a_worker() == (False, False, True, torch.bfloat16)
    assert in_a_worker()[:3] == (False, True, False)


def test_the_first_task_is_done_before_a_second_begins(four_threads):
    busy: list[int] = []

    def alone_at_first(i: int) -> int:
        busy.append(i)
        seen = len(busy)
        time.sleep(0.01)
        return seen if i == 0 else 0

    assert next(in_order(alone_at_first, range(8), 3)) == (0, 1)
    assert list(in_order(alone_at_first, [], 3)) == []


def test_what_a_task_raises_reaches_the_caller_and_his_threads_come_back(four_threads):
    def fails(i: int) -> int:
        if i == 2:
            raise RuntimeError("window 2")
        return i

    with pytest.raises(RuntimeError, match="window 2"):
        list(in_order(fails, range(20), 2))
    assert torch.get_num_threads() == 4


def test_no_more_workers_than_windows_in_a_batch(four_threads):
    assert workers_for(torch.device("cpu"), 1) == 1
    assert workers_for(torch.device("cpu"), 64) in (1, 4)
    assert workers_for(torch.device("cuda"), 8) == 1
