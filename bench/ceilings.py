"""The fastest copy that we know: a second ceiling beside the plain copy of `gpudrop.testing.benchmark.ceilings`.

It reads with software prefetches, computes into a buffer in the L1 cache, and writes the buffer with non-temporal
stores. These bypass the caches, so the processor need not read the lines that it is about to overwrite. The faster of
the two copies depends on the processor. Nothing here depends on gpudrop, which is measured against it.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64  # bytes per cache line
BLOCK = 2048  # elements of a buffer


@intrinsic
def _prefetch(typingctx, array, i):
    """Prefetch the cache line of array[i]. Any i is allowed, because a prefetch never faults."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        read, keep, of_data = i32(0), i32(3), i32(1)
        builder.call(function, [builder.bitcast(builder.gep(data, [args[1]]), byte), read, keep, of_data])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def _stream(typingctx, source, i, target, j):
    """Write the cache line at source[i] to target[j] by a non-temporal store; both must be aligned to a line."""

    def codegen(context, builder, signature, args):
        line = ir.VectorType(ir.IntType(32), LINE // 4)

        def address(array, index):
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            return builder.bitcast(builder.gep(data, [args[index]]), line.as_pointer())

        store = builder.store(builder.load(address(0, 1), align=LINE), address(2, 3), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@njit(fastmath=True)
def _times(x, saved, s, y, one):
    if one:
        for i in range(y.size):
            y[i] = x[i] * s
    else:
        for i in range(y.size):
            y[i] = x[i] * s + saved[i]


@njit(parallel=True, fastmath=True)
def streaming(x, saved, s, y):
    """Compute the result of the plain copy."""
    one = saved.ctypes.data == x.ctypes.data
    line = LINE // y.itemsize
    head = min(((-y.ctypes.data) % LINE) // y.itemsize, y.size)
    blocks = (y.size - head) // BLOCK
    _times(x[:head], saved[:head], s, y[:head], one)
    tail = head + blocks * BLOCK
    _times(x[tail:], saved[tail:], s, y[tail:], one)
    parts = 4 * numba.get_num_threads()
    for part in prange(parts):
        padded = np.empty(BLOCK + line, y.dtype)
        skip = ((-padded.ctypes.data) % LINE) // y.itemsize
        buffer = padded[skip : skip + BLOCK]
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            at = head + block * BLOCK
            for i in range(at + BLOCK, at + 2 * BLOCK, line):
                _prefetch(x, i)
                _prefetch(saved, i)
            _times(x[at : at + BLOCK], saved[at : at + BLOCK], s, buffer, one)
            for i in range(0, BLOCK, line):
                _stream(buffer, i, y, at + i)
