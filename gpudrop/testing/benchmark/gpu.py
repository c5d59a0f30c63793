"""Measuring on a GPU: every contender of a case is checked, then all take turns at each pass, and medians are kept.

Everything runs on the default stream and is timed there by CUDA events. What takes the GPU less time than it may
take the host to ask for is captured as a CUDA graph first, where that is possible. Calls rotate through so many
arrays that none is still in the second-level cache when its turn comes again.
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

SHORTEST = 10e-3  # seconds: a measurement repeats the work until it takes so long
GRAPHED = 2**30  # bytes: a pass that moves less is captured
TOGETHER = 32  # calls in a graph at least: there are gaps between graphs
LAUNCHES = 500  # calls of a measurement by the host's clock: fewer than the GPU lets wait
PERIOD = 2**22  # elements after which x and dy repeat themselves
WHOLE = 2**24  # elements: up to so many all are checked, of more three parts
PART = 2**22  # elements
APART = 6  # arrays that contenders may make beyond those they are given


class Arrays(NamedTuple):
    """What a call is given: its inputs, and memory for its results."""

    x: object
    dy: object
    y: object
    dx: object


class Timing(NamedTuple):
    """How a pass of a contender is timed: seconds() is of one call, timed is "graph", "events" or "host"."""

    seconds: Callable
    timed: str
    uncaptured: str | None = None  # why it is not timed by a graph


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
        """Its address, by which other programs know it."""
        return self.runtime.deviceGetPCIBusId(self.id)

    @property
    def name(self):
        return self.runtime.getDeviceProperties(self.id)["name"].decode()

    def facts(self):
        """What a record says of the machine."""
        return {
            "cuda_driver": self.runtime.driverGetVersion(),
            "cuda_runtime": self.runtime.runtimeGetVersion(),
            "memory_bytes": self.runtime.memGetInfo()[1],
            "cache_bytes": self.cache,
            "multiprocessors": self._attribute("MultiProcessorCount"),
        }

    def seconds(self, work, repetitions):
        """Of one of so many repetitions, by the GPU's clock, after an untimed one."""
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
        """The work that build() returns, as a graph: a function that replays it on the current stream.

        build is called with the stream of the capture current, so that what it makes may belong to that.
        """
        return {"cupy": _captured_by_cupy, "torch": _captured_by_torch}[library](build)

    def release(self):
        """Give free memory back that CuPy and PyTorch keep for themselves, each out of the other's reach."""
        self.xp.get_default_memory_pool().free_all_blocks()
        if self._torch():
            self._torch().empty_cache()

    def free(self):
        self.release()
        return self.runtime.memGetInfo()[0]

    def peak_bytes(self, work):
        """What CuPy's pool and PyTorch's allocator take at most during some work, beyond what is taken before."""
        self.release()
        pool, torch = self.xp.get_default_memory_pool(), self._torch()
        before, allocated = pool.total_bytes(), 0
        if torch:
            torch.reset_peak_memory_stats()
            allocated = torch.memory_allocated()
        work()
        most = torch.max_memory_allocated() if torch else 0
        return pool.total_bytes() - before + most - allocated  # the pool gives nothing back by itself

    @staticmethod
    def _torch():
        torch = sys.modules.get("torch")
        return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _captured_by_cupy(build):
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        work = build()
        work()  # what a first call does, like loading a kernel, can't be captured
        stream.synchronize()
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()

    def replay(captured=work):  # which keeps the memory that the graph refers to
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
    """The rows of a record that a case gives, of its forward and of its backward pass.

    Parameters
    ----------
    gpu : Gpu
    case : Case
        With both passes.
    rounds : int
        How many measurements each median is of, all contenders in turns.
    entered : list of GpuContender
    """
    rows = [asdict(one) | {"bytes": one.bytes, "results": {}} for one in case.passes]
    count = 1 if case.section == "launch" else 2 * gpu.cache // min(one.bytes for one in case.passes) + 1
    needed, free = (4 * count + APART) * case.array_bytes, gpu.free()
    if needed > free:
        reason = f"it needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free"
        return [row | {"absent": reason} for row in rows]
    try:
        sets = arrays(gpu.xp, case, count)
        admissions, refusals = runner.admitted(entered, functools.partial(admit, gpu, case, sets[0]))
        for one, row in zip(case.passes, rows, strict=True):
            row["sets"] = count
            row["results"] = refusals | _turns(gpu, one, sets, rounds, entered, admissions)
    except Exception as error:  # of which nobody knows whose it is
        rows = [row | {"failed": f"{type(error).__name__}: {error}"[:200]} for row in rows]
    return rows


def arrays(xp, case, count):
    """So many sets of arrays: x and dy hold normal deviates, y and dx nothing yet."""
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
    """Check a contender. Returns its function of a call's arrays, and the most bytes that a call of it takes.

    Those are what it takes for both passes beyond x and dy.
    """
    gpu.release()
    for array in given[2:]:
        array.view(f"i{array.itemsize}").fill(-1)  # nan: of whoever was before nothing is left
    vjp = contender.prepare(case, gpu.xp)
    own = contender.adapt(*given)

    def both():
        y, backprop = vjp(*own)
        return y, backprop()

    results = both()
    for result in results:
        if tuple(result.shape) != (case.size,):
            raise checks.Wrong(f"an array of shape {tuple(result.shape)} came back")
    for part in parts(case.size):
        inputs = [contender.to_numpy(array[part]) for array in given[:2]]
        outputs = [contender.to_numpy(array[part]) for array in results]
        contender.check(replace(case, size=part.stop - part.start), *inputs, outputs, part.start)
    del results
    return vjp, gpu.peak_bytes(both) + (2 * case.array_bytes if contender.writes else 0)


def parts(size):
    """What is checked of so many elements: all, or three parts, at both ends and in the middle."""
    if size <= WHOLE:
        return [slice(0, size)]
    return [slice(start, start + PART) for start in (0, (size - PART) // 2, size - PART)]


def _turns(gpu, case, sets, rounds, entered, admissions):
    """The results of a pass, by contender."""
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
    """How a pass is timed: by the host's clock, or by the GPU's, with its calls captured or not."""
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
            uncaptured, many = f"{type(error).__name__}: {error}"[:200], 1
    if timed == "events":
        work = rotation(build(), many)
    repetitions = max(1, math.ceil(SHORTEST / max(gpu.seconds(work, 1), 1e-7)))
    return Timing(lambda: gpu.seconds(work, repetitions) / (many * len(sets)), timed, uncaptured)


def calls(case, sets, contender, vjp):
    """A function for each set that does the pass once; a backward pass has had its forward pass before."""
    forward = [functools.partial(vjp, *contender.adapt(*given)) for given in sets]
    return forward if case.forward else [call()[1] for call in forward]


def rotation(functions, times):
    """All the functions in turn, so many times."""

    def work():
        for _ in range(times):
            for function in functions:
                function()

    return work


def launching(gpu, call):
    """What the host takes to ask for a call, with nothing to wait for."""
    gpu.synchronize()
    return runner.warm_seconds(call, LAUNCHES)
