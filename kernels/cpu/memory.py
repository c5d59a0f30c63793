"""Pointers, buffers on the stack, prefetches and streaming stores, for compiled functions.

Kernels use pointers rather than Numba's arrays: slices of arrays are counted references, which cost as much as
computing a hundred elements.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpudrop.kernels.host_math import inner

LINE = 64  # bytes per cache line


@intrinsic
def pointers(typingctx, arrays):
    """The pointers to the first elements of a tuple of arrays."""
    found = types.Tuple([types.CPointer(array.dtype) for array in arrays.types])

    def emit(context, builder, signature, args):
        members = zip(arrays.types, cgutils.unpack_tuple(builder, args[0], arrays.count), strict=True)
        data = [context.make_array(array)(context, builder, member).data for array, member in members]
        return context.make_tuple(builder, found, data)

    return found(arrays), emit


@intrinsic
def steps(typingctx, arrays):
    """The distances of neighbours along the axes of each array in a tuple, in elements."""
    found = types.UniTuple(types.UniTuple(types.int64, arrays.dtype.ndim), arrays.count)

    def emit(context, builder, signature, args):
        size = ir.IntType(64)(arrays.dtype.dtype.bitwidth // 8)
        members = []
        for member in cgutils.unpack_tuple(builder, args[0], arrays.count):
            strides = context.make_array(arrays.dtype)(context, builder, member).strides
            strides = cgutils.unpack_tuple(builder, strides, arrays.dtype.ndim)
            members.append(context.make_tuple(builder, found.dtype, [builder.sdiv(n, size) for n in strides]))
        return context.make_tuple(builder, found, members)

    return found(arrays), emit


@intrinsic
def itemsize(typingctx, pointer):
    """The size in bytes of the element that a pointer points to."""
    size = pointer.dtype.bitwidth // 8
    return types.int64(pointer), lambda context, builder, signature, args: ir.IntType(64)(size)


@intrinsic
def at(typingctx, pointer, index):
    """The pointer to element number `index`."""
    return pointer(pointer, index), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


@intrinsic
def address(typingctx, pointer):
    """The address as an integer."""
    return types.int64(pointer), lambda context, builder, signature, args: builder.ptrtoint(args[0], ir.IntType(64))


def buffer(of, count, *arguments):
    """What an intrinsic returns that allocates `count` elements of a Numba type on the stack of its caller.

    The buffer is aligned to a cache line and not initialised. arguments: the types of the intrinsic's arguments.
    """
    pointer = types.CPointer(of)
    return pointer(*arguments), lambda context, builder, signature, args: _allocated(context, builder, of, count)


def buffers(of, count, *arguments):
    """As `buffer`, for a tuple of buffers: one for each of the Numba types in a list."""
    found = types.Tuple([types.CPointer(each) for each in of])

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, found, [_allocated(context, builder, each, count) for each in of])

    return found(*arguments), emit


def _allocated(context, builder, of, count):
    memory = cgutils.alloca_once(builder, ir.ArrayType(context.get_data_type(of), count))
    memory.align = LINE
    return builder.bitcast(memory, context.get_value_type(types.CPointer(of)))


def prefetcher(level):
    """A compiled function that prefetches the cache line of a pointer to a level of the caches, 1 or 2.

    Any pointer is allowed, because a prefetch never faults.
    """

    @intrinsic
    def prefetch(typingctx, pointer):
        def emit(context, builder, signature, args):
            byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
            function_type = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
            function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
            read, locality, of_data = i32(0), i32(4 - level), i32(1)
            builder.call(function, [builder.bitcast(args[0], byte), read, locality, of_data])
            return context.get_dummy_value()

        return types.void(pointer), emit

    return prefetch


def _line_copier(streamed):
    """A compiled function that copies a cache line, also to one that overlaps it.

    If streamed, past the caches, and to an aligned pointer.
    """

    @intrinsic
    def copy_line(typingctx, source, target):
        def emit(context, builder, signature, args):
            line = ir.VectorType(ir.IntType(32), LINE // 4)
            source, target = (builder.bitcast(pointer, line.as_pointer()) for pointer in args)
            store = builder.store(builder.load(source, align=1), target, align=LINE if streamed else 1)
            if streamed:
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.void(source, target), emit

    return copy_line


_copy_line, _stream_line = _line_copier(False), _line_copier(True)


@intrinsic
def copy(typingctx, source, target, count):
    """Copy `count` elements to memory that does not overlap."""

    def emit(context, builder, signature, args):
        source, target, count = args
        cgutils.raw_memcpy(builder, target, source, count, context.get_abi_sizeof(source.type.pointee))
        return context.get_dummy_value()

    return types.void(source, target, types.int64), emit


@inner()
def stream(buffer, target, first, count, begin, end):
    """Write `count` elements of a buffer to target[first:], past the caches where whole cache lines are written.

    Then the processor need not read lines that it is about to overwrite. Consecutive calls with one buffer write
    target[begin:end]. An incomplete line at the end of a call waits for the next call, in the line before the buffer.
    """
    line, last = LINE // itemsize(buffer), first + count
    head = begin + (-address(at(target, begin)) & (LINE - 1)) // itemsize(buffer)
    tail = end - (address(at(target, end)) & (LINE - 1)) // itemsize(buffer)  # whole lines: target[head:tail]
    start = min(max(head, first), last)
    copy(buffer, at(target, first), start - first)
    i = start - (start - head & (line - 1))
    while i + line <= min(last, tail):
        _stream_line(at(buffer, i - first), at(target, i))
        i += line
    start = min(max(tail, start), last)
    copy(at(buffer, start - first), at(target, start), last - start)
    _copy_line(at(buffer, count - line), at(buffer, -line))


def wide(bits):
    """A compiled function that makes LLVM use registers of `bits` bits in the loops of its caller."""

    @intrinsic
    def prefer(typingctx):
        def emit(context, builder, signature, args):
            # llvmlite's own `add` knows only attributes without a value. LLVM's default for Intel is 256.
            set.add(builder.function.attributes, f'"prefer-vector-width"="{bits}"')
            return context.get_dummy_value()

        return types.void(), emit

    return prefer
