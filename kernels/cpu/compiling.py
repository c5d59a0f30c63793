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
from gpudrop.kernels.cpu import map as loop
from gpudrop.kernels.cpu import memory, processors, vectors
from gpudrop.kernels.host_math import jit
from gpudrop.uninterrupted import uninterrupted

# Besides its formula, a kernel depends on these sources, as they are at import, and on the processor.
_SOURCES = tuple(map(vars, (formulas, half, host_math, loop, memory, philox, processors, threads, vectors)))
_DEPENDENCIES = "".join(formulas.text_of(namespace["__file__"], namespace) for namespace in _SOURCES)
_DEPENDENCIES += str(cpu_target.target_context.codegen().magic_tuple()) + processors.NAME


@functools.cache
def entry(kernel):
    """The compiled kernel as Numba's entry point. It checks no types, so a call takes a third of the time."""
    if kernel.window:  # use the kernel without a window, which treats all elements as one row
        source, name = kernel.source._replace(window=False), kernel.name.removesuffix("_window")
        return entry(kernel._replace(name=name, source=source))
    function, signature = specialised(kernel)
    dispatcher, fault = when_compiled(lambda: _compiled(function, signature))
    # Warn once per process. Python alone would not: Numba resets the record of shown warnings as it compiles.
    if fault and not _faults:
        _faults.append(fault)
        advice = "every process compiles the kernels again; set NUMBA_CACHE_DIR to a writable folder"
        warnings.warn(f"Numba's cache can't be used ({fault}): {advice}", RuntimeWarning, stacklevel=2)
    return dispatcher.get_compile_result(signature).entry_point


_faults: list[Exception] = []


def _compiled(function, signature):
    """Numba's dispatcher, and the error of its cache or None."""
    dispatcher, fault = jit()(function), None
    try:
        dispatcher.enable_caching()
        dispatcher.compile(signature)
    except Exception as error:  # no cache folder, a full disk, a damaged file; or the formula, which fails again
        fault = error
        if not dispatcher.overloads:
            dispatcher = jit()(function)
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


def specialised(kernel):
    """`loop.run` for one kernel, and its signature.

    The function has its own name and one signature, so it has its own cache files. Numba does not lock cache files:
    if two processes compile different signatures of one function at once, one may load the other's code.
    """
    digest = hashlib.sha256((formulas.parse(kernel.formula).digest + _DEPENDENCIES).encode()).hexdigest()[:20]
    name = f"{kernel.name}_{kernel.dtype}_{digest}"
    loop.KERNELS[name] = kernel
    function = FunctionType(loop.run.__code__, vars(loop), name)
    function.__qualname__ = name
    storage, drawn, limit, real = map(
        loop.numba_dtype,
        (kernel.storage, _mask_dtype(kernel), loop.FIELD[kernel.bits], kernel.real),
    )
    source, target = types.Array(storage, 1, "C", readonly=True), types.Array(storage, 1, "C")
    operands = types.UniTuple(source, kernel.num_inputs), types.UniTuple(target, len(kernel.outputs))
    mask = types.Array(drawn, 1, "C", readonly=True)
    numbers = (
        types.int64,
        types.int64,
        types.boolean,
        *(types.uint64,) * 3,
        types.int64,
        types.uint64,
        *(types.int64,) * 3,
    )
    return function, types.void(loop.KernelType(name), limit, real, real, *operands, mask, *numbers)


def _mask_dtype(kernel):
    return loop.drawn_dtype(kernel) if kernel.masked else kernel.storage
