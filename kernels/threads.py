"""`share_out` divides the elements of an array among threads.

They are Python's threads. The kernels hold no lock, so many threads may call them at once, and a forked process may
continue to call them. Numba's own threading layers allow neither.

`gpudrop.torch` and tests of interrupts and failures may replace three names. `team`, if set, runs the work instead of
the pool. `pool()` returns an object with a method submit(work). `Lock` makes the locks of one call.
"""

import _thread
import functools
import os
import threading
from queue import SimpleQueue
from typing import Any

import numba
from numba.np.ufunc import parallel

SLICE = 1 << 16  # the least number of elements that a thread takes at a time
BLOCK = 1024  # elements that a kernel processes at a time: slices consist of whole blocks
SHARED = 1 << 20  # the least number of elements for several threads: waking them takes 100 microseconds and more
SHARED_AWAKE = 1 << 19  # the same for the threads of a `team`, which are usually awake already

Lock = threading.Lock

team: Any = None
"""Threads of another library: team(work, threads) runs work on that many of them and returns whether it did."""


def available():
    """The number of threads that Numba would use, without starting them.

    Starting Numba's OpenMP layer would also change PyTorch's number of threads. numba.set_num_threads has started it.
    """
    return numba.get_num_threads() if parallel._is_initialized else numba.config.NUMBA_NUM_THREADS


def share_out(part, size):
    """Call part(lo, hi) for slices of [0, size), on as many threads as numba.set_num_threads allows.

    After a failure, including an interrupt of this thread (Ctrl-C), no further slice begins. The failure is raised when
    no thread writes any more.
    """
    enough = SHARED if team is None else SHARED_AWAKE
    threads = min(available(), size // SLICE) if size >= enough else 1
    if threads == 1:
        part(0, size)
        return
    # Several slices per thread, so that a thread that wakes late or is delayed takes fewer.
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

    # An interrupt can come after any call of this thread. So all calls are inside a try, nothing is counted, and a
    # thread that holds a lock waits for no other.
    try:
        if team is None or not team(work, threads):
            for _ in range(threads - 1):
                pool().submit(helper)
    except RuntimeError:
        pass  # no thread can be started, as at interpreter shutdown; threads of the pool may still take slices
    except BaseException as error:
        failures.append(error)
    while True:
        try:
            work()
            for busy in helpers:  # a helper that is not in the list has not begun, and will find no slice left
                with busy:
                    pass
            break
        except BaseException as error:
            failures.append(error)
    if failures:
        raise failures[0]


class _Pool:
    """Threads that run submitted work. concurrent.futures shares locks that an interrupt may leave locked."""

    def __init__(self):
        self._queue, self._missing = SimpleQueue(), os.cpu_count() or 1

    def submit(self, work):
        """Run work() in a thread soon; a RuntimeError if no thread can be started."""
        if self._missing > 0:
            _thread.start_new_thread(self._loop, ())
            self._missing -= 1
        self._queue.put(work)

    def _loop(self):
        while True:
            self._queue.get()()


@functools.cache
def _pool_of(process):
    return _Pool()


def pool():
    """The pool of this process. A forked child inherits its parent's pool without the threads."""
    return _pool_of(os.getpid())
