"""Vectors of 16 numbers for numba kernels, and exp2 and log1p on them or on single numbers. Knows nothing of scans.

numba has no vector type, leaves loops to LLVM's vectoriser (which put aliasing checks around every 16 numbers here: the
scan took 2.5 times as long), and its wheels carry no SVML, so libm's exp stays scalar. So: a vector type that lives in
registers, with + and *, and exp2 as a polynomial. float32 and float64; the polynomial's degree follows the type.

numba's cache does not see changes in this file: after one, `touch` the kernels that import it.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

LANES = 16
_LN2 = math.log(2.0)


class Vector(types.Type):
    """16 float32 or float64."""

    def __init__(self, dtype):
        super().__init__(name=f"Vector({dtype} x {LANES})")
        self.dtype = dtype


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), LANES))


def _constant(kind, value):
    return ir.Constant(kind, [value] * LANES if isinstance(kind, ir.VectorType) else value)


def _element(kind):
    return kind.element if isinstance(kind, ir.VectorType) else kind


def _bits(kind) -> int:
    return 32 if isinstance(_element(kind), ir.FloatType) else 64


def _call(builder, name, result, *args, flags=()):
    """Call an LLVM intrinsic: `name` for the vector or number type of the last argument."""
    kind = args[-1].type
    suffix = (f"v{LANES}" if isinstance(kind, ir.VectorType) else "") + f"f{_bits(kind)}"
    function = builder.module.globals.get(f"{name}.{suffix}")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in args]), f"{name}.{suffix}")
    return builder.call(function, args, fastmath=flags)


# ---- moving


@intrinsic
def load(typingctx, array, offset):
    """16 numbers of a flat contiguous array from `offset` on (not checked)."""

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(signature.return_type)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        at = builder.gep(data, [args[1]])
        return builder.load(builder.bitcast(at, kind.as_pointer()), align=_bits(kind) // 8)

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def store(typingctx, array, offset, vector):
    """Write 16 numbers into a flat contiguous array from `offset` on (not checked)."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        at = builder.bitcast(builder.gep(data, [args[1]]), args[2].type.as_pointer())
        builder.store(args[2], at, align=_bits(args[2].type) // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), codegen


def _spread(builder, number, kind):
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


@intrinsic
def spread(typingctx, x):
    """One number in all 16 places."""

    def codegen(context, builder, signature, args):
        return _spread(builder, args[0], context.get_value_type(signature.return_type))

    return Vector(x)(x), codegen


# ---- arithmetic


@intrinsic
def _plus(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args, flags=("contract",))


@intrinsic
def _times(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args, flags=("contract",))


@overload(operator.add)
def _add(a, b):
    if isinstance(a, Vector) and isinstance(b, Vector):
        return lambda a, b: _plus(a, b)


@overload(operator.mul)
def _mul(a, b):
    if isinstance(a, Vector) and isinstance(b, Vector):
        return lambda a, b: _times(a, b)
    if isinstance(a, types.Float) and isinstance(b, Vector):
        return lambda a, b: _times(spread(a), b)


@intrinsic
def total(typingctx, vector):
    """The sum of the 16, in any order."""

    def codegen(context, builder, signature, args):
        start = ir.Constant(args[0].type.element, -0.0)
        return _call(builder, "llvm.vector.reduce.fadd", start.type, start, args[0], flags=("reassoc",))

    return vector.dtype(vector), codegen


@intrinsic
def real(typingctx, value, like):
    """A constant in the type of `like` (a bare Python float would turn float32 arithmetic into float64)."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(value, like), codegen


# ---- functions


def _exp2_series(degree: int) -> list[float]:
    """2**f on [-1/2, 1/2], lowest power first: the Taylor series cut in the Chebyshev basis.

    Relative error 2e-9 for degree 6 and 1e-17 for degree 12.
    """
    taylor = [(_LN2 / 2) ** i / math.factorial(i) for i in range(degree + 8)]
    cut = np.polynomial.chebyshev.cheb2poly(np.polynomial.chebyshev.poly2cheb(taylor)[: degree + 1])
    return [float(c) * 2**i for i, c in enumerate(cut)]


def _atanh_series(terms: int) -> list[float]:
    """2 atanh(s) / s in powers of s*s; s*s <= 1/9 here, so term k is below 9**-k / k."""
    return [2.0 / (2 * k + 1) for k in range(terms)]


_EXP2 = {32: _exp2_series(6), 64: _exp2_series(12)}
_ATANH = {32: _atanh_series(8), 64: _atanh_series(17)}


def _horner(builder, x, coefficients):
    value = _constant(x.type, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = builder.fadd(builder.fmul(value, x, flags=("contract",)), _constant(x.type, c), flags=("contract",))
    return value


def _emit_exp2(builder, x):
    bits = _bits(x.type)
    mantissa, bias = (23, 127) if bits == 32 else (52, 1023)
    low, high = _constant(x.type, float(1 - bias)), _constant(x.type, float(bias))
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    whole = _call(builder, "llvm.rint", x.type, x)
    integer = ir.IntType(bits)
    if isinstance(x.type, ir.VectorType):
        integer = ir.VectorType(integer, LANES)
    exponent = builder.add(builder.fptosi(whole, integer), _constant(integer, bias))
    power = builder.bitcast(builder.shl(exponent, _constant(integer, mantissa)), x.type)
    return builder.fmul(_horner(builder, builder.fsub(x, whole), _EXP2[bits]), power)


@intrinsic
def exp2(typingctx, x):
    """2**x. x is clamped to the normal exponents, so exp2 of a very negative number is about 1e-38 (1e-308), not 0."""

    def codegen(context, builder, signature, args):
        return _emit_exp2(builder, args[0])

    return x(x), codegen


@intrinsic
def log1p_of_exp2(typingctx, x):
    """log(1 + 2**x) for x <= 0, precise in the tail: with w = 2**x it is 2 atanh(w / (2 + w))."""

    def codegen(context, builder, signature, args):
        w = _emit_exp2(builder, args[0])
        s = builder.fdiv(w, builder.fadd(w, _constant(w.type, 2.0)))
        return builder.fmul(s, _horner(builder, builder.fmul(s, s), _ATANH[_bits(w.type)]))

    return x(x), codegen
