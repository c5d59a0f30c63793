"""gpudrop selftest: check that the backends on this machine draw the masks that the contract defines.

A case is a call of a function in this module with literals as arguments. A failed case can therefore be printed as a
line of Python. Results are compared with `gpudrop.testing.reference`, which shares no code with the kernels.
`gpudrop.testing.statistics` tests whether masks are random.

All cases run in one process. A first run mostly compiles CPU kernels, and Numba compiles one kernel at a time per
process. So other processes compile the kernels of later cases into Numba's cache. Results do not depend on them.
"""

import json
import math
import subprocess  # noqa: TID251  (it runs this Python alone)
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16)
import numpy as np
from numba.core.event import install_recorder

import gpudrop
from gpudrop import arrays, backends
from gpudrop.checks import check_writable
from gpudrop.formulas.activations import ACTIVATIONS
from gpudrop.kernels import threads
from gpudrop.testing import own_kernels, reference, statistics, ulps
from gpudrop.variants import FAMILY

PACKAGES = ("numpy", "numba", "scipy", "ml_dtypes")
SIZES = (0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 100, 257)
LARGE_SIZES = (1023, 1024, 1025, 2**16 - 1, 2**16 + 9, 2**21 + 3)  # near a CPU thread's tiles; for several threads
WIDER = {"float16": "float32", "bfloat16": "float32", "float32": "float64", "float64": "float64"}
SEED, CALL = 2**63 + 5, 2**40 + 3
LAYOUTS = {
    "Fortran order": lambda a: a,  # the array is created in that order, because a.T copies Numba's device arrays
    "every other column": lambda a: a[:, ::2],
    "from the second row on": lambda a: a[1:],
    "misaligned": lambda a: a.reshape(-1)[1:],
    "one column": lambda a: a[:, 3],
    "backwards": lambda a: a[::-1, ::-3],
    "repeated": lambda a: np.broadcast_to(a[0], (5, *a[0].shape)),
}
HOST_LAYOUTS = ("backwards", "repeated")  # Numba's device arrays do not support these
VARIANTS = {
    "dropout2d": (2, 5, 3, 7),
    "locked_dropout": (3, 4, 9),
    "dropblock2d": (2, 3, 12, 13),
    "alpha_dropout": (3, 101),
    "gaussian_dropout": (3, 101),
    "gaussian_noise": (3, 101),
    "uniform_dropout": (3, 101),
}
"""Name of a variant with its own kernels -> shape of the array in its case."""

SLOW = ("keep_rate", "small_calls", "call_bits", "place_bits")
"""Checks whose hundreds of launches take too long in the CUDA simulator."""

WAITING = ("small_calls", "launch_shapes")
"""Checks that wait for many small calls, and for which fewer elements are enough: see tests/unit/test_statistics.py."""


class Placed(statistics.Source):
    """A source that computes with one backend on one of its devices."""

    def __init__(self, backend, device=0):
        self.backend, self.device = backend, device

    def on_device(self):
        """Return a context manager that makes the device the current one."""
        return backends.load(self.backend).on_device(self.device)

    def put(self, array):
        return backends.of(self.backend, array)

    def get(self, array):
        return array if isinstance(array, np.ndarray) else arrays.to_host(array)

    def keep_mask(self, shape, p, seed=statistics.SEED, call=0, bits=16, start=0):
        with self.on_device():
            options = {"bits": bits, "start": start, "like": self.put(np.zeros(1, np.float32)), "backend": self.backend}
            return self.get(gpudrop.keep_mask(shape, p, gpudrop.Stream(seed, call), **options))

    def dropout(self, x, p, call=0, bits=16):
        with self.on_device():
            stream = gpudrop.Stream(statistics.SEED, call)
            return self.get(gpudrop.dropout(self.put(x), p, rng=stream, bits=bits, backend=self.backend))

    def both(self, function, x, *args, look=lambda a: a, **options):
        """Return y, and dx for dy = x; `look` creates the view of an array that is passed to the calls."""
        with self.on_device():
            placed = look(self.put(x))
            y, backprop = function.vjp(placed, *args, backend=self.backend, **options)
            return self.get(y), self.get(backprop(placed))


# The functions of the cases: each raises AssertionError with the difference that it found


