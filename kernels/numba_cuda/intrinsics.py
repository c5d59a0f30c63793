"""The LLVM and PTX of Numba's CUDA kernels: wide accesses, arrays from addresses, conversions and single instructions.

No other file uses Numba's internals. `simulator` has the same names for the CUDA simulator.
"""

import functools
import math

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic, lower_builtin, type_callable

from gpudrop.formulas import MATH, philox
from gpudrop.kernels import device_math, half

I32, I64 = ir.IntType(32), ir.IntType(64)
LOG2_E = np.float32(math.log2(math.e))

device = functools.partial(cuda.jit, device=True, inline="always")


# A wide access is a vector of 32-bit words; shifts extract the elements. NVVM would split vectors of 16-bit elements.


def pointer(context, builder, kind, array, index):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def each_lane(context, builder, width, kind, lanes, j):
    """For each element of an access: its address, the index of its first word, its shift in that word, and its bits."""
    bits = kind.dtype.bitwidth
    first = pointer(context, builder, kind, lanes, j)
    for k in range(8 * width // bits):
        yield builder.gep(first, [I32(k)]), I32(k * bits // 32), k * bits % 32, bits


def vector_access(width):
    """load(array, i, lanes, j) and store(lanes, j, array, i): `width` bytes of global memory as one access."""
    return vector_load(width), vector_store(width)


def vector_load(width):
    words = ir.VectorType(I32, width // 4)

    @intrinsic
    def load(typingctx, array, i, lanes, j):
        def codegen(context, builder, signature, values):
            address = builder.bitcast(pointer(context, builder, array, *values[:2]), words.as_pointer())
            loaded = builder.load(address, align=width)
            for target, word, shift, bits in each_lane(context, builder, width, lanes, *values[2:]):
                element = builder.extract_element(loaded, word)
                if bits == 64:
                    high = builder.extract_element(loaded, I32(word.constant + 1))
                    high = builder.shl(builder.zext(high, I64), I64(32))
                    element = builder.or_(builder.zext(element, I64), high)
                elif bits < 32:
                    element = builder.trunc(builder.lshr(element, I32(shift)), ir.IntType(bits))
                builder.store(builder.bitcast(element, target.type.pointee), target)
            return context.get_dummy_value()

        return types.void(array, types.int64, lanes, types.int64), codegen

    return load


def vector_store(width):
    words = ir.VectorType(I32, width // 4)

    @intrinsic
    def store(typingctx, lanes, j, array, i):
        def codegen(context, builder, signature, values):
            gathered = [I32(0)] * (width // 4)
            for address, word, shift, bits in each_lane(context, builder, width, lanes, *values[:2]):
                element = builder.bitcast(builder.load(address), ir.IntType(bits))
                if bits == 64:
                    gathered[word.constant + 1] = builder.trunc(builder.lshr(element, I64(32)), I32)
                    element = builder.trunc(element, I32)
                elif bits < 32:
                    element = builder.shl(builder.zext(element, I32), I32(shift))
                gathered[word.constant] = builder.or_(gathered[word.constant], element)
            vector = ir.Constant(words, ir.Undefined)
            for k, word in enumerate(gathered):
                vector = builder.insert_element(vector, word, I32(k))
            address = builder.bitcast(pointer(context, builder, array, *values[2:]), words.as_pointer())
            builder.store(vector, address, align=width)
            return context.get_dummy_value()

        return types.void(lanes, types.int64, array, types.int64), codegen

    return store


@intrinsic
def flat(typingctx, pointer):
    """A contiguous array of unknown size at an address."""
    kind = types.Array(pointer.dtype, 1, "C")

    def codegen(context, builder, signature, values):
        array = context.make_array(kind)(context, builder)
        array.data = builder.bitcast(values[0], array.data.type)
        array.itemsize = I64(context.get_abi_sizeof(context.get_data_type(pointer.dtype)))
        array.strides = cgutils.pack_array(builder, [array.itemsize])
        return array._getvalue()

    return kind(pointer), codegen


@intrinsic
def aligned(typingctx, array, i, width):
    """Whether the address of array[i] is a multiple of `width` bytes."""

    def codegen(context, builder, signature, values):
        data = context.make_array(array)(context, builder, values[0]).data
        address = builder.ptrtoint(builder.gep(data, [values[1]]), I64)
        mask = builder.sub(values[2], I64(1))
        return builder.icmp_unsigned("==", builder.and_(address, mask), I64(0))

    return types.boolean(array, types.int64, types.int64), codegen


@device
def exchanged(value, distance):
    """The value of the thread whose lane differs from this one's in the bit `distance`."""
    return np.uint32(cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), np.int32(value), np.int32(distance)))


@device
def set_bits(words, i, bits):
    """Set bits of a word, which other threads may change at the same time."""
    cuda.atomic.or_(words, i, bits)


@functools.cache
def conversions(native):
    """The conversions by dtype. native: whether the GPU has an instruction that converts to bfloat16."""
    native = half.ptx_narrow_bfloat16 if native else None
    return half.conversions(intrinsic, types, device, half.ptx_widen, half.ptx_narrow, native)


def instruction(text, constraints):
    """The code of an instruction of two arguments. In its text $0 is the result, and $1 and $2 are the arguments."""

    def codegen(context, builder, signature, values):
        of = ir.FunctionType(context.get_value_type(signature.return_type), [value.type for value in values])
        return builder.asm(of, text, constraints, values, side_effect=False)

    return codegen


def assembly(codegen, result, *arguments):
    """An instruction as a function."""
    return intrinsic(lambda typingctx, a, b: (result(*arguments), codegen))


from_bits = {
    "float32": half.instruction(intrinsic, types.float32, types.int32, half.llvm_float32),
    "float64": half.instruction(intrinsic, types.float64, types.int64, half.llvm_float64),
}
exp2 = half.instruction(intrinsic, types.float32, types.float32, half.ptx_exp2)
reciprocal = half.instruction(intrinsic, types.float32, types.float32, half.ptx_reciprocal)
MATH_FUNCTIONS = {name: getattr(math, name) for name in MATH}
MATH_FUNCTIONS |= {"divide": device(lambda a, b: a / b), "exchanged": exchanged}
FAST_FUNCTIONS = {
    "exp": device(lambda x: exp2(x * LOG2_E)),
    "divide": device(lambda a, b: a * reciprocal(b)),  # LLVM removes a factor of 1
}
FAST_FORMULAS = {device_math.exp2: device(lambda x: exp2(x))}
# Given a 64-bit product, the PTX compiler would add instructions for the upper halves, which are 0.
wide = instruction("mul.wide.u32 $0, $1, $2;", "=l,r,r")
multiply = assembly(wide, types.uint64, types.uint32, types.uint32)
OWN_FORMULAS = {philox.product: device(lambda a, b: multiply(a, b))}


def register_product(function):
    """Let a plain Python function of two uint32 be `multiply` in users' kernels."""
    type_callable(function)(lambda context: lambda a, b: types.uint64)
    lower_builtin(function, types.uint32, types.uint32)(wide)
