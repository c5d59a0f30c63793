"""The ceiling: a copy of as many bytes, times a number, on as many threads, in a loop as anybody writes it."""

from numba import njit, prange


@njit(parallel=True, fastmath=True)
def plain(x, saved, s, y):
    """y = x * s + saved; saved is x itself where one array is read, and then y = x * s."""
    if saved.ctypes.data == x.ctypes.data:
        for i in prange(x.size):
            y[i] = x[i] * s
    else:
        for i in prange(x.size):
            y[i] = x[i] * s + saved[i]