def known_answer(backend, counter, key, words, device=0):
    """Masks match published Philox words: a field is kept at a threshold equal to it, and dropped one above."""
    source, (c0, c1, c2, c3) = Placed(backend, device), counter
    stream = {"seed": key[0] | key[1] << 32, "call": c2 | c3 << 32}
    for lane, word in enumerate(words):
        for above in (0, 1):
            mask = source.keep_mask(4, (word + above) / 2**32, **stream, bits=32, start=4 * (c0 | c1 << 32))
            assert mask[lane] == (not above), f"word {lane} is not {word:08x}"


def mask(backend, shape, p, seed, call, bits, start, device=0):
    """A mask equals the mask of the reference."""
    got = Placed(backend, device).keep_mask(shape, p, seed, call, bits, start)
    _same(got, reference.keep_mask(shape, p, seed, call, bits, start))


def backward(backend, dtype, bits, size, device=0):
    """Forward and backward use the reference's mask; at p = 1/2 and for powers of two every value is exact."""
    _doubled(Placed(backend, device), (2.0 ** (np.arange(size) % 7)).astype(dtype), bits)


def strides(backend, layout, dtype, rows=6, device=0):
    """The mask depends on the logical index, not on the memory layout. The CPU computes large arrays in tiles."""
    order: Any = "F" if layout == "Fortran order" else "C"
    x = (2.0 ** (np.arange(18 * rows) % 7)).reshape(rows, 18).astype(dtype, order)
    _doubled(Placed(backend, device), x, look=LAYOUTS[layout])


def shard(backend, dtype, whole, start, shape, device=0):
    """The mask of a shard is a part of the whole array's mask, forward and backward."""
    source, part = Placed(backend, device), tuple(slice(k, k + n) for k, n in zip(start, shape, strict=True))
    x = (2.0 ** (np.arange(math.prod(shape)) % 7)).astype(dtype).reshape(shape)
    want = np.where(reference.keep_mask(whole, 0.5, SEED, CALL)[part], x + x, x - x)
    options = {"rng": gpudrop.Stream(SEED, CALL), "shard": gpudrop.Shard(whole, start)}
    for got in source.both(gpudrop.dropout, x, 0.5, **options):
        _same(got, want)


def two_arrays(backend, dtype, size, device=0):
    """Kernels with two inputs and with two outputs: the value and the gradients of zoneout are exact."""
    source, x = Placed(backend, device), (2.0 ** (np.arange(size) % 7)).astype(dtype)
    previous, keep = -x[::-1].copy(), reference.keep_mask(size, 0.5, SEED, CALL)
    with source.on_device():
        arguments = source.put(x), source.put(previous), 0.5
        y, backprop = gpudrop.zoneout.vjp(*arguments, rng=gpudrop.Stream(SEED, CALL), backend=backend)
        dx, dprevious = backprop(source.put(x))
        _same(source.get(y), np.where(keep, x, previous))
        _same(source.get(dx), np.where(keep, x, x - x))
        _same(source.get(dprevious), np.where(keep, x - x, x))


def residual(backend, dtype, size, device=0):
    """The sum of a residual and dropout, and its gradients, are exact."""
    source, x = Placed(backend, device), (2.0 ** (np.arange(size) % 7)).astype(dtype)
    keep = reference.keep_mask(size, 0.5, SEED, CALL)
    with source.on_device():
        y, backprop = gpudrop.dropout_add.vjp(
            source.put(x), source.put(x), 0.5, rng=gpudrop.Stream(SEED, CALL), backend=backend
        )
        gradients = backprop(source.put(x))
        _same(source.get(y), np.where(keep, x + x + x, x))
        _same(source.get(gradients.dx), np.where(keep, x + x, x - x))
        _same(source.get(gradients.dresidual), x)


