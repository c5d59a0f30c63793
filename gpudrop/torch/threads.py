"""Run the CPU kernels on torch's threads.

Torch's OpenMP threads spin for a while after each operator, so threads of our own would compete with them for cores.
The kernels therefore run on torch's threads if torch is built with GNU OpenMP, as its packages for Linux are.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from gpudrop.kernels import threads as kernel_threads


def join() -> None:
    """Run the kernels on torch's threads from now on, in this process; torch's number of threads is the limit."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries or not torch.backends.openmp.is_available():
        return
    parallel = ctypes.CDLL(str(libraries[0])).GOMP_parallel
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel.argtypes, parallel.restype = (function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    process = os.getpid()

    def team(work: Callable[[], None], threads: int) -> bool:
        if os.getpid() != process:  # OpenMP threads don't survive a fork, and a call would wait for them forever
            return False
        caller, through = threading.get_ident(), False

        def member(_: int | None) -> None:
            nonlocal through
            mine = threading.get_ident() == caller
            work()
            if mine:
                through = True  # the last statement: no call follows that an interrupt could hit

        parallel(function(member), None, min(threads, torch.get_num_threads()), 0)
        if not through:  # an interrupt arrived at the start of the callback; ctypes does not raise it
            raise KeyboardInterrupt
        return True

    kernel_threads.team = team
