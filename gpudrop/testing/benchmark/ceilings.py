"""The ceiling: a plain loop that copies as many bytes on as many threads, multiplied by a number."""

from numba import njit, prange


@njit(parallel=True, fastmath=True)
def plain(x, saved, s, y):
    """Compute y = x * s + saved. If saved is x itself, only one array is read and y = x * s."""
    if saved.ctypes.data == x.ctypes.data:
        for i in prange(x.size):
            y[i] = x[i] * s
    else:
        for i in prange(x.size):
            y[i] = x[i] * s + saved[i]
