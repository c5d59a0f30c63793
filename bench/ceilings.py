"""The fastest copy that is known here: a ceiling beside the plain one of `gpudrop.testing.benchmark.ceilings`.

It reads through software prefetches, computes into a buffer in the first-level cache, and writes from there around the
caches (non-temporal stores), which spares memory the reading of lines that are about to be overwritten. Which of the
two is faster depends on the processor.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from gpudrop.kernels.cpu import LINE, prefetch

BLOCK = 2048  # elements of a buffer


@intrinsic
def _stream(typingctx, source, i, target, j):
    """Write the line at source[i] to target[j] around the caches; both must begin a line."""

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
    """As the plain copy."""
    one = saved.ctypes.data == x.ctypes.data
    line = LINE // y.itemsize
    head = min(((-y.ctypes.data) % LINE) // y.itemsize, y.size)
    blocks = (y.size - head) // BLOCK
    _times(x[:head], saved[:head], s, y[:head], one)
    tail = head + blocks * BLOCK
    _times(x[tail:], saved[tail:], s, y[tail:], one)
    parts = 4 * numba.get_num_threads()
    for part in prange(parts):
        room = np.empty(BLOCK + line, y.dtype)
        skip = ((-room.ctypes.data) % LINE) // y.itemsize
        buffer = room[skip : skip + BLOCK]
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            at = head + block * BLOCK
            for i in range(at + BLOCK, at + 2 * BLOCK, line):
                prefetch(x, i)
                prefetch(saved, i)
            _times(x[at : at + BLOCK], saved[at : at + BLOCK], s, buffer, one)
            for i in range(0, BLOCK, line):
                _stream(buffer, i, y, at + i)
