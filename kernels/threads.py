"""The threads that share the elements of an array between them: `share_out`.

They are Python's threads. The kernels hold no lock, so many threads may call them at once, and a forked process may go
on calling them; Numba's own threading layers allow neither.

Three names may be replaced, by PyTorch's face or by tests of interrupts and failures: `team`, if set, runs the work
instead of the pool; `pool()` returns an object with a method submit(work); `Lock` makes the locks of one call.
"""

import _thread
import functools
import os
import threading
from queue import SimpleQueue
from typing import Any

import numba
from numba.np.ufunc import parallel

SLICE = 1 << 16  # elements that a thread takes at a time, at least
BLOCK = 1024  # elements that a kernel does at a time: slices are of whole blocks
SHARED = 1 << 21  # elements that are worth waking threads for, which takes up to 100 microseconds
SHARED_AWAKE = 1 << 19  # the same for the threads of a `team`, which have mostly just done something else

Lock = threading.Lock

team: Any = None
"""Threads of another library: team(work, threads) runs work on so many of them and returns whether it has."""


def available():
    """How many threads Numba would use here, without starting them.

    As it starts, Numba's OpenMP layer sets the number of PyTorch's threads too; set_num_threads has started it.
    """
    return numba.get_num_threads() if parallel._is_initialized else numba.config.NUMBA_NUM_THREADS


def share_out(part, size):
    """part(lo, hi) over [0, size) on as many threads as numba.set_num_threads allows.

    After a failure, be it an interrupt of this thread (Ctrl-C), no further slice is begun, and it is raised when nobody
    writes any more.
    """
    enough = SHARED if team is None else SHARED_AWAKE
    threads = min(available(), size // SLICE) if size >= enough else 1
    if threads == 1:
        part(0, size)
        return
    # Several slices for each thread, so that one that wakes late or is held up takes fewer.
    step = max(SLICE, size // (8 * threads * BLOCK) * BLOCK)
    starts = iter(range(0, size, step))
    lock, helpers, failures = Lock(), [], []

    def work():
        try:
            while True:
                with lock:
                    lo = None if failures else next(starts, None)
                if lo is None:
                    return
                part(lo, min(lo + step, size))
        except BaseException as error:
            failures.append(error)

    def helper():
        busy = Lock()
        with busy:
            helpers.append(busy)  # before a slice is taken
            work()

    # An interrupt comes after any call of this thread. So all calls are in a try, nothing is counted, and who holds a
    # lock waits for none.
    try:
        if team is None or not team(work, threads):
            for _ in range(threads - 1):
                pool().submit(helper)
    except RuntimeError:
        pass  # no thread can be started, as at interpreter shutdown; one may still come by and take a slice
    except BaseException as error:
        failures.append(error)
    while True:
        try:
            work()
            for busy in helpers:  # who isn't among them has not begun, and finds nothing left to do
                with busy:
                    pass
            break
        except BaseException as error:
            failures.append(error)
    if failures:
        raise failures[0]


class _Pool:
    """Threads that do what is submitted. Those of concurrent.futures share locks that an interrupt may leave locked."""

    def __init__(self):
        self._queue, self._missing = SimpleQueue(), os.cpu_count() or 1

    def submit(self, work):
        """Have work() done soon, or a RuntimeError where no thread can be started."""
        if self._missing > 0:
            _thread.start_new_thread(self._serve, ())
            self._missing -= 1
        self._queue.put(work)

    def _serve(self):
        while True:
            self._queue.get()()


@functools.cache
def _pool_of(process):
    return _Pool()


def pool():
    """The pool of this process: a forked child inherits its parent's without the threads."""
    return _pool_of(os.getpid())
