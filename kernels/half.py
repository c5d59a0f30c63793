"""16-bit floats as their bits: conversions for Numba's targets. Numba has no arrays of 16-bit floats on the CPU."""

import platform

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir

I16, I32, F32, HALF = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.HalfType()


def llvm_widen(builder, value):
    return builder.fpext(builder.bitcast(value, HALF), F32)


def llvm_narrow(builder, value):
    return builder.bitcast(builder.fptrunc(value, HALF), I16)


def llvm_float32(builder, value):
    return builder.bitcast(value, F32)


def llvm_float64(builder, value):
    return builder.bitcast(value, ir.DoubleType())


def _ptx(text, constraints, result, argument):
    """A function that emits a PTX instruction of one argument. In its text $0 is the result, and $1 the argument."""
    of = ir.FunctionType(result, [argument])
    return lambda builder, value: builder.asm(of, text, constraints, [value], side_effect=False)


# The GPU uses PTX instructions. Given LLVM's own conversions, NVVM moves arithmetic into half precision, where it does
# not support all operations.
ptx_widen = _ptx("cvt.f32.f16 $0, $1;", "=f,h", F32, I16)
ptx_narrow = _ptx("cvt.rn.f16.f32 $0, $1;", "=h,f", I16, F32)
ptx_narrow_bfloat16 = _ptx("cvt.rn.bf16.f32 $0, $1;", "=h,f", I16, F32)
ptx_exp2 = _ptx("ex2.approx.ftz.f32 $0, $1;", "=f,f", F32, F32)
ptx_reciprocal = _ptx("rcp.approx.ftz.f32 $0, $1;", "=f,f", F32, F32)


def host_instructions():
    """LLVM's conversions if the CPU has instructions for them. Otherwise they would be calls that do not link."""
    features = llvmlite.binding.get_host_cpu_features().flatten()
    if numba.config.CPU_FEATURES is not None:
        features = numba.config.CPU_FEATURES
    lacking = platform.machine() in ("x86_64", "AMD64", "i686") and "+f16c" not in features
    return (None, None) if lacking else (llvm_widen, llvm_narrow)


def instruction(intrinsic, result, argument, emit):
    """An intrinsic of one argument, from a function that emits its LLVM code."""

    def typed(typingctx, value):
        return result(argument), lambda context, builder, signature, values: emit(builder, values[0])

    return intrinsic(typed)


def bitcasts(intrinsic, types):
    """Two intrinsics: from a float32 to its bits as a uint32, and back."""
    return (
        instruction(intrinsic, types.uint32, types.float32, lambda builder, value: builder.bitcast(value, I32)),
        instruction(intrinsic, types.float32, types.uint32, llvm_float32),
    )


def conversions(intrinsic, types, decorate, widen, narrow, narrow_bfloat16=None):
    """{dtype: (widen, narrow)}: from a stored element to the arithmetic type, and back, rounded to nearest even.

    Parameters
    ----------
    intrinsic, types, decorate
        Of the target: numba.extending.intrinsic, numba.types and a jit, or those of numba.cuda.
    widen, narrow
        Functions that emit the target's conversions of float16. With None they use integer arithmetic.
    narrow_bfloat16
        The same for bfloat16.
    """
    bits, unbits = bitcasts(intrinsic, types)
    return table(
        bits=bits,
        unbits=unbits,
        widen_half=widen and instruction(intrinsic, types.float32, types.uint16, widen),
        narrow_half=narrow and instruction(intrinsic, types.uint16, types.float32, narrow),
        narrow_brain=narrow_bfloat16 and instruction(intrinsic, types.uint16, types.float32, narrow_bfloat16),
        decorate=decorate,
    )


def table(bits, unbits, widen_half, narrow_half, narrow_brain, decorate):
    """The conversions of every dtype, built from those that depend on the processor."""

    @decorate
    def widen_float16(stored):
        magnitude = np.uint32(np.uint32(stored & np.uint16(0x7FFF)) << np.uint32(13))
        # The float with these bits is too small by a power of two, subnormals included.
        scaled = bits(np.float32(unbits(magnitude) * np.float32(2.0**112)))
        special = np.uint32(magnitude | np.uint32(0x7F800000))
        sign = np.uint32(np.uint32(stored & np.uint16(0x8000)) << np.uint32(16))
        return unbits(np.uint32((special if magnitude >= np.uint32(0x0F800000) else scaled) | sign))

    @decorate
    def narrow_float16(value):
        u = bits(value)
        magnitude = np.uint32(u & np.uint32(0x7FFFFFFF))
        odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
        rounded = np.uint32(np.uint64(magnitude) + np.uint64(np.uint32(0xFFF) + odd))
        normal = np.uint32(np.uint32(max(rounded, np.uint32(0x38000000)) - np.uint32(0x38000000)) >> np.uint32(13))
        # Adding 0.5 rounds a subnormal, whose unit is 2**-24, into the lowest bits.
        small = min(magnitude, np.uint32(0x38800000))
        subnormal = np.uint32(bits(np.float32(unbits(small) + np.float32(0.5))) - np.uint32(0x3F000000))
        result = subnormal if magnitude < np.uint32(0x38800000) else min(normal, np.uint32(0x7C00))
        result = result if value == value else np.uint32(0x7E00)
        return np.uint16(np.uint32(result) | np.uint32(np.uint32(u >> np.uint32(16)) & np.uint32(0x8000)))

    @decorate
    def widen_bfloat16(stored):
        return unbits(np.uint32(np.uint32(stored) << np.uint32(16)))

    @decorate
    def narrow_bfloat16(value):
        u = bits(value)
        odd = np.uint32(np.uint32(u >> np.uint32(16)) & np.uint32(1))
        # In 64 bits, so that plain NumPy scalars do not warn of an overflow.
        rounded = np.uint32(np.uint64(u) + np.uint64(np.uint32(0x7FFF) + odd))
        quiet_nan = np.uint32(u | np.uint32(0x400000))
        return np.uint16((rounded if value == value else quiet_nan) >> np.uint32(16))

    @decorate
    def same_float32(value):
        return np.float32(value)

    @decorate
    def same_float64(value):
        return np.float64(value)

    @decorate
    def to_uint8(value):
        return np.uint8(value)

    return {
        "float16": (
            decorate(lambda stored: widen_half(stored)) if widen_half else widen_float16,
            decorate(lambda value: narrow_half(value)) if narrow_half else narrow_float16,
        ),
        "bfloat16": (
            widen_bfloat16,
            decorate(lambda value: narrow_brain(value)) if narrow_brain else narrow_bfloat16,
        ),
        "float32": (same_float32, same_float32),
        "float64": (same_float64, same_float64),
        "bool": (same_float32, to_uint8),
    }


def numpy_conversions(decorate):
    """`conversions` in plain NumPy, for the CUDA simulator."""
    return table(
        bits=lambda value: np.float32(value).view(np.uint32),
        unbits=lambda stored: np.uint32(stored).view(np.float32),
        widen_half=lambda stored: np.float32(np.uint16(stored).view(np.float16)),
        narrow_half=lambda value: np.float16(value).view(np.uint16),
        narrow_brain=None,
        decorate=decorate,
    )
