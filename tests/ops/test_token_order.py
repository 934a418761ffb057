"""Token orders: which position a token lies at, for the torch views and for the compiled gather and scatter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volseg.ops._bfloat16 import read, write
from volseg.ops._njit import _compiled
from volseg.ops._tokens_numba import from_rows, to_rows
from volseg.ops.token_order import AHEAD, BACK, TokenOrder, across, to_positions, to_tokens

# 3 * 700 and 40 * 50: several blocks of the compiled gather, the last one smaller
CASES = [(1, 1), (6, 1), (6, 2), (6, 3), (6, 6), (133, 7), (2100, 1), (2100, 3), (2000, 40)]


@pytest.mark.parametrize(
    ("order", "positions"),
    [
        (AHEAD, [0, 1, 2, 3, 4, 5]),
        (BACK, [5, 4, 3, 2, 1, 0]),
        (across(2), [0, 3, 1, 4, 2, 5]),  # slices 0 1 2 | 3 4 5
        (across(3), [0, 2, 4, 1, 3, 5]),  # slices 0 1 | 2 3 | 4 5
        (TokenOrder(3, backwards=True), [5, 3, 1, 4, 2, 0]),
    ],
)
def test_six_positions_are_read_in_the_order_written_here(order, positions):
    assert to_tokens(torch.arange(6), order).tolist() == positions


@pytest.mark.parametrize(("length", "slices"), CASES)
def test_a_token_lies_where_the_docstring_says(length, slices):
    t = torch.arange(length)
    assert torch.equal(to_tokens(t, across(slices)), t % slices * (length // slices) + t // slices)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(("length", "slices"), CASES)
def test_there_and_back_is_where_it_was_for_views_and_for_kernels(length, slices, backwards):
    order, x = TokenOrder(slices, backwards), torch.rand(2, 3, length)
    tokens = to_tokens(x, order)
    assert torch.equal(to_positions(tokens, order), x)
    rows, back = np.zeros((length, 4), np.float32), np.empty((3, length), np.float32)
    to_rows(x[0].numpy(), slices, backwards, rows)
    assert np.array_equal(rows[:, :3], tokens[0].numpy().T) and not rows[:, 3].any()
    from_rows(rows, slices, backwards, back)
    assert np.array_equal(back, x[0].numpy())


@pytest.mark.parametrize("length", [7, 3])
def test_slices_that_do_not_divide_the_tokens_are_refused_with_both_numbers(length):
    for function in (to_tokens, to_positions):
        with pytest.raises(ValueError, match=f"{length} tokens cannot be cut into 4 slices"):
            function(torch.zeros(1, 1, length), across(4))


@_compiled
def copy(a, b):
    for i in range(a.size):
        write(b, i, read(a, i))


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy()


def test_every_bfloat16_is_widened_and_narrowed_to_itself():
    every = np.arange(-(2**15), 2**15).astype(np.int16)
    wide, again = np.empty(every.size, np.float32), np.empty_like(every)
    copy(every, wide)
    copy(wide, again)
    torch_wide = torch.from_numpy(every).view(torch.bfloat16).float()
    assert np.array_equal(wide, torch_wide.numpy(), equal_nan=True)
    number = ~np.isnan(wide)
    assert np.array_equal(again[number], every[number])
    assert torch.from_numpy(again).view(torch.bfloat16)[~number].isnan().all()


def test_float32_is_rounded_to_bfloat16_as_torch_rounds_it():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (20_000,), generator=g, dtype=torch.int32).view(torch.float32)
    ties = (torch.randint(0, 0x7F00, (2000,), generator=g, dtype=torch.int32) << 16 | 0x8000).view(torch.float32)
    x = torch.cat([x[~x.isnan()], ties, torch.tensor([3.4e38, torch.inf, -torch.inf, 0.0, -0.0])])
    out = np.empty(x.numel(), np.int16)
    copy(x.numpy(), out)
    assert np.array_equal(out, bits(x.bfloat16()))
