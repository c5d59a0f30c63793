"""The CPU kernels under threads and forks: results equal those of one thread, and the process never aborts."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

import gpudrop
from gpudrop import Stream
from gpudrop.kernels import cpu, threads
from tests.sampling import few

X = np.random.default_rng(0).standard_normal(3_000_003).astype(np.float32)
ONE = gpudrop.dropout(X[:100_000], 0.3, activation="relu", rng=Stream(1, 1))  # too small to be divided among threads


@pytest.fixture(autouse=True)
def own_threads(monkeypatch):
    """Use gpudrop's own threads, not PyTorch's, which another test in this process may have installed."""
    monkeypatch.setattr(threads, "team", None)


@pytest.mark.parametrize("count", range(1, numba.config.NUMBA_NUM_THREADS + 1))
def test_the_number_of_threads_changes_nothing(count):
    numba.set_num_threads(count)
    try:
        y = gpudrop.dropout(X, 0.3, activation="relu", rng=Stream(1, 1))
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    np.testing.assert_array_equal(y[:100_000], ONE)
    tail = np.maximum(X, 0) * gpudrop.keep_mask(X.shape, 0.3, Stream(1, 1)) * np.float32(gpudrop.quantize(0.3).scale)
    np.testing.assert_array_equal(y, tail)


def test_many_threads_at_once():
    with ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(gpudrop.dropout, X, 0.3, activation="relu", rng=Stream(1, 1)) for _ in range(48)]
        want = gpudrop.dropout(X, 0.3, activation="relu", rng=Stream(1, 1))
        for call in calls:
            np.testing.assert_array_equal(call.result(), want)


@pytest.mark.parametrize("allowed", range(1, numba.config.NUMBA_NUM_THREADS + 1))
def test_as_many_threads_work_as_numba_is_set_to(monkeypatch, allowed):
    used, entry = set(), cpu.entry

    def recorded(kernel):
        def run(*args):
            used.add(threading.get_ident())
            time.sleep(0.01)  # long enough for every thread to get a slice
            entry(kernel)(*args)

        return run

    monkeypatch.setattr(cpu, "entry", recorded)
    numba.set_num_threads(allowed)
    try:
        gpudrop.dropout(X, 0.3)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert len(used) == allowed
    assert threading.get_ident() in used


# Numba first runs parallel work of its own. Some of its threading layers don't allow two threads at once. Others can't
# run in a forked process after that.
LAYER = """
import os, sys, threading, numba, numpy as np, gpudrop
from concurrent.futures import ThreadPoolExecutor
x = np.ones(3_000_003, np.float32)
if sys.argv[1] == "present":
    @numba.njit(parallel=True)
    def total(x):
        sum = 0.0
        for i in numba.prange(x.size):
            sum += x[i]
        return sum
    assert total(x) == x.size
    assert numba.threading_layer() == os.environ["NUMBA_THREADING_LAYER"]
call = lambda _=0: gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1))
want = call()
with ThreadPoolExecutor(8) as pool:
    assert all(np.array_equal(y, want) for y in pool.map(call, range(24)))
if hasattr(os, "fork"):
    child = os.fork()
    same = np.array_equal(call(), want)
    if child == 0:
        os._exit(0 if same else 3)
    assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ok")
"""


@pytest.mark.parametrize("layer", few(["workqueue", "omp", "tbb", "tbb, not installed"], "workqueue"))
def test_threads_and_forks_under_every_threading_layer(layer):
    layer, _, absent = layer.partition(", ")
    # pip installs the library of the package tbb here.
    libraries = os.pathsep.join([f"{sys.prefix}/lib", os.environ.get("LD_LIBRARY_PATH", "")])
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer, "LD_LIBRARY_PATH": libraries}
    script = f"import sys\nsys.modules['numba.np.ufunc.tbbpool'] = None\n{LAYER}" if absent else LAYER
    command = [sys.executable, "-W", "ignore", "-c", script, "absent" if absent else "present"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if not absent and "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"Numba's threading layer {layer} is not installed")
    assert done.stdout == "ok\n", done.stderr


SIZE = 2 * threads.SHARED


def slow_in_helpers(done, fault=None):
    """A task for `share_out` that takes longer in helper threads than in the caller, and records its slices."""
    caller = threading.get_ident()

    def part(lo, hi):
        if threading.get_ident() != caller:
            time.sleep(0.1)
            if fault:
                raise fault
        done.append((lo, hi))
        time.sleep(0.01)

    return part


def test_a_call_returns_when_all_its_slices_are_done():
    done = []
    threads.share_out(slow_in_helpers(done), SIZE)
    assert min(done)[0] == 0 and max(hi for _, hi in done) == SIZE
    assert sum(hi - lo for lo, hi in done) == SIZE


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS == 1, reason="needs more than one thread")
def test_an_error_in_a_helper_thread_is_raised_and_stops_all_work():
    done = []
    with pytest.raises(MemoryError, match="of a helper"):
        threads.share_out(slow_in_helpers(done, MemoryError("of a helper")), SIZE)
    before = len(done)
    time.sleep(0.3)
    assert len(done) == before


def test_if_no_thread_can_start_the_caller_waits_for_other_helpers(monkeypatch):
    """If submit() can't start a thread it leaves its work in the queue, where another call's thread may run it."""
    queue = []

    class Pool:
        def submit(self, work):
            queue.append(threading.Thread(target=work))
            queue[-1].start()
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "pool", Pool)
    done = []
    threads.share_out(slow_in_helpers(done), SIZE)
    assert sum(hi - lo for lo, hi in done) == SIZE
    for thread in queue:
        thread.join()
    assert sum(hi - lo for lo, hi in done) == SIZE


AT_EXIT = """
import atexit, numpy as np, gpudrop
x = np.ones(3_000_003, np.float32)
want = gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1))
same = lambda: np.array_equal(gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1)), want)
atexit.register(lambda: print("ok" if same() else "different"))
"""


def test_a_call_at_interpreter_shutdown():
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr
