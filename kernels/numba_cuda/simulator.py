"""The names of `intrinsics`, in plain NumPy for the CUDA simulator."""

import functools
import math
import threading
from typing import Any

import numpy as np

from gpudrop.formulas import MATH
from gpudrop.kernels import half
from gpudrop.kernels.chunks import WARP


def device(function):
    """Run a function as plain Python, without NumPy's floating-point warnings, which CUDA does not have."""

    def quiet(*args):
        with np.errstate(all="ignore"):
            return function(*args)

    return quiet


def vector_access(width):
    def load(array, i, lanes, j):
        count = lanes.dtype.itemsize // array.dtype.itemsize  # elements in a lane: at most two, of 16 bits each
        for k in range(width // array.dtype.itemsize):
            if k % count == 0:
                lanes[j + k // count] = array[i + k]
            else:
                lanes[j + k // count] |= np.uint32(array[i + k]) << np.uint32(16)

    def store(lanes, j, array, i):
        for k in range(width // lanes.dtype.itemsize):
            array[i + k] = lanes[j + k]

    return load, store


def aligned(array, i, width):
    return (array.ctypes.data + i * array.dtype.itemsize) % width == 0


_words = np.zeros(WARP, np.uint32)  # one for each thread of a block: the simulator runs one block after another


def exchanged(value, distance):
    thread = threading.current_thread()
    me = thread.threadIdx.x
    _words[me] = value
    thread.syncthreads()
    value = _words[me ^ distance]
    thread.syncthreads()
    return value


_atomic = threading.Lock()


def set_bits(words, i, bits):
    with _atomic:
        words[i] |= bits


conversions = functools.cache(lambda native: half.numpy_conversions(device))
MATH_FUNCTIONS = {name: getattr(np, name, None) for name in (*MATH, "divide")}
MATH_FUNCTIONS["exchanged"] = exchanged
MATH_FUNCTIONS["erf"] = lambda x: type(x)(math.erf(x))
FAST_FUNCTIONS: dict[str, Any] = {}
FAST_FORMULAS: dict[Any, Any] = {}
OWN_FORMULAS: dict[Any, Any] = {}
