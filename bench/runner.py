"""Measuring: every contender of a case is checked, then all take turns, and the median of each is kept."""

import os
import random
import statistics
import time

import numba
import numpy as np

from bench import contenders
from bench.cases import DTYPES
from bench.checks import Wrong

SHORTEST = 1e-3  # seconds: a measurement repeats the call until it takes so long


def touch(size):
    """Write to so many bytes once, at most half of those that are free: a virtual machine may lack them until then."""
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    np.empty(min(size, free // 2), np.uint8).fill(1)


def measure(case, rounds, entered):
    """What one case gives, by contender: {"seconds": median of a call, ...}, or {"absent", "wrong" or "failed": why}.

    Parameters
    ----------
    case : Case
    rounds : int
        How many measurements each median is of. In a round each contender is measured once, in turn, so
        that whatever else the machine does falls on all of them.
    entered : list of Contender
    """
    numba.set_num_threads(case.threads)
    try:
        return _measure(case, rounds, entered)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


def _measure(case, rounds, entered):
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(case.size, np.float32).astype(DTYPES[case.dtype], copy=False) for _ in range(2))
    results, calls = {}, {}
    for contender in entered:
        try:
            call = contender.prepare(case, x, dy)
            contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])
        except contenders.Absent as reason:
            results[contender.name] = {"absent": str(reason)}
        except Wrong as reason:
            results[contender.name] = {"wrong": str(reason)}
        except Exception as error:  # a peer's own trouble, or too little memory, must not end the run
            results[contender.name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
        else:
            calls[contender.name] = call, _repetitions(call)
    samples, order, shuffle = {name: [] for name in calls}, list(calls), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # so that nobody always comes after the same one
        for name in order:
            samples[name].append(_time(*calls[name]))
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
