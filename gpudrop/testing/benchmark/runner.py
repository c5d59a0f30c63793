"""Measurements on the CPU: each contender is checked, then all contenders take turns, and medians are kept."""

import contextlib
import functools
import os
import statistics
import time
from dataclasses import asdict

import numba
import numpy as np

from gpudrop.testing.benchmark.cases import DTYPES, LAYOUTS
from gpudrop.testing.benchmark.checks import Wrong
from gpudrop.testing.benchmark.contenders import Absent

IDLE_INTERVAL, IDLE_CHECKS = 2e-3, 50  # seconds, and how often they are waited for at most
SHORTEST = 1e-3  # minimum time of a measurement in seconds; the call is repeated until then


@contextlib.contextmanager
def torch_restored(*gpus):
    """At the end, restore PyTorch's number of threads and its generators: the CPU's, and those of the CUDA devices."""
    with contextlib.ExitStack() as stack:
        try:
            import torch
        except (ImportError, OSError):  # the contender reports it
            pass
        else:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            stack.enter_context(torch.random.fork_rng(gpus if torch.cuda.is_available() else ()))
        yield


def touch(size):
    """Write to new memory once, to at most half of the free bytes: a virtual machine may provide it only then."""
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    with contextlib.suppress(MemoryError):  # a limit of the process: the cases may need less
        np.empty(min(size, free // 2), np.uint8).fill(1)


def row(case, rounds, entered):
    """Measure a case and return its row of a record: the case, and the results of `measure`.

    If an error occurs outside the contenders, such as a lack of memory for x and dy, the row has "failed": reason.
    """
    found = asdict(case) | {"bytes": case.bytes, "results": {}}
    try:
        return found | {"results": measure(case, rounds, entered)}
    except Exception as error:
        return found | {"failed": reason(error)}


def measure(case, rounds, entered):
    """Measure a case and return the results by contender.

    A result is {"seconds": median of a call, ...}, or {"absent", "wrong" or "failed": reason}.

    Parameters
    ----------
    case : Case
    rounds : int
        The number of measurements per median. In each round every contender is measured once, in turn, so that other
        load on the machine affects all of them.
    entered : list of Contender
    """
    before = numba.get_num_threads()
    numba.set_num_threads(case.threads)
    try:
        return _measure(case, rounds, entered)
    finally:
        numba.set_num_threads(before)


def _measure(case, rounds, entered):
    x, dy = inputs(case)

    def admit(contender):
        call = contender.prepare(case, x, dy)
        contender.check(case, x, dy, [contender.to_numpy(array) for array in call()])
        return functools.partial(warm_seconds, call, _repetitions(call))

    timed, results = admitted(entered, admit)
    for name, result in in_turns(timed, rounds).items():
        results[name] = result | rates(case.size, case.bytes, result["seconds"])
    return results


def inputs(case):
    """Return x, in the layout of the case, and dy. They hold normal deviates."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(case.shape, np.float32).astype(DTYPES[case.dtype], copy=False) for _ in range(2))
    return LAYOUTS[case.layout][0](x), dy


def admitted(entered, admit):
    """Call admit for each contender, and return two dicts by name: its results, and the reasons of its errors.

    A reason is {"absent", "wrong" or "failed": message}. No exception is raised, because an error of one contender, or
    a lack of memory, must not end the run.
    """
    admissions, refusals = {}, {}
    for contender in entered:
        try:
            admissions[contender.name] = admit(contender)
        except Absent as error:
            refusals[contender.name] = {"absent": str(error)}
        except Wrong as error:
            refusals[contender.name] = {"wrong": str(error)}
        except Exception as error:
            refusals[contender.name] = {"failed": reason(error)}
    return admissions, refusals


def reason(error):
    """Return an unexpected error in a record's words."""
    return f"{type(error).__name__}: {error}"[:200]


def in_turns(timed, rounds):
    """Call the functions in turn in each round, and return the medians of the seconds that they return.

    The result is {name: {"seconds": the median, "fastest": ..., "slowest": ...}}.
    """
    samples: dict[str, list[float]] = {name: [] for name in timed}
    order, shuffle = list(timed), np.random.default_rng(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # so that no contender always follows the same one
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
    """As `seconds`, without the effects of the previous contender.

    Its threads are asleep, and an untimed call has filled the caches.
    """
    wait_until_idle()
    call()
    return seconds(call, repetitions)


def wait_until_idle():
    """Wait until no other thread of this process runs, or for a tenth of a second at most.

    GNU OpenMP's threads wait for more work in a loop, 8 ms on an AMD EPYC. Meanwhile they keep a core from the threads
    of the next contender.
    """
    for _ in range(IDLE_CHECKS):
        begin = time.process_time()
        time.sleep(IDLE_INTERVAL)
        if time.process_time() - begin < IDLE_INTERVAL / 4:
            return


def seconds(call, repetitions):
    """Return the seconds of a call, by the CPU's clock."""
    begin = time.perf_counter()
    for _ in range(repetitions):
        call()
    return (time.perf_counter() - begin) / repetitions
