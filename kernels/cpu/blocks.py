"""Copies between rectangles of arrays with any strides and contiguous buffers, for compiled functions."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gpudrop.kernels.cpu.memory import LINE, at, itemsize
from gpudrop.kernels.host_math import inner

ROW = 16  # bytes per row of a square that is transposed in registers
STRIP = 64  # elements in each of which a transposition reads or writes another cache line: they stay in the L1 cache


@intrinsic
def _transpose_square(typingctx, source, apart, target, target_apart):
    """target[r * target_apart + c] = source[c * apart + r], for r and c below the number of elements in a row."""
    count = ROW * 8 // source.dtype.bitwidth

    def emit(context, builder, signature, args):
        source, apart, target, target_apart = args
        row = ir.VectorType(source.type.pointee, count)

        def pointer(first, apart, number):
            return builder.bitcast(builder.gep(first, [builder.mul(apart, apart.type(number))]), row.as_pointer())

        rows = [builder.load(pointer(source, apart, k), align=1) for k in range(count)]
        # A step interleaves each row of the first half with one of the second half. log2(count) steps transpose.
        order = [i for k in range(count) for i in (k, count + k)]
        halves = [ir.Constant(ir.VectorType(ir.IntType(32), count), part) for part in (order[:count], order[count:])]
        for _ in range(count.bit_length() - 1):
            pairs = zip(rows[: count // 2], rows[count // 2 :], strict=True)
            rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
        for k, value in enumerate(rows):
            builder.store(value, pointer(target, target_apart, k), align=1)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), emit


@inner()
def transpose(source, apart, target, target_apart, rows, columns, by_columns):
    """target[r * target_apart + c] = source[c * apart + r]; by_columns: the order of the squares."""
    count = ROW // itemsize(source)
    down, across = rows // count * count, columns // count * count
    slow, fast = (across, down) if by_columns else (down, across)
    for first in range(0, fast, STRIP):
        for i in range(0, slow, count):
            for j in range(first, min(first + STRIP, fast), count):
                r, c = (j, i) if by_columns else (i, j)
                _transpose_square(at(source, c * apart + r), apart, at(target, r * target_apart + c), target_apart)
    for r in range(rows):
        for c in range(across if r < down else 0, columns):
            target[r * target_apart + c] = source[c * apart + r]


@intrinsic
def _every_other(typingctx, source, target):
    """Fill a cache line of the target with every other element of the source. One element more is read."""
    count = LINE * 8 // source.dtype.bitwidth

    def emit(context, builder, signature, args):
        line = ir.VectorType(args[0].type.pointee, count)
        source, more, target = (
            builder.bitcast(pointer, line.as_pointer())
            for pointer in (args[0], builder.gep(args[0], [ir.IntType(64)(count)]), args[1])
        )
        even = ir.Constant(ir.VectorType(ir.IntType(32), count), [2 * k for k in range(count)])
        elements = builder.shuffle_vector(builder.load(source, align=1), builder.load(more, align=1), even)
        builder.store(elements, target, align=1)
        return context.get_dummy_value()

    return types.void(source, target), emit


@inner()
def load(source, steps, r, c, buffer, width, rows, columns):
    """buffer[i * width + j] = source[(r + i) * steps[0] + (c + j) * steps[1]]"""
    down, across = steps
    first = at(source, r * down + c * across)
    if down == 1:  # one cache line after the other
        transpose(first, across, buffer, width, rows, columns, True)
        return
    vector = LINE // itemsize(source)
    for i in range(rows):
        row, line, done = at(first, i * down), at(buffer, i * width), 0
        if across == 2:  # LLVM would load each element
            while done + vector < columns:
                _every_other(at(row, 2 * done), at(line, done))
                done += vector
        for j in range(done, columns):
            line[j] = row[j * across]


@inner()
def store(buffer, width, target, steps, r, c, rows, columns):
    """target[(r + i) * steps[0] + (c + j) * steps[1]] = buffer[i * width + j]"""
    down, across = steps
    first = at(target, r * down + c * across)
    if down == 1:
        transpose(buffer, width, first, across, columns, rows, False)
        return
    for i in range(rows):
        line, row = at(buffer, i * width), at(first, i * down)
        for j in range(columns):
            row[j * across] = line[j]
