"""More on the vectors of `_vector.py`: pairs of neighbours, and a block of a matrix product held in registers.

numba's cache does not see changes in this file: after one, `touch` the kernels that import it.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from volseg.ops._vector import LANES, Vector, _bits, _call, _spread

# A block of the product: 8 rows times 3 vectors keep 24 sums in the 32 vector registers of AVX-512; a vector of the
# right factor serves 8 multiply-adds, a number of the left one 3.
ROWS, VECTORS = 8, 3
COLUMNS = VECTORS * LANES
_INDEX = ir.IntType(32)
_WORDS = ir.VectorType(ir.IntType(32), LANES)


def _words(value: int):
    return ir.Constant(_WORDS, [value] * LANES)


@intrinsic
def _minus(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fsub(*args, flags=("contract",))


@overload(operator.sub)
def _sub(a, b):
    if isinstance(a, Vector) and isinstance(b, Vector):
        return lambda a, b: _minus(a, b)


def _at(context, builder, array_type, array, offset):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [offset])


def _read(builder, pointer, kind):
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=_bits(kind) // 8)


def _halves(builder, start, first: int):
    """The 16 bfloat16 at even (0) or odd (1) places of 32, as float32: one half each of 16 int32."""
    words = builder.load(builder.bitcast(start, _WORDS.as_pointer()), align=2)
    upper = builder.shl(words, _words(16)) if first == 0 else builder.and_(words, _words(0xFFFF0000))
    return builder.bitcast(upper, ir.VectorType(ir.FloatType(), LANES))


def _every_second(first: int):
    def typed(typingctx, array, offset):
        short = array.dtype == types.int16

        def codegen(context, builder, signature, args):
            kind = context.get_value_type(signature.return_type)
            start = _at(context, builder, signature.args[0], *args)
            if short:
                return _halves(builder, start, first)
            low = _read(builder, start, kind)
            high = _read(builder, builder.gep(start, [ir.Constant(ir.IntType(64), LANES)]), kind)
            mask = ir.Constant(ir.VectorType(_INDEX, LANES), [2 * i + first for i in range(LANES)])
            return builder.shuffle_vector(low, high, mask)

        return Vector(types.float32 if short else array.dtype)(array, types.intp), codegen

    return typed


# 16 of 32 consecutive numbers of a flat array from `offset` on: those at even, at odd places (all 32 are read).
# From int16, the bits of bfloat16, they come as float32.
load_even = intrinsic(_every_second(0))
load_odd = intrinsic(_every_second(1))


@intrinsic
def after(typingctx, number, vector):
    """The vector moved up by one place, `number` in its first."""

    def codegen(context, builder, signature, args):
        moved = ir.Constant(ir.VectorType(_INDEX, LANES), [0, *range(LANES - 1)])
        moved = builder.shuffle_vector(args[1], args[1], moved)
        return builder.insert_element(moved, args[0], ir.Constant(_INDEX, 0))

    return vector(number, vector), codegen


@intrinsic
def before(typingctx, vector, number):
    """The vector moved down by one place, `number` in its last."""

    def codegen(context, builder, signature, args):
        moved = ir.Constant(ir.VectorType(_INDEX, LANES), [*range(1, LANES), 0])
        moved = builder.shuffle_vector(args[0], args[0], moved)
        return builder.insert_element(moved, args[1], ir.Constant(_INDEX, LANES - 1))

    return vector(vector, number), codegen


@intrinsic
def store_pairs(typingctx, array, offset, even, odd):
    """Write 32 numbers to a flat array, taking them in turn from two vectors; to int16 as bfloat16."""
    short = array.dtype == types.int16

    def codegen(context, builder, signature, args):
        start = _at(context, builder, signature.args[0], *args[:2])
        if short:
            _store_words(builder, start, *args[2:])
            return context.get_dummy_value()
        kind = args[2].type
        for half in range(2):
            places = [i // 2 + (i % 2) * LANES + half * (LANES // 2) for i in range(LANES)]
            mask = ir.Constant(ir.VectorType(_INDEX, LANES), places)
            value = builder.shuffle_vector(args[2], args[3], mask)
            target = builder.gep(start, [ir.Constant(ir.IntType(64), half * LANES)])
            builder.store(value, builder.bitcast(target, kind.as_pointer()), align=_bits(kind) // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, even, odd), codegen


def _store_words(builder, start, low, high):
    """Two vectors of float32, rounded to bfloat16 (nearest, ties to even), as the halves of 16 int32."""

    def rounded(x):
        bits = builder.bitcast(x, _WORDS)
        odd = builder.and_(builder.lshr(bits, _words(16)), _words(1))
        return builder.add(bits, builder.add(odd, _words(0x7FFF)))

    lower, upper = builder.lshr(rounded(low), _words(16)), builder.and_(rounded(high), _words(0xFFFF0000))
    builder.store(builder.or_(lower, upper), builder.bitcast(start, _WORDS.as_pointer()), align=2)


@intrinsic
def store_joined(typingctx, array, offset, low, high):
    """Write 16 pairs of bfloat16 to a flat int32 array, `low` in the lower halves."""

    def codegen(context, builder, signature, args):
        _store_words(builder, _at(context, builder, signature.args[0], *args[:2]), *args[2:])
        return context.get_dummy_value()

    return types.none(array, types.intp, low, high), codegen


def _dpbf16(builder, kind):
    """sum + a0 b0 + a1 b1 for 16 pairs of bfloat16. Declared as before LLVM had a bfloat type; it upgrades that."""
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(kind, [kind, _WORDS, _WORDS]), name)


def _multiply(pairs: bool):
    def typed(typingctx, left, at_left, right, at_right, out, at_out, depth, right_step, out_step):
        def codegen(context, builder, signature, args):
            kind = context.get_value_type(Vector(signature.args[4].dtype))
            factor = _WORDS if pairs else kind
            a = _at(context, builder, signature.args[0], args[0], args[1])
            b = _at(context, builder, signature.args[2], args[2], args[3])
            c = _at(context, builder, signature.args[4], args[4], args[5])
            depth, right_step, out_step = args[6:]
            before = builder.basic_block
            body, after = builder.append_basic_block("multiply"), builder.append_basic_block("multiplied")
            builder.branch(body)
            builder.position_at_end(body)
            word = depth.type
            k = builder.phi(word)
            k.add_incoming(ir.Constant(word, 0), before)
            sums = [[builder.phi(kind) for _ in range(VECTORS)] for _ in range(ROWS)]
            row = builder.gep(b, [builder.mul(k, right_step)])
            column = builder.gep(a, [builder.mul(k, ir.Constant(word, ROWS))])
            at = [builder.gep(row, [ir.Constant(word, v * LANES)]) for v in range(VECTORS)]
            vectors = [builder.load(builder.bitcast(p, factor.as_pointer()), align=4) for p in at]
            nought = ir.Constant(kind, [0.0] * LANES)
            for r in range(ROWS):
                spread = _spread(builder, builder.load(builder.gep(column, [ir.Constant(word, r)])), factor)
                for v in range(VECTORS):
                    phi = sums[r][v]
                    if pairs:
                        value = builder.call(_dpbf16(builder, kind), [phi, spread, vectors[v]])
                    else:
                        value = _call(builder, "llvm.fma", kind, spread, vectors[v], phi)
                    phi.add_incoming(nought, before)
                    phi.add_incoming(value, body)
                    sums[r][v] = value
            following = builder.add(k, ir.Constant(word, 1))
            k.add_incoming(following, body)
            builder.cbranch(builder.icmp_signed("<", following, depth), body, after)
            builder.position_at_end(after)
            for r in range(ROWS):
                target = builder.gep(c, [builder.mul(out_step, ir.Constant(word, r))])
                for v in range(VECTORS):
                    at = builder.gep(target, [ir.Constant(word, v * LANES)])
                    builder.store(sums[r][v], builder.bitcast(at, kind.as_pointer()), align=_bits(kind) // 8)
            return context.get_dummy_value()

        whole = types.intp
        return types.none(left, whole, right, whole, out, whole, whole, whole, whole), codegen

    return typed


# out[r, c] = sum_k left[k, r] right[k, c] for 8 rows and 48 columns; depth >= 1, nothing is checked. `left` holds 8
# numbers per k, one after the other; the rows of `right` and `out` lie `right_step` and `out_step` numbers apart:
# multiply_block(left, at_left, right, at_right, out, at_out, depth, right_step, out_step).
multiply_block = intrinsic(_multiply(pairs=False))
# The same with pairs of bfloat16 in int32 for numbers in `left` and `right`, and sums in float32: AVX512_BF16 only.
multiply_pairs = intrinsic(_multiply(pairs=True))
