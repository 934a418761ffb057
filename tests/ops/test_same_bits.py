"""Gradients are the same bits wherever malloc puts short arrays: or a resumed training would leave its twin's path.

A vectorised loop that stores is guarded by a comparison of addresses and has a plain twin that sums in another order.
"""

import ctypes
import os

import numpy as np
import pytest
import torch

from volseg.ops.gelu_squares import gelu_squares
from volseg.ops.instance_norm import instance_norm_act
from volseg.ops.oriented import oriented_conv_silu, oriented_scan
from volseg.ops.token_order import TokenOrder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="malloc is reached through the C library")


class Heap:
    """malloc and free of random sizes in random order, so that what is allocated next lies somewhere else."""

    def __init__(self):
        self.c = ctypes.CDLL(None)
        self.c.malloc.restype, self.c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self.c.free.restype, self.c.free.argtypes = None, [ctypes.c_void_p]
        self.rng, self.held = np.random.default_rng(0), []

    def shuffle(self):
        self.held += [self.c.malloc(int(n)) for n in self.rng.integers(16, 400, 30)]
        self.held = [self.held[i] for i in self.rng.permutation(len(self.held))]
        self.keep(150)

    def keep(self, n):
        while len(self.held) > n:
            self.c.free(self.held.pop())


@pytest.fixture
def heap():
    threads, heap = torch.get_num_threads(), Heap()
    torch.set_num_threads(1)  # the kernels run here and not in threads with a heap of their own
    yield heap
    heap.keep(0)
    torch.set_num_threads(threads)


BACK = TokenOrder(backwards=True)


def convolution(x, weight, bias):
    return oriented_conv_silu(x, weight, bias, BACK)


def scan(u, delta, A, B, C, D, bias):
    return oriented_scan(u, delta, -A.exp(), B, C, D, bias, BACK)


@pytest.mark.parametrize("length", [8, 27, 64])
@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (convolution, [(1, 16, -1), (16, 1, 4), (16,)]),
        (scan, [(1, 16, -1), (1, 16, -1), (16, 4), (1, 4, -1), (1, 4, -1), (16,), (16,)]),
        (lambda x: instance_norm_act(x[..., None, None], 0.01), [(1, 8, -1)]),
        (lambda x: gelu_squares(x)[0], [(1, -1, 8)]),
    ],
    ids=["convolution", "scan", "norm", "gelu"],
)
def test_gradients(heap, operation, shapes, length):
    torch.manual_seed(0)
    inputs = [torch.randn([length if n < 0 else n for n in shape]).requires_grad_() for shape in shapes]
    seed = torch.randn_like(operation(*inputs))
    seen = set()
    for _ in range(2000):
        heap.shuffle()
        found = torch.autograd.grad(operation(*inputs), inputs, seed)
        seen.add(b"".join(gradient.numpy().tobytes() for gradient in found))
    assert len(seen) == 1