def neighbours(backend, dtype, wide, shape, device=0):
    """A bias, a gain and a residual, all gradients included, are exact. Sums of groups of rows have no remainder.

    wide: the dtype of the residual and of y.
    """
    source, columns = Placed(backend, device), np.arange(shape[1])
    x = (2.0 ** (np.arange(math.prod(shape)) % 3)).reshape(shape)
    bias, gain = 2.0 ** (columns % 2), 2.0 ** -(columns % 3)
    keep, z = reference.keep_mask(shape, 0.5, SEED, CALL), x + bias
    dx = np.where(keep, 2 * gain, 0.0)
    want = np.where(keep, x + 2 * gain * z, x), dx, dx.sum(0), np.where(keep, 2 * z, 0.0).sum(0)
    with source.on_device():
        residual, dy = (source.put(a.astype(wide)) for a in (x, np.ones(shape)))
        x, bias, gain = (source.put(a.astype(dtype)) for a in (x, bias, gain))
        options = {"bias": bias, "gain": gain, "rng": gpudrop.Stream(SEED, CALL), "backend": backend}
        y, backprop = gpudrop.dropout_add.vjp(x, residual, 0.5, **options)
        gradients = backprop(dy)
        _same(source.get(y), want[0].astype(wide))
        for got, exact in zip((gradients.dx, gradients.dbias, gradients.dgain), want[1:], strict=True):
            _same(source.get(got), exact.astype(dtype))


def gate(backend, dtype, shape, device=0):
    """The product of a gate and a value, and both gradients, are exact; also if one array contains both."""
    source, size = Placed(backend, device), math.prod(shape)
    gate, value = ((2.0 ** (np.arange(size) % k)).reshape(shape) for k in (3, 5))
    keep = reference.keep_mask(shape, 0.5, SEED, CALL)
    want = [np.where(keep, 2 * gate * by, 0.0).astype(dtype) for by in (value, gate)]
    options = {"activation": None, "rng": gpudrop.Stream(SEED, CALL), "backend": backend}
    with source.on_device():
        packed, gate, value = (source.put(a.astype(dtype)) for a in (np.concatenate([gate, value], -1), gate, value))
        y, backprop = gpudrop.dropout_glu.vjp(gate, value, 0.5, **options)
        for got, exact in zip((y, *backprop(gate)), (want[0], *want), strict=True):
            _same(source.get(got), exact)
        y, backprop = gpudrop.dropout_glu.vjp(packed, None, 0.5, **options)
        _same(source.get(y), want[0])
        _same(source.get(backprop(gate).dgate), np.concatenate(want, -1))


