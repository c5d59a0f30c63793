"""Torch's threads for the host kernels.

Torch's OpenMP threads spin for a while after each operator, and threads of our own would share the processor's cores
with them. So the kernels run on torch's, where torch is built with GNU's OpenMP, as its packages for Linux are.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from gpudrop.kernels import threads as kernel_threads


def join() -> None:
    """Let the kernels use torch's threads from now on, in this process; no more of them than torch does."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries or not torch.backends.openmp.is_available():
        return
    parallel = ctypes.CDLL(str(libraries[0])).GOMP_parallel
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    parallel.argtypes, parallel.restype = (function, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    process = os.getpid()

    def team(work: Callable[[], None], threads: int) -> bool:
        if os.getpid() != process:  # its threads don't survive a fork, and it would wait for them
            return False
        caller, through = threading.get_ident(), False

        def member(_: int | None) -> None:
            nonlocal through
            mine = threading.get_ident() == caller
            work()
            if mine:
                through = True  # and nothing is called after it, where an interrupt could come

        parallel(function(member), None, min(threads, torch.get_num_threads()), 0)
        if not through:  # an interrupt came as it began, which ctypes doesn't raise
            raise KeyboardInterrupt
        return True

    kernel_threads.team = team
