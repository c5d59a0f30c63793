"""Compiling the CPU kernels, and Numba's cache of them on disk."""

import atexit
import functools
import hashlib
import os
import warnings
from types import FunctionType

from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from gpudrop import formulas
from gpudrop.formulas import philox
from gpudrop.kernels import half, host_math, threads
from gpudrop.kernels.cpu import bits, blocks, memory, processors, vectors
from gpudrop.kernels.cpu import map as loop
from gpudrop.kernels.host_math import jit
from gpudrop.uninterrupted import uninterrupted

# Besides its formula, the code of a kernel depends on these sources, as they are at import, and on the processor.
# The other modules of this package run in Python.
_SOURCES = tuple(
    map(vars, (formulas, half, host_math, bits, blocks, loop, memory, philox, processors, threads, vectors))
)
_DEPENDENCIES = "".join(formulas.text_of(namespace["__file__"], namespace) for namespace in _SOURCES)
_DEPENDENCIES += str(cpu_target.target_context.codegen().magic_tuple()) + processors.NAME


@functools.cache
def entry(kernel, rows=False):
    """The compiled kernel as Numba's entry point. It checks no types, so a call takes a third of the time.

    rows: whether it takes two-dimensional arrays with any strides: see `map.run_rows`.
    """
    if kernel.window:  # use the kernel without a window, which treats all elements as one row
        source, name = kernel.source._replace(window=False), kernel.name.removesuffix("_window")
        plain = kernel._replace(name=name, source=source)
        return entry(plain, True) if rows else entry(plain)
    function, signature = specialised(kernel, rows)
    dispatcher, fault = when_compiled(lambda: _compiled(function, signature))
    # Warn once per process. Python alone would not: Numba resets the record of shown warnings as it compiles.
    if fault and not _faults:
        _faults.append(fault)
        advice = "every process compiles the kernels again; set NUMBA_CACHE_DIR to a writable folder"
        warnings.warn(f"Numba's cache can't be used ({fault}): {advice}", RuntimeWarning, stacklevel=2)
    return dispatcher.get_compile_result(signature).entry_point


_faults: list[Exception] = []


compiled = jit(no_cfunc_wrapper=True)
"""Compiles a kernel, without the entry point for C."""


def _compiled(function, signature):
    """Numba's dispatcher, and the error of its cache or None."""
    dispatcher, fault = compiled(function), None
    try:
        dispatcher.enable_caching()
        dispatcher.compile(signature)
    except Exception as error:  # no cache folder, a full disk, a damaged file; or the formula, which fails again
        fault = error
        if not dispatcher.overloads:
            dispatcher = compiled(function)
            dispatcher.compile(signature)
    return dispatcher, fault


def when_compiled(compiling):
    """Call compiling() without interrupts: one could leave Numba unable to compile ever again."""
    # If this thread holds the compiler's lock, another thread would wait for it forever.
    return compiling() if global_compiler_lock.is_locked() else uninterrupted(compiling)


@atexit.register
def _finish():
    # A compilation may still be running after an interrupt. Wait for it before LLVM is shut down.
    with global_compiler_lock:
        pass


if hasattr(os, "register_at_fork"):  # a child could never compile if another thread held the lock at the fork
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


def specialised(kernel, rows=False):
    """`map.run` or `map.run_rows` for one kernel, and its signature.

    The function has its own name and one signature, so it has its own cache files. Numba does not lock cache files:
    if two processes compile different signatures of one function at once, one may load the other's code.
    """
    digest = hashlib.sha256((formulas.parse(kernel.formula).digest + _DEPENDENCIES).encode()).hexdigest()[:20]
    code, name = (loop.run_rows.__code__, "_rows") if rows else (loop.run.__code__, "")
    function = FunctionType(code, vars(loop), f"{kernel.name}{name}_{kernel.dtype}_{digest}")
    function.__qualname__ = function.__name__
    loop.KERNELS[function.__name__] = kernel
    drawn, limit, real = map(loop.numba_dtype, (loop.drawn_dtype(kernel), loop.FIELD[kernel.bits], kernel.real))
    read, written = (list(map(loop.numba_dtype, storages)) for storages in kernel.storages)

    def array(dtype, readonly=False):
        return types.Array(dtype, 1, "C", readonly=readonly)

    layout = {"ndim": 2, "layout": "A"} if rows else {}
    sources = types.Tuple([array(of, True).copy(**layout) for of in read[: kernel.num_inputs]])
    targets = types.Tuple([array(of).copy(**layout) for of in written])
    any_dtype = (written or read)[0]
    mask = array(drawn if kernel.masked else any_dtype, True)
    number, natural = types.int64, types.uint64
    mapping = (*(natural,) * 3, *(() if rows else (number,)), natural, *(number,) * 3)
    if rows:
        others, block = (), (array(any_dtype), array(drawn), number, number, types.boolean)
    else:
        others = [array(of, True) for of in read[kernel.num_inputs :]]
        others += [array(types.uint8)] * (kernel.reads_bits + kernel.writes_bits) + [array(real)] * kernel.num_sums
        others, block = (types.Tuple(others), number), (number, number)
    return function, types.void(
        loop.KernelType(function.__name__), limit, real, real, sources, targets, *others, mask, *block, types.boolean,
        *mapping,
    )  # fmt: skip
