"""Host kernels: one loop that Numba compiles per fusion, shared out to threads in slices.

A slice is done in blocks that stay in the first-level cache: `_fill` draws the words of a block into a
buffer, then `_apply` runs the element formula over it. Each of the two loops vectorises, while one
loop doing both would not.
"""

import contextlib
import functools
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import numba
import numpy as np
from numba import njit, types
from numba.core.pythonapi import NativeValue
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, overload, register_model, unbox

from gpudrop import formulas, random_bits
from gpudrop.formulas import compiled
from gpudrop.kernels import half, host_math

BLOCK = 4096  # elements whose words and data stay in a 32 KiB cache together
SLICE = 1 << 17  # elements that a thread takes at a time; fewer are done by the caller alone

jit = functools.partial(njit, nogil=True, error_model="numpy", fastmath={"contract"})
# Functions that kernels alone call need no entry from Python, a fifth of the time of compiling them.
inner = functools.partial(jit, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def unavailable():
    return None


def devices():
    return [f"{numba.get_num_threads()} host threads"]


# A fusion is passed to the kernel as an argument whose Numba type selects the element formula: a kernel
# that closed over the formula would never be found again in Numba's disk cache. The cache stores the
# type, so it is only a name, and the fusion is found by it.
class FusionType(types.Dummy):
    pass


register_model(FusionType)(models.OpaqueModel)


@unbox(FusionType)
def _unbox_fusion(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


class _Argument:
    def __init__(self, fusion, name):
        self._numba_type_ = FusionType(name)
        _fusions[name] = fusion


_fusions = {}


@functools.cache
def _surroundings():
    """What a kernel is made of beside its formula and this file, which Numba watches: sources and processor."""
    sources = [Path(module.__file__).read_text() for module in (formulas, half, host_math, random_bits)]
    return "".join([*sources, str(cpu_target.target_context.codegen().magic_tuple())])


@functools.cache
def _kernel(fusion, a_writable, b_writable):
    """`_run` for one fusion, and the argument that selects it.

    A function of its own name, with one signature, has cache files of its own. Numba doesn't lock them:
    processes that compile different signatures of one function at once may give one the other's code.
    """
    digest = hashlib.sha256((formulas.parse(fusion.element).digest + _surroundings()).encode()).hexdigest()[:20]
    name = f"{fusion.name}_{fusion.dtype}_{a_writable:d}{b_writable:d}_{digest}"
    function = FunctionType(_run.__code__, globals(), name)
    function.__qualname__ = name
    try:
        return jit(cache=True)(function), _Argument(fusion, name)
    except RuntimeError:  # no folder for the cache can be written to
        return jit()(function), _Argument(fusion, name)


_draw = compiled(random_bits.draw, np.float32, {}, inner())
_CONVERSIONS = half.conversions(intrinsic, types, inner(), *half.host_instructions())
_FIELD = {0: np.uint16, 8: np.uint8, 16: np.uint16, 32: np.uint32}


def element(fusion, field, limit, scale, a, b):
    """What is stored for one element; resolved by the fusion's type."""


@overload(element)
def _element(fusion, field, limit, scale, a, b):
    f = _fusions[fusion.name]
    formula = compiled(f.element, getattr(np, f.real), host_math.HOST_MATH[f.real], inner())
    widen, narrow = _CONVERSIONS[f.dtype]
    keep_all = f.bits == 0
    return lambda fusion, field, limit, scale, a, b: narrow(
        formula(keep_all or field > limit, scale, widen(a), widen(b))
    )


@jit()
def _fill(words, chunk, seed, call):
    for i in range(words.size // 4):
        w = _draw(seed, call, np.uint64(chunk + np.uint64(i)))
        words[4 * i] = w[0]
        words[4 * i + 1] = w[1]
        words[4 * i + 2] = w[2]
        words[4 * i + 3] = w[3]


@inner()
def _apply(fusion, fields, limit, scale, a, b, out):
    for i in range(out.size):
        out[i] = element(fusion, fields[i], limit, scale, a[i], b[i])


def _run(fusion, words, fields, limit, scale, a, b, out, lo, hi, start, seed, call):
    """out[lo:hi], with `words` as the buffer and `fields` as its view by field."""
    lanes = np.uint64(fields.size // (words.size // 4)) if words.size else np.uint64(1)
    for first in range(lo, hi, BLOCK):
        last = min(first + BLOCK, hi)
        shift = 0
        if words.size:
            m = np.uint64(start + np.uint64(first))
            shift = np.int64(m % lanes)
            chunks = (np.int64(last - first) + shift + np.int64(lanes) - 1) // np.int64(lanes)
            _fill(words[: 4 * chunks], m // lanes, seed, call)
        _apply(fusion, fields[shift:], limit, scale, a[first:last], b[first:last], out[first:last])


def random_bytes(stream, chunk, count):
    """The 16 * count random bytes of `count` chunks of a stream, from chunk number `chunk` on."""
    words = np.empty(4 * count, np.uint32)
    _fill(words, np.uint64(chunk), np.uint64(stream.seed), np.uint64(stream.call))
    return words.astype("<u4", copy=False).tobytes()


def launch(fusion, a, b, out, draw):
    a, b = _flat(fusion, a), _flat(fusion, b)
    target = _flat(fusion, out if out.flags.c_contiguous else np.empty(out.shape, out.dtype))
    limit, scale = _FIELD[fusion.bits](draw.limit), getattr(np, fusion.real)(draw.scale)
    start, seed, call = np.uint64(draw.start), np.uint64(draw.seed), np.uint64(draw.call)
    kernel, argument = _kernel(fusion, a.flags.writeable, b.flags.writeable)
    buffered = (BLOCK * fusion.bits // 128 + 1) * 4 if fusion.bits else 0

    def run(lo, hi):
        words = np.empty(buffered, np.uint32)
        fields = words.view(_FIELD[fusion.bits]) if buffered else _NO_FIELDS
        kernel(argument, words, fields, limit, scale, a, b, target, lo, hi, start, seed, call)

    _share_out(run, target.size)
    if not np.shares_memory(target, out):
        out[...] = target.view(out.dtype).reshape(out.shape)


_NO_FIELDS = np.zeros(BLOCK, np.uint16)


def _flat(fusion, array):
    """The elements in logical order, in the kernel's storage type; a copy if they don't lie so."""
    return np.require(array, requirements="CA").reshape(-1).view(fusion.storage)


def _share_out(run, size):
    """run(lo, hi) over [0, size) on as many threads as numba.get_num_threads() says.

    Python's threads, because the kernels hold no lock: unlike Numba's own layers they may be entered by
    many threads at once and survive a fork.
    """
    threads = min(numba.get_num_threads(), -(-size // SLICE))
    if threads <= 1:
        return run(0, size)
    starts = iter(range(0, size, SLICE))  # a range iterator hands each start out once, to any thread
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                lo = next(starts, None)
            if lo is None:
                return
            run(lo, min(lo + SLICE, size))

    helpers = []
    with contextlib.suppress(RuntimeError):  # at interpreter shutdown no thread starts any more
        for _ in range(threads - 1):
            helpers.append(_pool().submit(work))
    try:
        work()
    finally:
        for helper in helpers:
            # One that hasn't begun has nothing left to do.
            if not helper.cancel():
                helper.result()


@functools.cache
def _pool_of(process):
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gpudrop")


def _pool():
    # A forked child inherits the pool without its threads, so each process has its own.
    return _pool_of(os.getpid())
