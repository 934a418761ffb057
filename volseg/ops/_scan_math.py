"""exp2 and log1p for numba kernels, as straight-line code that LLVM can vectorise.

libm's cannot be vectorised: numba wheels carry no SVML. float32 and float64; the polynomial's degree follows the type.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

_LN2 = math.log(2.0)


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
    value = ir.Constant(x.type, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = builder.fadd(builder.fmul(value, x, flags=("contract",)), ir.Constant(x.type, c), flags=("contract",))
    return value


def _emit_exp2(builder, x):
    """2**x. x is clamped to the normal exponents, so exp2 of a very negative number is about 1e-38 (1e-308), not 0."""
    width, mantissa, bias = (32, 23, 127) if isinstance(x.type, ir.FloatType) else (64, 52, 1023)
    low, high = ir.Constant(x.type, float(1 - bias)), ir.Constant(x.type, float(bias))
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    whole = builder.call(builder.module.declare_intrinsic("llvm.rint", [x.type]), [x])
    integer = ir.IntType(width)
    exponent = builder.shl(builder.add(builder.fptosi(whole, integer), integer(bias)), integer(mantissa))
    return builder.fmul(_horner(builder, builder.fsub(x, whole), _EXP2[width]), builder.bitcast(exponent, x.type))


@intrinsic
def exp2(typingctx, x):
    """2**x for float32 or float64."""

    def codegen(context, builder, signature, args):
        return _emit_exp2(builder, args[0])

    return x(x), codegen


@intrinsic
def log1p_of_exp2(typingctx, x):
    """log(1 + 2**x) for x <= 0, precise in the tail: with w = 2**x it is 2 atanh(w / (2 + w))."""

    def codegen(context, builder, signature, args):
        w = _emit_exp2(builder, args[0])
        s = builder.fdiv(w, builder.fadd(w, ir.Constant(w.type, 2.0)))
        width = 32 if isinstance(w.type, ir.FloatType) else 64
        return builder.fmul(s, _horner(builder, builder.fmul(s, s), _ATANH[width]))

    return x(x), codegen


@intrinsic
def real(typingctx, value, like):
    """A constant in the type of `like` (a bare Python float would turn float32 arithmetic into float64)."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(value, like), codegen
