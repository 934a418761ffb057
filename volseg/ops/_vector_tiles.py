"""Vector steps of Winograd's weight gradient: a square turned over, a tile's points, a product added to what is there.

The sum runs over tiles, so one factor has its channels in the lanes. The gradient arrives by channel, (C, X, Y, Z): its
8 numbers per tile are turned over before they become 64 points, an eighth of the work.

numba's cache does not see changes in this file: after one, `touch` the kernels that import it.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from volseg.ops._vector import LANES, Vector, _bits, _call, _spread
from volseg.ops._vector_blocks import _INDEX, _WORDS, COLUMNS, _at, _words


def _masked(builder, pointer, mask):
    """16 numbers from a pointer, 0 (and no access) where the mask is false."""
    kind = ir.VectorType(pointer.type.pointee, LANES)
    short = isinstance(kind.element, ir.IntType)
    name = "llvm.masked.load.v16" + ("i16" if short else f"f{_bits(kind)}") + ".p0"
    target = builder.bitcast(pointer, kind.as_pointer())
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(kind, [target.type, ir.IntType(32), mask.type, kind]), name
    )
    nought = ir.Constant(kind, [0 if short else 0.0] * LANES)
    align = ir.Constant(ir.IntType(32), 2 if short else _bits(kind) // 8)
    value = builder.call(function, [target, align, mask, nought])
    if short:  # the upper half of a float32
        value = builder.shl(builder.zext(value, _WORDS), _words(16))
        value = builder.bitcast(value, ir.VectorType(ir.FloatType(), LANES))
    return value


def _exchange(builder, a, b, distance):
    """Rows i and i + distance of a square: the off-diagonal blocks of that size change places."""
    lower = [e if not e & distance else e - distance + LANES for e in range(LANES)]
    upper = [e + distance if not e & distance else e + LANES for e in range(LANES)]
    masks = (ir.Constant(ir.VectorType(_INDEX, LANES), m) for m in (lower, upper))
    return [builder.shuffle_vector(a, b, mask) for mask in masks]


@intrinsic
def turn_over(typingctx, source, at, step, rows, columns, out, at_out):
    """out[at_out + 16 j + i] = source[at + i * step + j] for i < rows, j < columns, 0 for the others of 16 x 16."""

    def codegen(context, builder, signature, args):
        start = _at(context, builder, signature.args[0], *args[:2])
        step, rows, columns = args[2:5]
        lane = ir.Constant(ir.VectorType(step.type, LANES), list(range(LANES)))
        square = []
        for i in range(LANES):
            here = ir.Constant(step.type, i)
            many = builder.select(builder.icmp_signed("<", here, rows), columns, ir.Constant(step.type, 0))
            mask = builder.icmp_signed("<", lane, _spread(builder, many, lane.type))
            square.append(_masked(builder, builder.gep(start, [builder.mul(here, step)]), mask))
        for distance in (8, 4, 2, 1):
            for i in range(LANES):
                if not i & distance:
                    square[i], square[i + distance] = _exchange(builder, square[i], square[i + distance], distance)
        target = _at(context, builder, signature.args[5], *args[5:])
        for j, row in enumerate(square):
            to = builder.gep(target, [ir.Constant(step.type, j * LANES)])
            builder.store(row, builder.bitcast(to, row.type.as_pointer()), align=_bits(row.type) // 8)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(source, whole, whole, whole, whole, out, whole), codegen


def _four(builder, a, b):
    """A along one axis: (a, a + b, a - b, b). The last is -b in the paper; `weight_gradient` puts the sign right."""
    flags = ("contract",)
    return a, builder.fadd(a, b, flags=flags), builder.fsub(a, b, flags=flags), b


@intrinsic
def spread_tile(typingctx, lines, at, out, at_out, step):
    """A along three axes of 2 x 2 x 2 vectors: point (i, j, k) of 4 x 4 x 4 to out[at_out + (16 i + 4 j + k) * step].

    Vector (i, j, k) of the tile lies at lines[at + ((2 i + j) * 32 + k) * 16].
    """

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(Vector(signature.args[0].dtype))
        start, align = _at(context, builder, signature.args[0], *args[:2]), _bits(kind) // 8
        target, step = _at(context, builder, signature.args[2], *args[2:4]), args[4]
        word, given = step.type, {}
        for ij in range(4):
            for k in range(2):
                at = builder.gep(start, [ir.Constant(word, (ij * 2 * LANES + k) * LANES)])
                given[ij, k] = builder.load(builder.bitcast(at, kind.as_pointer()), align=align)
        along_z = [_four(builder, given[ij, 0], given[ij, 1]) for ij in range(4)]
        for k in range(4):
            along_y = [_four(builder, along_z[2 * i][k], along_z[2 * i + 1][k]) for i in range(2)]
            for j in range(4):
                for i, value in enumerate(_four(builder, along_y[0][j], along_y[1][j])):
                    to = builder.gep(target, [builder.mul(step, ir.Constant(word, 16 * i + 4 * j + k))])
                    builder.store(value, builder.bitcast(to, kind.as_pointer()), align=align)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(lines, whole, out, whole, whole), codegen


def _add_product(rows: int, vectors: int):
    def typed(typingctx, left, at_left, right, at_right, out, at_out, depth):
        def codegen(context, builder, signature, args):
            kind = context.get_value_type(Vector(signature.args[4].dtype))
            align, width = _bits(kind) // 8, vectors * LANES
            a, b, c = (_at(context, builder, signature.args[i], *args[i : i + 2]) for i in (0, 2, 4))
            depth = args[6]
            before = builder.basic_block
            body, after = builder.append_basic_block("multiply"), builder.append_basic_block("multiplied")
            builder.branch(body)
            builder.position_at_end(body)
            word = depth.type
            k = builder.phi(word)
            k.add_incoming(ir.Constant(word, 0), before)
            sums = [[builder.phi(kind) for _ in range(vectors)] for _ in range(rows)]
            row = builder.gep(b, [builder.mul(k, ir.Constant(word, width))])
            at = [builder.gep(row, [ir.Constant(word, v * LANES)]) for v in range(vectors)]
            factors = [builder.load(builder.bitcast(p, kind.as_pointer()), align=align) for p in at]
            column = builder.gep(a, [k])
            nought = ir.Constant(kind, [0.0] * LANES)
            for r in range(rows):
                number = builder.load(builder.gep(column, [ir.Constant(word, r * COLUMNS)]))
                spread = _spread(builder, number, kind)
                for v in range(vectors):
                    phi = sums[r][v]
                    value = _call(builder, "llvm.fma", kind, spread, factors[v], phi)
                    phi.add_incoming(nought, before)
                    phi.add_incoming(value, body)
                    sums[r][v] = value
            following = builder.add(k, ir.Constant(word, 1))
            k.add_incoming(following, body)
            builder.cbranch(builder.icmp_signed("<", following, depth), body, after)
            builder.position_at_end(after)
            for r in range(rows):
                for v in range(vectors):
                    to = builder.gep(c, [ir.Constant(word, r * width + v * LANES)])
                    to = builder.bitcast(to, kind.as_pointer())
                    builder.store(builder.fadd(sums[r][v], builder.load(to, align=align)), to, align=align)
            return context.get_dummy_value()

        whole = types.intp
        return types.none(left, whole, right, whole, out, whole, whole), codegen

    return typed


# out[r, c] += sum_k left[r, k] right[k, c] for 8 or 16 rows and 16, 32 or 48 columns; depth >= 1, nothing is checked.
# Rows of `left` are 48 numbers long, those of `right` and `out` as long as there are columns:
# add_product(left, at_left, right, at_right, out, at_out, depth). A sum begins at 0: one of a hundred thousand tiles
# would lose digits if each were added to all before.
add_product_1 = intrinsic(_add_product(16, 1))
add_product_2 = intrinsic(_add_product(8, 2))
add_product_3 = intrinsic(_add_product(8, 3))
