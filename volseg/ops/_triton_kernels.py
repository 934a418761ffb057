"""Selective scan as Triton kernels: GPU pointers in, GPU pointers out. `_scan_triton.py` says which runs when.

Time is cut into chunks, so that one long line of tokens with few channels (SegMamba: L = 262144, D = 96, batch 1) fills
the machine. A program owns a tile of CHANNELS rows and one chunk of TIME steps, and walks the N states one by one:
- Threads lie along time, the way u, delta, B and C lie in memory: loads and stores are coalesced, and a row of B or C
  is read once for all channels of the tile.
- With one state in hand, the sums over states (y, du, ddelta) need no exchange between threads. With threads along
  states or channels they would, and dB and dC (sums over channels) would need five shuffles per state and step.
- The recurrence inside a chunk is `tl.associative_scan`. A loop over time with states in registers would take about
  half the instructions forward (counted by hand), but its backward has nowhere to keep the states of a chunk.
What a chunk adds to the state needs no scan at all: sum_t exp(A * steps after t) * step_t * B_t * u_t.

N is a run-time loop: any number of states, none padded. Offsets of rows are 64-bit: B*D*L may pass 2**31. Steps outside
the line have size 0, which leaves the state as it is. Tensors are contiguous; all arithmetic is in DTYPE.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1 when triton was imported: CPU tensors, slowly
FLOAT32, FLOAT64 = tl.float32, tl.float64  # values of DTYPE
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _then(decay, state, next_decay, next_state):
    """h -> decay h + state, then h -> next_decay h + next_state, as one such map."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(exp(-|x|)), with log1p(y) = 2 artanh(y / (2 + y)): log(1 + y) forgets small y."""
    y = tl.exp(-tl.abs(x))
    s = y / (2 + y)  # at most 1/3: the series gains 0.95 digits a term
    terms: tl.constexpr = 18 if x.dtype == tl.float64 else 9
    total = tl.zeros_like(x)
    for k in tl.static_range(terms):
        total = total * s * s + 1 / (2 * (terms - 1 - k) + 1)
    return tl.maximum(x, 0) + 2 * s * total


@triton.jit
def _steps(delta, bias, at, inside, SOFTPLUS: tl.constexpr):
    """Step sizes (CHANNELS, TIME) at the offsets `at`, 0 outside."""
    step = tl.load(delta + at, mask=inside, other=0).to(bias.dtype) + bias[:, None]
    if SOFTPLUS:
        step = _softplus(step)
    return tl.where(inside, step, 0)


@triton.jit
def _tile(channels, length, chunks, CHANNELS: tl.constexpr, TIME: tl.constexpr):
    """This program's batch item, channel group, chunk, rows d and columns j. Groups run fastest: they share B and C."""
    groups = tl.cdiv(channels, CHANNELS)
    place = tl.program_id(0)
    group = place % groups
    chunk = place // groups % chunks
    item = (place // groups // chunks).to(tl.int64)
    return item, group, chunk, group * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, TIME)


