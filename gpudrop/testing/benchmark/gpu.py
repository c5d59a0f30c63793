"""Measurements on a GPU: each contender is checked, then all contenders take turns, and medians are kept.

All work runs on the default stream and is timed by CUDA events. Short passes, which could take less time than their
launches, are captured as CUDA graphs if possible. Calls rotate through several sets of arrays, so that no array is
still in the L2 cache when it is used again.
"""

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from gpudrop.testing.benchmark import checks, runner
from gpudrop.testing.benchmark.cases import DTYPES

SHORTEST = 10e-3  # minimum time of a measurement in seconds; the work is repeated until then
GRAPHED = 2**30  # a pass that moves fewer bytes is captured
TOGETHER = 32  # minimum number of calls in a graph, because there are gaps between graphs
LAUNCHES = 500  # calls per measurement by the CPU's clock: fewer than the launch queue holds
PERIOD = 2**22  # x and dy repeat after this number of elements
WHOLE = 2**24  # arrays of up to this number of elements are checked completely, larger ones in three parts
PART = 2**22  # elements of such a part
SETS = 2**12  # maximum number of sets of arrays; smaller arrays stay in the cache, but launches dominate their times
APART = 6  # additional arrays that a contender may allocate


class Arrays(NamedTuple):
    """The arguments of a call: its inputs, and buffers for its results."""

    x: object
    dy: object
    y: object
    dx: object


class Timing(NamedTuple):
    """The timing of a contender's pass: seconds() measures one call, and timed is "graph", "events" or "host"."""

    seconds: Callable
    timed: str
    uncaptured: str | None = None  # the reason why no graph is used


class Gpu:
    """CuPy's current device: its arrays, its clock and its memory."""

    def __init__(self):
        import cupy

        self.xp, self.runtime = cupy, cupy.cuda.runtime
        self.id = self.runtime.getDevice()
        self.cache = self._attribute("L2CacheSize")
        self.synchronize = self.runtime.deviceSynchronize

    def _attribute(self, name):
        return self.runtime.deviceGetAttribute(getattr(self.runtime, f"cudaDevAttr{name}"), self.id)

    @property
    def bus(self):
        """The PCI bus id, by which other programs identify the GPU."""
        return self.runtime.deviceGetPCIBusId(self.id)

    @property
    def name(self):
        return self.runtime.getDeviceProperties(self.id)["name"].decode()

    def facts(self):
        """Return the facts about the GPU for a record."""
        return {
            "cuda_driver": self.runtime.driverGetVersion(),
            "cuda_runtime": self.runtime.runtimeGetVersion(),
            "memory_bytes": self.runtime.memGetInfo()[1],
            "cache_bytes": self.cache,
            "multiprocessors": self._attribute("MultiProcessorCount"),
        }

    def seconds(self, work, repetitions):
        """Return the seconds of one repetition, by the GPU's clock, after an untimed repetition."""
        self.release()
        begin, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        work()
        begin.record()
        for _ in range(repetitions):
            work()
        end.record()
        end.synchronize()
        return self.xp.cuda.get_elapsed_time(begin, end) / 1e3 / repetitions

    def captured(self, library, build):
        """Capture the work that build() returns, and return a function that replays the graph on the current stream.

        build is called while the capture's stream is the current one, so that its arrays may belong to that stream.
        """
        return {"cupy": _captured_by_cupy, "torch": _captured_by_torch}[library](build)

    def release(self):
        """Return the free memory of CuPy's and PyTorch's pools to CUDA; neither library can use the other's pool."""
        self.xp.get_default_memory_pool().free_all_blocks()
        if self._torch():
            self._torch().empty_cache()

    def free(self):
        self.release()
        return self.runtime.memGetInfo()[0]

    def peak_bytes(self, work):
        """Return the peak memory that CuPy's pool and PyTorch's allocator add during the work."""
        self.release()
        pool, torch = self.xp.get_default_memory_pool(), self._torch()
        before, allocated = pool.total_bytes(), 0
        if torch:
            torch.reset_peak_memory_stats()
            allocated = torch.memory_allocated()
        work()
        most = torch.max_memory_allocated() if torch else 0
        return pool.total_bytes() - before + most - allocated  # the pool never returns memory by itself

    @staticmethod
    def _torch():
        torch = sys.modules.get("torch")
        return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _captured_by_cupy(build):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        work = build()
        work()  # a first call may load kernels, which can't be captured
        stream.synchronize()
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()

    def replay(captured=work):  # the default argument keeps the memory of the graph alive
        graph.launch()

    return replay


def _captured_by_torch(build):
    import torch

    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        work = build()
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        work()

    def replay(captured=work):
        graph.replay()

    return replay


