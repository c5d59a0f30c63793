"""Measuring: every contender of a case is checked, then all take turns, and the median of each is kept."""

import os
import statistics
import time

import numba
import numpy as np

from bench import contenders
from bench.cases import DTYPES
from bench.checks import Wrong

SHORTEST = 1e-3  # seconds: a measurement repeats the call until it takes so long


def touch(share):
    """Write to a share of the free memory once, which a virtual machine may not have been given until then."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    np.empty(int(share * free), np.uint8).fill(1)


def measure(case, rounds, contestants=None):
    """What one case gives: {contender's name: {"seconds": median of a call, ...} or {"absent": reason}}.

    Parameters
    ----------
    case : Case
    rounds : int
        How many measurements each median is of. In a round each contender is measured once, in turn, so
        that whatever else the machine does falls on all of them.
    contestants : list of Contender, optional
        Those of the case's section without it.
    """
    numba.set_num_threads(case.threads)
    try:
        return _measure(case, rounds, contenders.of(case) if contestants is None else contestants)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


def _measure(case, rounds, contestants):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(case.size, np.float32).astype(DTYPES[case.dtype], copy=False) for _ in range(2))
    results, calls = {}, {}
    for contender in contestants:
        try:
            call = contender.prepare(case, x, dy)
            contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])
        except contenders.Absent as reason:
            results[contender.name] = {"absent": str(reason)}
        except Wrong as reason:
            results[contender.name] = {"wrong": str(reason)}
        else:
            calls[contender.name] = call, _repetitions(call)
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, repetitions) in calls.items():
            samples[name].append(_time(call, repetitions))
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        results[name] = {
            "seconds": median,
            "fastest": min(seconds),
            "slowest": max(seconds),
            "elements_per_second": case.size / median,
            "bytes_per_second": case.bytes / median,
        }
    return results


def _repetitions(call):
    return max(1, round(SHORTEST / max(_time(call, 1), 1e-7)))


def _time(call, repetitions):
    call()  # untimed: it pays for what the contender before has left behind, in the caches and in free memory
    begin = time.perf_counter()
    for _ in range(repetitions):
        call()
    return (time.perf_counter() - begin) / repetitions
