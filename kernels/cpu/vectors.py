"""SIMD vectors as Numba types, so that the formula of Philox draws many chunks at once.

LLVM's own vectoriser draws one register of chunks after the other, and each register waits for its chain of ten
dependent rounds. A `Vector` is several registers, whose chains LLVM interleaves.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

I32, I64 = ir.IntType(32), ir.IntType(64)


class Vector(types.Type):
    """Unsigned integers in the lanes of a SIMD vector.

    Parameters
    ----------
    bits : {32, 64}
        Bits per integer.
    count : int
        The number of integers.
    lane : {32, 64}
        Bits per lane of 32-bit integers. x86 multiplies integers in the lower halves of lanes of 64 bits and ignores
        the upper halves. So these stay arbitrary, and a cast to or from 64-bit integers costs nothing.
    """

    def __init__(self, bits, count, lane):
        self.bits, self.count, self.lane = bits, count, lane
        super().__init__(f"vector{bits}({count}, {lane})")

    @property
    def llvm(self):
        return ir.VectorType(ir.IntType(max(self.bits, self.lane)), self.count)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


def _spread(builder, value, target):
    """A vector of an LLVM type with the value in each lane."""
    if value.type != target.element:
        value = builder.zext(value, target.element)
    nothing = ir.Constant(target, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(I32, target.count), [0] * target.count)
    return builder.shuffle_vector(builder.insert_element(nothing, value, I32(0)), nothing, zeros)


def _operator(function, emit):
    """Define an operator on two vectors, or on a vector and a scalar, of the same number of bits."""

    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [arg for arg in args if isinstance(arg, Vector)]
            bits = {arg.bits if isinstance(arg, Vector) else getattr(arg, "bitwidth", None) for arg in args}
            return signature(vectors[0], *args) if vectors and len(bits) == 1 else None

    def lower(context, builder, found, values):
        target = found.return_type.llvm
        return emit(builder, *(v if v.type == target else _spread(builder, v, target) for v in values))

    for pair in ((Vector, Vector), (Vector, types.Integer), (types.Integer, Vector)):
        lower_builtin(function, *pair)(lower)


_operator(operator.xor, lambda builder, a, b: builder.xor(a, b))
_operator(operator.mul, lambda builder, a, b: builder.mul(a, b))
_operator(operator.rshift, lambda builder, a, b: builder.lshr(a, b))


def _cast(bits, scalar):
    """A cast to unsigned integers of some bits, for vectors and for scalars."""

    @intrinsic
    def cast(typingctx, value):
        if not isinstance(value, Vector):
            return scalar(value), lambda context, builder, found, args: context.cast(builder, args[0], value, scalar)
        result = Vector(bits, value.count, value.lane)

        def emit(context, builder, found, args):
            (lanes,) = args
            if value.llvm != result.llvm:
                return (builder.zext if bits > value.bits else builder.trunc)(lanes, result.llvm)
            if bits > value.bits:  # LLVM multiplies the lower halves if it sees that the upper ones are 0
                return builder.and_(lanes, ir.Constant(result.llvm, [0xFFFFFFFF] * value.count))
            return lanes

        return result(value), emit

    return cast


CASTS = {"uint32": _cast(32, types.uint32), "uint64": _cast(64, types.uint64)}
"""The casts of formulas, for `formulas.compiled`."""


def consecutive(vector, step):
    """A compiled function of an integer: the vector of it, it + step, it + 2 * step, ..."""

    @intrinsic
    def count(typingctx, first):
        def emit(context, builder, found, args):
            steps = ir.Constant(vector.llvm, [step * i for i in range(vector.count)])
            return builder.add(_spread(builder, args[0], vector.llvm), steps)

        return vector(types.uint64), emit

    return count


@intrinsic
def store_chunks(typingctx, target, w0, w1, w2, w3):
    """Write four vectors of words to a pointer, chunk after chunk: w0[0], w1[0], w2[0], w3[0], w0[1], ..."""
    step = w0.lane // 32

    def emit(context, builder, found, args):
        pointer, *words = args
        words = [builder.bitcast(word, ir.VectorType(I32, w0.count * step)) for word in words]
        pairs = [_interleaved(builder, *two, step) for two in (words[:2], words[2:])]
        chunks = _interleaved(builder, *(builder.bitcast(pair, ir.VectorType(I64, w0.count)) for pair in pairs))
        builder.store(chunks, builder.bitcast(pointer, chunks.type.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(target, w0, w1, w2, w3), emit


def _interleaved(builder, a, b, step=1):
    """a[0], b[0], a[step], b[step], ...

    This is a shuffle even where it could be arithmetic on lanes. With arithmetic, LLVM multiplies twice: once with the
    upper halves of the lanes and once without.
    """
    count = a.type.count
    order = [i for lane in range(0, count, step) for i in (lane, count + lane)]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))