def measure(gpu, case, rounds, entered):
    """Measure a case and return two rows of a record, for its forward and its backward pass.

    Parameters
    ----------
    gpu : Gpu
    case : Case
        A case with both passes.
    rounds : int
        The number of measurements per median. All contenders take turns.
    entered : list of GpuContender
    """
    rows = [asdict(one) | {"bytes": one.bytes, "results": {}} for one in case.passes]
    beyond = 2 * gpu.cache // min(one.bytes for one in case.passes) + 1
    count = 1 if case.section == "launch" else min(beyond, SETS)
    needed, free = (4 * count + APART) * case.array_bytes, gpu.free()
    if needed > free:
        reason = f"it needs {needed / 1e9:.1f} GB of GPU memory, but only {free / 1e9:.1f} GB are free"
        return [row | {"absent": reason} for row in rows]
    try:
        sets = arrays(gpu.xp, case, count)
        admissions, refusals = runner.admitted(entered, functools.partial(admit, gpu, case, sets[0]))
        for one, row in zip(case.passes, rows, strict=True):
            row["sets"] = count
            row["results"] = refusals | _turns(gpu, one, sets, rounds, entered, admissions)
    except Exception as error:  # the contender that caused it is unknown
        rows = [row | {"failed": runner.reason(error)} for row in rows]
    return rows


def arrays(xp, case, count):
    """Create sets of arrays: x and dy hold normal deviates, y and dx are not initialised."""
    rng, dtype = np.random.default_rng(0), np.dtype(DTYPES[case.dtype])
    raw = f"u{dtype.itemsize}"  # to copy bits, whatever the dtype

    def deviates():
        period = rng.standard_normal(min(PERIOD, case.size), np.float32).astype(dtype)
        period, whole = xp.asarray(period.view(raw)), xp.empty((count, case.size), dtype)
        for start in range(0, case.size, PERIOD):
            part = whole.view(raw)[:, start : start + PERIOD]
            part[...] = period[: part.shape[1]]
        return whole

    return [Arrays(*four) for four in zip(deviates(), deviates(), *xp.empty((2, count, case.size), dtype), strict=True)]


def admit(gpu, case, given, contender):
    """Check a contender, and return its function of a call's arrays and the peak memory of a call in bytes.

    The peak memory is that of both passes, without x and dy.
    """
    gpu.release()
    for array in given[2:]:
        array.view(f"i{array.itemsize}").fill(-1)  # nan, to erase the results of other contenders
    vjp = contender.prepare(case, gpu.xp)
    own = contender.adapt(*given)

    def both():
        y, backprop = vjp(*own)
        return y, backprop()

    results = both()
    for result in results:
        if tuple(result.shape) != (case.size,):
            raise checks.Wrong(f"it returned an array of shape {tuple(result.shape)}")
    for part in parts(case.size):
        inputs = [contender.to_numpy(array[part]) for array in given[:2]]
        outputs = [contender.to_numpy(array[part]) for array in results]
        contender.check(replace(case, size=part.stop - part.start), *inputs, outputs, part.start)
    del results
    return vjp, gpu.peak_bytes(both) + (2 * case.array_bytes if contender.writes else 0)


def parts(size):
    """Return the slices that are checked: the whole array, or three parts at both ends and in the middle."""
    if size <= WHOLE:
        return [slice(0, size)]
    return [slice(start, start + PART) for start in (0, (size - PART) // 2, size - PART)]


def _turns(gpu, case, sets, rounds, entered, admissions):
    """Time a pass of all contenders in turn, and return the results by contender."""
    entered = [contender for contender in entered if contender.name in admissions]
    moves = {contender.name: contender.moves(case) for contender in entered}
    timings, results = runner.admitted(entered, lambda one: timing(gpu, case, sets, one, admissions[one.name][0]))
    for name, result in runner.in_turns({name: one.seconds for name, one in timings.items()}, rounds).items():
        result |= {"timed": timings[name].timed, "peak_bytes": admissions[name][1]}
        if timings[name].uncaptured:
            result["uncaptured"] = timings[name].uncaptured
        if case.section != "launch":
            result |= runner.rates(case.size, moves[name], result["seconds"])
        results[name] = result
    return results


def timing(gpu, case, sets, contender, vjp):
    """Choose the timing of a pass: by the CPU's clock or the GPU's, with or without a captured graph."""
    gpu.release()

    def build():
        return calls(case, sets, contender, vjp)

    if case.section == "launch":
        (call,) = build()
        return Timing(functools.partial(launching, gpu, call), "host")
    timed, uncaptured, many = "events", None, 1
    if case.bytes < GRAPHED and contender.graph:
        try:
            many = math.ceil(TOGETHER / len(sets))
            work, timed = gpu.captured(contender.graph, lambda: rotation(build(), many)), "graph"
        except Exception as error:
            uncaptured, many = runner.reason(error), 1
    if timed == "events":
        work = rotation(build(), many)
    repetitions = max(1, math.ceil(SHORTEST / max(gpu.seconds(work, 1), 1e-7)))
    return Timing(lambda: gpu.seconds(work, repetitions) / (many * len(sets)), timed, uncaptured)


def calls(case, sets, contender, vjp):
    """Return one function per set that runs the pass once; for a backward pass the forward pass has run already."""
    forward = [functools.partial(vjp, *contender.adapt(*given)) for given in sets]
    return forward if case.forward else [call()[1] for call in forward]


def rotation(functions, times):
    """Return a function that calls all the functions in turn, and repeats this `times` times."""

    def work():
        for _ in range(times):
            for function in functions:
                function()

    return work


def launching(gpu, call):
    """Return the time of a launch on the CPU, without waiting for the GPU."""
    gpu.synchronize()
    return runner.warm_seconds(call, LAUNCHES)
