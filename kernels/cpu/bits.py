"""Operands of one bit per element, for compiled functions: a block has one byte for each bit in a buffer.

Element e of an array is bit e % 8 of byte e // 8. A block may begin at any element. Its buffer begins with the element
at the beginning of the first byte.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpudrop.kernels.cpu.memory import at
from gpudrop.kernels.host_math import inner


def _conversion(emit):
    """Two compiled functions of a source and a target, which convert 64 elements and 8 elements."""

    def of(count):
        vector, flags = (ir.VectorType(ir.IntType(n), count) for n in (8, 1))
        word = ir.IntType(count)

        @intrinsic
        def convert(typingctx, source, target):
            def codegen(context, builder, signature, args):
                return emit(context, builder, *args, vector, flags, word)

            return types.void(source, target), codegen

        return convert

    return of(64), of(8)


def _emit_pack(context, builder, source, target, vector, flags, word):
    loaded = builder.load(builder.bitcast(source, vector.as_pointer()), align=1)
    are = builder.icmp_unsigned("!=", loaded, ir.Constant(vector, None))
    builder.store(builder.bitcast(are, word), builder.bitcast(target, word.as_pointer()), align=1)
    return context.get_dummy_value()


def _emit_unpack(context, builder, source, target, vector, flags, word):
    loaded = builder.load(builder.bitcast(source, word.as_pointer()), align=1)
    spread = builder.zext(builder.bitcast(loaded, flags), vector)
    builder.store(spread, builder.bitcast(target, vector.as_pointer()), align=1)
    return context.get_dummy_value()


_pack_64, _pack_8 = _conversion(_emit_pack)
_unpack_64, _unpack_8 = _conversion(_emit_unpack)


@inner()
def pack(flags, bits, first, count, is_last):
    """Write the bits of elements first to first + count. Bits of an incomplete last byte wait for the next block."""
    target, size, done = at(bits, first >> 3), (first & 7) + count, 0
    while done + 64 <= size:
        _pack_64(at(flags, done), at(target, done >> 3))
        done += 64
    if is_last:  # the unused bits are 0
        for j in range(size, (size + 7) & -8):
            flags[j] = 0
        size = (size + 7) & -8
    while done + 8 <= size:
        _pack_8(at(flags, done), at(target, done >> 3))
        done += 8
    for j in range(size - done):
        flags[j] = flags[done + j]


@inner()
def unpack(bits, flags, first, count):
    """Read the bits of elements first to first + count. Some elements after them in the last byte are read too."""
    source, size, done = at(bits, first >> 3), (first & 7) + count, 0
    while done + 64 <= size:
        _unpack_64(at(source, done >> 3), at(flags, done))
        done += 64
    while done < size:
        _unpack_8(at(source, done >> 3), at(flags, done))
        done += 8