def saved_bits(backend, activation, dtype, size, device=0):
    """A backward pass that reads bits has the gradient of the formula. Before it, y is overwritten."""
    source, x = Placed(backend, device), (2.0 ** (np.arange(size) % 7) * (-1) ** (np.arange(size) // 3)).astype(dtype)
    keep = reference.keep_mask(size, 0.5, SEED, CALL)
    with source.on_device():
        y, backprop = gpudrop.dropout_vjp(
            source.put(x), 0.5, activation=activation, rng=gpudrop.Stream(SEED, CALL), backend=backend, save="bits"
        )
        value, slope = reference.ACTIVATIONS[activation]
        _within(activation, "value", source.get(y), np.where(keep, 2 * value(x.astype(np.float64)), 0), 0)
        gpudrop.dropout(source.put(x), 0.5, rng=gpudrop.Stream(0, 0), out=y, backend=backend)
        dx = source.get(backprop(source.put(np.ones_like(x))))
        _within(activation, "slope", dx, np.where(keep, 2 * slope(x.astype(np.float64)), 0), 0)


def packed_mask(backend, size, bits, device=0):
    """A packed mask has the bits of the reference's mask, and can be given to dropout."""
    source, stream, x = Placed(backend, device), gpudrop.Stream(SEED, CALL), np.ones(size, np.float32)
    want = reference.keep_mask(size, 0.5, SEED, CALL, bits)
    with source.on_device():
        packed = gpudrop.keep_mask(size, 0.5, stream, bits=bits, like=source.put(x), backend=backend, packed=True)
        _same(source.get(packed), np.packbits(want, bitorder="little"))
        y = gpudrop.dropout(source.put(x), 0.5, keep=packed, backend=backend)
        _same(source.get(y), np.where(want, x + x, x - x))


def own_kernel(backend, bits, start, device=0):
    """`gpudrop.device` has the reference's mask in a kernel that is written with it."""
    source, stream = Placed(backend, device), gpudrop.Stream(SEED, CALL)
    seed, call, threshold, _ = stream.arguments(0.4, bits)
    with source.on_device():
        kept = source.put(np.empty(100, np.uint8))
        own_kernels.kernel(backend)(kept, seed, call, threshold, np.uint64(start), bits)
        _same(source.get(kept) != 0, reference.keep_mask(100, 0.4, SEED, CALL, bits, start))


def values(backend, activation, dtype, size, device=0):
    """Values and derivatives are within the table of ulps; at p = 1/2 the scale is 2 and does not change rounding."""
    source, stream = Placed(backend, device), gpudrop.Stream(SEED, CALL)
    with source.on_device(), np.errstate(all="ignore"):
        x = ulps.samples(dtype, 50_000)
        x = x[np.isfinite(x.astype(np.float64))]
        x = x[:: max(1, x.size // size)].copy()
        y, backprop = gpudrop.dropout_vjp(source.put(x), 0.5, activation=activation, rng=stream, backend=backend)
        found = {"value": source.get(y), "slope": source.get(backprop(source.put(np.ones_like(x))))}
        kept, exact = reference.keep_mask(x.shape, 0.5, SEED, CALL), ulps.seen(x, backend)
        for (role, got), formula in zip(found.items(), reference.ACTIVATIONS[activation], strict=True):
            assert not np.any(got[~kept]), f"{role}: dropped elements are not 0"
            _within(activation, role, got[kept], 2 * formula(exact[kept]), 2 * ulps.allowed(activation, role, dtype)[1])


def variant(backend, name, device=0):
    """A variant matches the reference, forward and backward, within the table of ulps."""
    noise = ulps.row_of(FAMILY[name].noise)
    x = np.random.default_rng(0).standard_normal(VARIANTS[name], np.float32)
    stream = gpudrop.Stream(SEED, CALL)
    y, dx = Placed(backend, device).both(getattr(gpudrop, name), x, 0.4, rng=stream)
    want, backprop = reference.FAMILY[name](x, 0.4, SEED, CALL)
    for role, got, exact in (("value", y, want), ("slope", dx, backprop(x))):
        _within(noise, role, got, exact, np.maximum(1, np.abs(x.astype(np.float64))))


def statistic(backend, check, size, device=0):
    """Return the findings of one check of `gpudrop.testing.statistics`; `run` adjusts all p-values together."""
    return statistics.findings(check, Placed(backend, device), size)


def _doubled(source, x, bits=16, look=lambda a: a):
    """At p = 1/2 kept elements are doubled, forward and backward."""
    y, dx = source.both(gpudrop.dropout, x, 0.5, look=look, rng=gpudrop.Stream(SEED, CALL), bits=bits)
    x = look(x)
    want = np.where(reference.keep_mask(x.shape, 0.5, SEED, CALL, bits), x + x, x - x)
    _same(y, want)
    _same(dx, want)


def _within(name, role, got, exact, floor):
    """Assert that the error is within the table of ulps, counted at max(|exact|, floor)."""
    allowed = ulps.allowed(name, role, got.dtype.name)[0]
    error = ulps.error(got, exact, floor).max(initial=0)
    assert error <= allowed, f"{role}: the error is {error:.2f} ulps, {allowed} are allowed"


def _same(got, want):
    assert got.shape == want.shape and got.dtype == want.dtype, f"the result is {got.dtype} of shape {got.shape}"
    wrong = np.flatnonzero(got.ravel() != want.ravel())
    assert not wrong.size, f"{wrong.size} of {want.size} elements differ, first at index {wrong[:1]}"


class Case(NamedTuple):
    """One call of a function of this module, with literals as arguments."""

    function: str
    arguments: dict

    def run(self):
        """Run the case and return (findings, error): a list that may be empty, and a message or None."""
        try:
            return globals()[self.function](**self.arguments) or [], None
        except Exception as error:  # any error of a kernel or a driver is a failure of the case
            return [], f"{type(error).__name__}: {error}"

    @property
    def line(self):
        """A line of Python that repeats the case."""
        call = f"selftest.{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
        if self.function == "statistic":
            imports, call = "selftest, statistics", f"assert statistics.worst({call}) > {statistics.ALPHA}"
        else:
            imports = "selftest"
        return f"from gpudrop.testing import {imports}; {call}"


def plan(backend, device=0, quick=False):
    """Generate the cases for a device of a backend."""
    simulated = backends.load(backend).devices() == ["the CUDA simulator"]
    few = quick or simulated
    where = {"backend": backend} | ({"device": device} if device else {})

    def case(function, **arguments):
        return Case(function, where | arguments)

    for rounds, counter, key, words in reference.known_answers()[:: 5 if simulated else 1]:
        if rounds == 10 and counter[1] < 2**30:  # the largest element index limits the chunk
            yield case("known_answer", counter=counter, key=key, words=words)
    stream = {"seed": SEED, "call": CALL}
    for bits in statistics.BITS:
        lanes = 128 // bits
        for size in SIZES + (() if simulated else LARGE_SIZES):
            yield case("mask", shape=(size,), p=0.4, **stream, bits=bits, start=0)
        for start in (1, 3, 15, 16, 2**32 - 3, 2**32 * lanes - 5, 2**40 + 7, 2**64 - 50):
            yield case("mask", shape=(5, 10), p=0.4, **stream, bits=bits, start=start)
        for p in (0, 1, 2**-18, 1 - 2**-18, 2**-16, 1 - 2**-16):
            yield case("mask", shape=(300,), p=p, **stream, bits=bits, start=0)
        for seed, call in ((0, 0), (2**32, 2**32), (2**64 - 1, 2**64 - 1)):
            yield case("mask", shape=(200,), p=0.5, seed=seed, call=call, bits=bits, start=0)
        if not few:  # within this mask the low word of the chunk overflows
            yield case("mask", shape=(1031, 4001), p=0.3, **stream, bits=bits, start=2**32 * lanes - 500_003)
    for dtype in statistics.DTYPES:
        for bits in statistics.BITS:
            for size in (17, 257) if few else (*SIZES, *LARGE_SIZES):
                yield case("backward", dtype=dtype, bits=bits, size=size)
        for layout in LAYOUTS:
            if backend == "cpu" or layout not in HOST_LAYOUTS:
                yield case("strides", layout=layout, dtype=dtype)
        if dtype == "float32" and not few:
            for layout in ("Fortran order", "every other column"):
                yield case("strides", layout=layout, dtype=dtype, rows=4000)
        for corner in ((0, 0), (3, 8), (1, 5)):
            yield case("shard", dtype=dtype, whole=(9, 40), start=corner, shape=(5, 24))
    # These checks take long, and use the kernels of the cases above. Other processes can compile those of the cases
    # below in that time: see _compilers.
    size = 2**10 if simulated else 2**18 if quick else 2**23
    for check, (_, least) in statistics.CHECKS.items():
        if size >= least and not (simulated and check in SLOW):
            enough = size if check not in WAITING else 2**20 if backend == "cpu" else 2**18
            yield case("statistic", check=check, size=min(size, enough))
    for dtype in statistics.DTYPES:
        for size in (5, 64, 257):
            yield case("two_arrays", dtype=dtype, size=size)
            yield case("residual", dtype=dtype, size=size)
    for dtype in ("bfloat16", "float32") if few else statistics.DTYPES:
        for shape in ((300, 7), (5, 64)) if few else ((300, 7), (70, 64), (1, 33), (4000, 24)):
            for wide in dict.fromkeys((dtype, WIDER[dtype])):
                yield case("neighbours", dtype=dtype, wide=wide, shape=shape)
            yield case("gate", dtype=dtype, shape=shape)
    for dtype in ("float16", "float32"):
        for activation in ("relu", "leaky_relu"):
            for size in (17, 257) if few else (*SIZES, *LARGE_SIZES):
                yield case("saved_bits", activation=activation, dtype=dtype, size=size)
    for bits in statistics.BITS:
        for size in (17, 257) if few else (*SIZES, *LARGE_SIZES):
            yield case("packed_mask", size=size, bits=bits)
        for start in (0, 2**32 * (128 // bits) - 50, 2**64 - 200):
            yield case("own_kernel", bits=bits, start=start)
    for activation in ACTIVATIONS if not few else ("relu", "gelu"):
        if activation in reference.ACTIVATIONS:
            for dtype in statistics.DTYPES if activation in ("relu", "gelu") else ("float32",):
                yield case("values", activation=activation, dtype=dtype, size=60 if simulated else 50_000)
    for name in VARIANTS if not quick else ():
        yield case("variant", name=name)


# Other processes, which compile CPU kernels

COMPILER = """
import os, sys, threading
# Standard input is a pipe. It closes when the process that runs the cases ends, even if that process was killed.
threading.Thread(target=lambda: os.read(0, 1) or os._exit(0), daemon=True).start()
sys.path[:] = {path}
from gpudrop.testing import selftest
selftest._compile_kernels({quick}, {number}, {count})
"""
"""A program for python -c. Processes of multiprocessing would import the user's program instead."""


@contextmanager
def _compilers(quick):
    """Return a function to call between cases. After the first compilation it starts processes that compile as well.

    If all kernels are in the cache, no process starts. The processes end with this context.
    """
    # With three, compiling takes no longer than the checks, which need this process. A frozen program is not Python.
    count = 0 if getattr(sys, "frozen", False) else min(3, threads.available() - 1)
    numbers = list(range(count))
    with install_recorder("numba:compile") as compiled, ExitStack() as processes:

        def between_cases():
            while compiled.buffer and numbers:
                with suppress(OSError):  # without another process, this one compiles all kernels
                    program = COMPILER.format(path=sys.path, quick=quick, number=numbers.pop(), count=count)
                    processes.enter_context(_running(program))

        yield between_cases


@contextmanager
def _running(program):
    """Run a Python program without output. It ends with this context at the latest."""
    command, nowhere = [sys.executable or "", "-c", program], subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere) as process:  # noqa: S603
        try:
            yield
        finally:
            process.kill()


def _compile_kernels(quick, number, count):
    """Compile the CPU kernels into Numba's cache, as process `number` of `count`."""
    warnings.filterwarnings("error", "Numba's cache", RuntimeWarning)  # without the cache, nothing is gained
    cases = _kinds(quick)
    # Each process compiles all kernels, from another one on. Those in the cache by then take milliseconds.
    first = len(cases) * number // count
    for case in cases[first:] + cases[:first]:
        if case.run()[1]:
            return


def _kinds(quick):
    """The smallest case of each set of CPU kernels. The last is first, because all cases are run from the front."""
    kinds = {}
    for case in reversed(list(plan("cpu", quick=quick))):
        if case.function != "statistic":
            kind = case.function, *map(case.arguments.get, ("dtype", "wide", "bits", "activation", "name", "rows"))
            kinds[kind] = case
    return list(kinds.values())


@dataclass
class Report:
    """The results of a run.

    Attributes
    ----------
    backends : dict
        Name of the backend -> its devices, or the reason why it is not available.
    cases : list of (Case, list of float)
        Each case and its p-values, if it is a statistical check.
    failures : list of (Case, str)
        Each failed case and the error.
    worst : float
        The smallest p-value, adjusted for the number of p-values.
    seconds : float
        The duration of the run.
    """

    backends: dict
    cases: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    worst: float = 1.0
    seconds: float = 0.0

    def rows(self):
        """Return (check, backend, checked, failed, smallest p-value or None) for each check on each backend."""
        rows: Any = defaultdict(lambda: [0, 0, []])
        failed = [case for case, _ in self.failures]
        for case, p_values in self.cases:
            row = rows[case.arguments.get("check", case.function), case.arguments["backend"]]
            row[0] += len(p_values) or 1
            row[1] += case in failed
            row[2] += p_values
        return [(*key, checked, bad, min(p_values, default=None)) for key, (checked, bad, p_values) in rows.items()]

    def summary(self):
        """Return one line with the verdict, the numbers of cases and the worst p-value."""
        serving = [name for name, devices in self.backends.items() if not isinstance(devices, str)]
        p_values = sum(len(p_values) for _, p_values in self.cases)
        exact = sum(not p_values for _, p_values in self.cases)
        verdict = f"FAILED in {len(self.failures)} cases" if self.failures else "passed"
        return (
            f"{verdict}: {exact} cases of known answers, masks, values and "
            f"gradients and {p_values} p-values on {', '.join(serving)} in {self.seconds:.0f} s; the worst p-value, "
            f"adjusted for their number, is {self.worst:.2g} (below {statistics.ALPHA:g} is a failure: at most one "
            f"false alarm in {1 / statistics.ALPHA:,.0f} runs)"
        )

    def as_dict(self):
        """Return all results as a dict for JSON."""
        return {
            "passed": not self.failures,
            "summary": self.summary(),
            "versions": {"gpudrop": gpudrop.__version__} | {name: version(name) for name in PACKAGES},
            "backends": self.backends,
            "seconds": self.seconds,
            "false_alarm_rate": statistics.ALPHA,
            "worst_adjusted_p_value": self.worst,
            "checks": [
                dict(zip(("check", "backend", "checked", "failed", "smallest_p_value"), row, strict=True))
                for row in self.rows()
            ],
            "failures": [{"line": case.line, "found": found} for case, found in self.failures],
        }


def run(
    backend: str | None = None, quick: bool = False, progress: Callable[[list[Any]], Iterable[Any]] = list
) -> Report:
    """Test all backends that are available on this machine, or one of them.

    Parameters
    ----------
    backend : {"cpu", "cupy_elementwise", "numba_cuda"}, optional
        The backend to test. By default all available ones.
    quick : bool
        Whether to run fewer cases with smaller samples, which takes a few seconds.
    progress : callable, optional
        A function that receives the list of cases and returns an iterable of them, such as a progress bar.

    Returns
    -------
    Report

    Raises
    ------
    ValueError, RuntimeError
        If the backend is unknown or not available on this machine. Also under python -O, which removes the assertions
        that the test needs.

    Examples
    --------
    >>> from gpudrop.testing import selftest
    >>> selftest.run("cpu", quick=True).failures  # doctest: +SKIP
    []
    """
    if not __debug__:
        raise RuntimeError("the test needs assertions, which python -O removes: run it without -O")
    if backend is not None:
        backends.choose(backends.BACKENDS.get(backend), backend)
    began, serving = time.perf_counter(), {}
    for name in backends.BACKENDS if backend is None else [backend]:
        module = backends.load(name)
        serving[name] = module if isinstance(module, str) else list(module.devices())
    cases = [
        case
        for name, devices in serving.items()
        if not isinstance(devices, str)
        for device in range(1 if name == "cpu" else len(devices))
        for case in plan(name, device, quick)
    ]
    report, found = Report(serving), []
    with _compilers(quick) as between_cases:
        for case in progress(cases):
            p_values, wrong = case.run()
            found.append((case, p_values, wrong))
            if case.arguments["backend"] == "cpu":
                between_cases()
    adjusted = iter(statistics.holm([finding.p_value for _, findings, _ in found for finding in findings]))
    for case, findings, wrong in found:
        report.cases.append((case, [finding.p_value for finding in findings]))
        for finding in findings:
            p_value = float(next(adjusted))
            report.worst = min(report.worst, p_value)
            if p_value <= statistics.ALPHA and not wrong:
                wrong = f"p-value {finding.p_value:.2g}, adjusted {p_value:.2g}, at {finding.case}"
        if wrong:
            report.failures.append((case, wrong))
    report.seconds = time.perf_counter() - began
    return report


def main(backend: str | None = None, quick: bool = False, file: Path | None = None) -> int:
    """Run the test, print the table, write the file, and return the exit status."""
    if file is not None:
        check_writable("results", file)
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        report = run(backend, quick, lambda cases: bar.track(cases, description="testing"))
    table = Table("check", "backend", "checked", "failed", "smallest p-value")
    for check, name, checked, failed, p_value in report.rows():
        table.add_row(check, name, f"{checked}", f"{failed}", "" if p_value is None else f"{p_value:.2g}")
    console = Console()
    console.print(table)
    for name, devices in report.backends.items():
        if isinstance(devices, str):
            console.print(f"not tested: {name}: {devices}", soft_wrap=True, highlight=False, markup=False)
    if file is not None:
        file.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    if report.failures:
        case, wrong = report.failures[0]
        console.print(f"{wrong}\n{case.line}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"gpudrop selftest {report.summary()}", soft_wrap=True, highlight=False, markup=False)
    return 1 if report.failures else 0