@triton.jit
def chunk_states(
    u, delta, A, B, bias, ends, totals, channels, length, states, chunks,
    SOFTPLUS: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """The state every chunk ends with when it starts from 0: ends (batch, chunks, D, N).

    And the sum of its steps: totals (batch, chunks, D).
    """
    item, _, chunk, d, j = _tile(channels, length, chunks, CHANNELS, TIME)
    t, known = chunk * TIME + j, d < channels
    inside = known[:, None] & (t < length)[None, :]
    at = (item * channels + d)[:, None] * length + t[None, :]
    bias_d = tl.load(bias + d, mask=known, other=0).to(DTYPE)
    step = _steps(delta, bias_d, at, inside, SOFTPLUS)
    # The steps after t, read again one to the right: total minus cumulative sum would leave no digits of the last ones.
    later = inside & ((j < TIME - 1) & (t < length - 1))[None, :]
    after = tl.cumsum(_steps(delta, bias_d, at + 1, later, SOFTPLUS), axis=1, reverse=True)
    x = step * tl.load(u + at, mask=inside, other=0).to(DTYPE)
    row = (item * chunks + chunk) * channels + d
    tl.store(totals + row, tl.sum(step, axis=1), mask=known)
    for n in range(states):
        a = tl.load(A + d * states + n, mask=known, other=0).to(DTYPE) * LOG2E
        b = tl.load(B + (item * states + n) * length + t, mask=t < length, other=0).to(DTYPE)
        end = tl.sum(tl.exp2(a[:, None] * after) * x * b[None, :], axis=1)
        tl.store(ends + row * states + n, end, mask=known)


@triton.jit
def chunk_gradients(
    dy, delta, A, C, bias, ends, channels, length, states, chunks,
    SOFTPLUS: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """The gradient every chunk hands to the state before it, when none comes from later: ends (batch, chunks, D, N)."""
    item, _, chunk, d, j = _tile(channels, length, chunks, CHANNELS, TIME)
    t, known = chunk * TIME + j, d < channels
    inside = known[:, None] & (t < length)[None, :]
    at = (item * channels + d)[:, None] * length + t[None, :]
    bias_d = tl.load(bias + d, mask=known, other=0).to(DTYPE)
    until = tl.cumsum(_steps(delta, bias_d, at, inside, SOFTPLUS), axis=1)
    gy = tl.load(dy + at, mask=inside, other=0).to(DTYPE)
    row = (item * chunks + chunk) * channels + d
    for n in range(states):
        a = tl.load(A + d * states + n, mask=known, other=0).to(DTYPE) * LOG2E
        c = tl.load(C + (item * states + n) * length + t, mask=t < length, other=0).to(DTYPE)
        end = tl.sum(tl.exp2(a[:, None] * until) * gy * c[None, :], axis=1)
        tl.store(ends + row * states + n, end, mask=known)


@triton.jit
def carry(
    ends, totals, A, starts, channels, states, chunks,
    REVERSE: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What enters every chunk: starts (batch, chunks, D, N), from the ends, carried forward or (REVERSE) backward.

    A program owns COLUMNS of the D*N states of a batch item, and walks the chunks ROWS at a time.
    """
    width = channels * states
    blocks = tl.cdiv(width, COLUMNS)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    i = tl.arange(0, ROWS)
    known = column < width
    a = tl.load(A + column, mask=known, other=0).to(DTYPE) * LOG2E
    carried = tl.zeros([COLUMNS], DTYPE)
    for first in range(0, chunks, ROWS):
        k = first + i
        source, target = k - 1, k
        if REVERSE:
            source, target = chunks - k, chunks - 1 - k
        row = item * chunks + source
        told = ((k > 0) & (k < chunks))[:, None] & known[None, :]
        total = tl.load(totals + row[:, None] * channels + (column // states)[None, :], mask=told, other=0)
        end = tl.load(ends + row[:, None] * width + column[None, :], mask=told, other=0)
        decay, state = tl.associative_scan((tl.exp2(a[None, :] * total), end), 0, _then)
        state += decay * carried[None, :]
        at = (item * chunks + target)[:, None] * width + column[None, :]
        tl.store(starts + at, state, mask=(k < chunks)[:, None] & known[None, :])
        carried = tl.sum(tl.where((i == ROWS - 1)[:, None], state, 0), axis=0)


@triton.jit
def outputs(
    u, delta, A, B, C, D, bias, starts, y, channels, length, states, chunks,
    SOFTPLUS: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """y (batch, D, L), in the dtype of its pointer, from the state that enters every chunk."""
    item, _, chunk, d, j = _tile(channels, length, chunks, CHANNELS, TIME)
    t, known = chunk * TIME + j, d < channels
    inside = known[:, None] & (t < length)[None, :]
    at = (item * channels + d)[:, None] * length + t[None, :]
    step = _steps(delta, tl.load(bias + d, mask=known, other=0).to(DTYPE), at, inside, SOFTPLUS)
    x = tl.load(u + at, mask=inside, other=0).to(DTYPE)
    out = tl.load(D + d, mask=known, other=0).to(DTYPE)[:, None] * x
    x *= step
    row = ((item * chunks + chunk) * channels + d) * states
    for n in range(states):
        a = tl.load(A + d * states + n, mask=known, other=0).to(DTYPE) * LOG2E
        start = tl.load(starts + row + n, mask=known, other=0)
        line = (item * states + n) * length + t
        b = tl.load(B + line, mask=t < length, other=0).to(DTYPE)
        c = tl.load(C + line, mask=t < length, other=0).to(DTYPE)
        decay, h = tl.associative_scan((tl.exp2(a[:, None] * step), x * b[None, :]), 1, _then)
        out += (decay * start[:, None] + h) * c[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradients(
    u, delta, A, B, C, D, bias, dy, starts, laters, du, ddelta, dA, dB, dC, dD, dbias,
    batch, channels, length, states, chunks,
    SOFTPLUS: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, TIME: tl.constexpr,
):  # fmt: skip
    """All gradients, from the state that enters every chunk and the gradient that enters it from behind (`laters`).

    du, ddelta (batch, D, L) are whole. The others are this tile's share, for torch to add up, so that two runs agree to
    the last bit: dA (batch, chunks, D, N), dD, dbias (batch, chunks, D), dB, dC (groups, batch, N, L), which at 16
    channels a group take as much memory as N/8 float32 copies of u.

    With e = exp(step A): received k_t = e_t h_{t-1}, h_t = k_t + x_t B_t, and g_t = dy_t C_t + e_{t+1} g_{t+1}. Taking
    k_t as h_t - x_t B_t instead would lose its digits where decay is strong; so B and x are read one to the left.
    """
    item, group, chunk, d, j = _tile(channels, length, chunks, CHANNELS, TIME)
    t, known = chunk * TIME + j, d < channels
    inside = known[:, None] & (t < length)[None, :]
    at = (item * channels + d)[:, None] * length + t[None, :]
    bias_d = tl.load(bias + d, mask=known, other=0).to(DTYPE)
    step = _steps(delta, bias_d, at, inside, SOFTPLUS)
    next_step = _steps(delta, bias_d, at + 1, inside & ((j < TIME - 1) & (t < length - 1))[None, :], SOFTPLUS)
    earlier = inside & (j > 0)[None, :]
    last_x = _steps(delta, bias_d, at - 1, earlier, SOFTPLUS) * tl.load(u + at - 1, mask=earlier, other=0).to(DTYPE)
    x = step * tl.load(u + at, mask=inside, other=0).to(DTYPE)
    gy = tl.load(dy + at, mask=inside, other=0).to(DTYPE)
    by_input, by_decay = tl.zeros_like(x), tl.zeros_like(x)
    row = (item * chunks + chunk) * channels + d
    for n in range(states):
        a = tl.load(A + d * states + n, mask=known, other=0).to(DTYPE) * LOG2E
        start = tl.load(starts + row * states + n, mask=known, other=0)
        later = tl.load(laters + row * states + n, mask=known, other=0)
        line = (item * states + n) * length + t
        b = tl.load(B + line, mask=t < length, other=0).to(DTYPE)
        last_b = tl.load(B + line - 1, mask=(j > 0) & (t < length), other=0).to(DTYPE)
        c = tl.load(C + line, mask=t < length, other=0).to(DTYPE)
        before = tl.where((j == 0)[None, :], start[:, None], last_x * last_b[None, :])
        e = tl.exp2(a[:, None] * step)
        _, received = tl.associative_scan((e, e * before), 1, _then)
        own_g = tl.where((j == TIME - 1)[None, :], later[:, None], 0) + gy * c[None, :]
        _, g = tl.associative_scan((tl.exp2(a[:, None] * next_step), own_g), 1, _then, reverse=True)
        own = ((group.to(tl.int64) * batch + item) * states + n) * length + t
        tl.store(dB + own, tl.sum(x * g, axis=0), mask=t < length)
        tl.store(dC + own, tl.sum(gy * (received + x * b[None, :]), axis=0), mask=t < length)
        by_input += g * b[None, :]
        q = g * received
        by_decay += q * a[:, None]
        tl.store(dA + row * states + n, tl.sum(q * step, axis=1), mask=known)
    x = tl.load(u + at, mask=inside, other=0).to(DTYPE)
    tl.store(dD + row, tl.sum(gy * x, axis=1), mask=known)
    skip = tl.load(D + d, mask=known, other=0).to(DTYPE)
    tl.store(du + at, (step * by_input + skip[:, None] * gy).to(du.dtype.element_ty), mask=inside)
    gstep = x * by_input + by_decay * LN2
    if SOFTPLUS:
        gstep *= tl.sigmoid(tl.load(delta + at, mask=inside, other=0).to(DTYPE) + bias_d[:, None])
    gstep = tl.where(inside, gstep, 0)
    tl.store(ddelta + at, gstep.to(ddelta.dtype.element_ty), mask=inside)
    tl.store(dbias + row, tl.sum(gstep, axis=1), mask=known)
