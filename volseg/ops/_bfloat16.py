"""bfloat16 for numba kernels, as the upper half of a float32. Knows nothing of scans and convolutions.

numba has no such type, so kernels get the bits as int16: `read` widens them, `write` rounds to the nearest, ties to
even, as torch does. For rows of float32 or float64 both are plain indexing, so one kernel serves all three.

numba's cache does not see changes in this file: after one, `touch` the kernels that import it.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
_NAN = 0x7FC0


@intrinsic
def _widened(typingctx, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(types.int16), codegen


@intrinsic
def _rounded(typingctx, x):
    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        upper = builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16)), _I16)
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), _I16(_NAN), upper)

    return types.int16(types.float32), codegen


def read(row, i):
    """row[i] as a number to compute with."""
    raise NotImplementedError("for compiled kernels only")


def write(row, i, value):
    """row[i] = value, rounded if the row is bfloat16. `value` is a name or plain arithmetic: see `_norm_numba.py`."""
    raise NotImplementedError("for compiled kernels only")


@overload(read, inline="always")
def _read(row, i):
    if row.dtype == types.int16:
        return lambda row, i: _widened(row[i])
    return lambda row, i: row[i]


@overload(write, inline="always")
def _write(row, i, value):
    if row.dtype == types.int16:

        def rounded(row, i, value):
            row[i] = _rounded(value)

        return rounded

    def plain(row, i, value):
        row[i] = value

    return plain
