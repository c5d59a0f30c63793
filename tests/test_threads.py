"""The host kernels under threads and forks: the same result as from one thread, and never an abort."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import reference

import gpudrop
from gpudrop import Stream

X = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)
ONE = gpudrop.dropout(X[:100_000], 0.3, activation="relu", rng=Stream(1, 1))  # below the size that is shared out


@pytest.mark.parametrize("threads", range(1, numba.config.NUMBA_NUM_THREADS + 1))
def test_the_number_of_threads_changes_nothing(threads):
    numba.set_num_threads(threads)
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


FORK = """
import os, numpy as np, gpudrop
x = np.ones(1_000_003, np.float32)
want = gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1))
child = os.fork()
same = np.array_equal(gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1)), want)
if child == 0:
    os._exit(0 if same else 3)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ok")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_after_use():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


AT_EXIT = """
import atexit, numpy as np, gpudrop
x = np.ones(1_000_003, np.float32)
want = gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1))
same = lambda: np.array_equal(gpudrop.dropout(x, 0.3, rng=gpudrop.Stream(1, 1)), want)
atexit.register(lambda: print("ok" if same() else "different"))
"""


def test_a_call_at_interpreter_shutdown():
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


UNCACHED = """
import numpy as np, gpudrop
from numba.core import caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, path: None)
assert gpudrop.dropout(np.ones(8, np.float32), 0).sum() == 8
print("ok")
"""


def test_without_a_folder_for_the_cache():
    done = subprocess.run([sys.executable, "-c", UNCACHED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", done.stderr


HALVES = """
import numpy as np, gpudrop
halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
y = gpudrop.dropout(halves, 0)
same = (y.view(np.uint16) == halves.view(np.uint16)) | (np.isnan(y) & np.isnan(halves))
assert same.all(), halves[~same]
# Products with a scale of 4 / 3 round to nearest even, into subnormals and into inf.
y = gpudrop.dropout(halves, 0.25, rng=gpudrop.Stream(0, 0))
kept = gpudrop.keep_mask(2**16, 0.25, gpudrop.Stream(0, 0))
with np.errstate(all="ignore"):
    want = np.where(kept, halves.astype(np.float32) * np.float32(4 / 3), np.float32(0)).astype(np.float16)
same = (y.view(np.uint16) == want.view(np.uint16)) | (np.isnan(y) & np.isnan(want))
assert same.all(), halves[~same]
print("ok")
"""


@pytest.mark.parametrize("cpu", ["host", "generic"])
def test_float16_on_a_processor_with_and_without_instructions_for_it(cpu):
    environment = os.environ | ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""} if cpu == "generic" else {})
    done = subprocess.run([sys.executable, "-c", HALVES], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "ok\n", done.stderr


CACHED = """
import sys, numpy as np, gpudrop
from gpudrop.kernels import cpu
used, kernel = [], cpu._kernel
cpu._kernel = lambda *key: used.append(kernel(*key)[0]) or kernel(*key)
y = gpudrop.dropout(np.linspace(-2, 2, 9, dtype=np.float32), 0, activation=sys.argv[1])
print(sum(used[0].stats.cache_hits.values()), sum(used[0].stats.cache_misses.values()), *y)
"""


def run_at_once(names, cache):
    """A process for each activation, all at the same time: (hits, misses) and values of each."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", CACHED]
    processes = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, env=environment) for name in names]
    lines = [process.communicate()[0].split() for process in processes]
    return [(int(hits), int(misses)) for hits, misses, *_ in lines], [[float(y) for y in line[2:]] for line in lines]


def test_processes_that_start_at_once_share_a_cache_and_later_ones_compile_nothing(tmp_path):
    names = ["relu", "silu", "relu", "silu"]
    run_at_once(names, tmp_path)
    files = sorted(tmp_path.rglob("*.nb?"))
    stats, values = run_at_once(names, tmp_path)
    assert stats == [(1, 0)] * len(names)
    assert sorted(tmp_path.rglob("*.nb?")) == files
    # Numba doesn't lock its files, so no two kernels may share one.
    assert sum(file.suffix == ".nbi" for file in files) == len(set(names))
    x = np.linspace(-2, 2, 9, dtype=np.float32).astype(np.float64)
    for name, y in zip(names, values, strict=True):
        np.testing.assert_allclose(y, reference.ACTIVATIONS[name][0](x), rtol=1e-6)
