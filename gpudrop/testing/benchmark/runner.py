"""Measuring: every contender of a case is checked, then all take turns, and the median of each is kept."""

import functools
import os
import statistics
import time
from dataclasses import asdict

import numba
import numpy as np

from gpudrop.testing.benchmark.cases import DTYPES
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.contenders import Absent

SHORTEST = 1e-3  # seconds: a measurement repeats the call until it takes so long


def touch(size):
    """Write to so many bytes once, at most half of those that are free: a virtual machine may lack them until then."""
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    np.empty(min(size, free // 2), np.uint8).fill(1)


def row(case, rounds, entered):
    """The row of a record that a case gives: the case, and its results as from `measure`."""
    return asdict(case) | {"bytes": case.bytes, "results": measure(case, rounds, entered)}


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

    def admit(contender):
        call = contender.prepare(case, x, dy)
        contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])
        return functools.partial(warm_seconds, call, _repetitions(call))

    timed, results = admitted(entered, admit)
    for name, result in in_turns(timed, rounds).items():
        results[name] = result | rates(case.size, case.bytes, result["seconds"])
    return results


def admitted(entered, admit):
    """What admit gives for each contender, by name; and for those that it raises for, the reason why.

    That is {"absent", "wrong" or "failed": why}: a peer's own trouble, or too little memory, must not end the run.
    """
    admissions, refusals = {}, {}
    for contender in entered:
        try:
            admissions[contender.name] = admit(contender)
        except Absent as reason:
            refusals[contender.name] = {"absent": str(reason)}
        except Wrong as reason:
            refusals[contender.name] = {"wrong": str(reason)}
        except Exception as error:
            refusals[contender.name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return admissions, refusals


def in_turns(timed, rounds):
    """Medians of what the functions give, the seconds of a call, all in turn in each round.

    Returns {name: {"seconds": the median, "fastest": ..., "slowest": ...}}.
    """
    samples: dict[str, list[float]] = {name: [] for name in timed}
    order, shuffle = list(timed), np.random.default_rng(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # so that nobody always comes after the same one
        for name in order:
            samples[name].append(timed[name]())
    return {
        name: {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        for name, seconds in samples.items()
    }


def rates(elements, moved, seconds):
    return {"elements_per_second": elements / seconds, "bytes_per_second": moved / seconds}


def _repetitions(call):
    return max(1, round(SHORTEST / max(warm_seconds(call, 1), 1e-7)))


def warm_seconds(call, repetitions):
    """As `seconds`, after an untimed call: it pays for what whoever was before has left in caches and free memory."""
    call()
    return seconds(call, repetitions)


def seconds(call, repetitions):
    """Seconds of a call, by the host's clock."""
    begin = time.perf_counter()
    for _ in range(repetitions):
        call()
    return (time.perf_counter() - begin) / repetitions
