"""Whether an array's memory exists yet: a new array's pages do so only when they are first written to."""

import ctypes
import functools
import mmap


@functools.cache
def _mincore():
    """The operating system's function, or None."""
    try:
        function = ctypes.CDLL(None).mincore
    except (AttributeError, OSError, TypeError):  # not on Windows
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_ubyte))
    return function


def exist(array):
    """Whether the page in the middle of a contiguous array's memory is there; False where that can't be known."""
    mincore, state = _mincore(), ctypes.c_ubyte()
    middle = (array.ctypes.data + array.nbytes // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    return mincore is not None and mincore(middle, 1, ctypes.byref(state)) == 0 and bool(state.value & 1)
