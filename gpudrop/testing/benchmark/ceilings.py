"""The ceilings: plain loops that read and write as many arrays on as many threads, multiplied by a number."""

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


@njit(parallel=True, fastmath=True)
def plain_pair(x, first, second, s, y, z):
    """Compute y = x * s + first and z = x * s + second: three arrays are read, and two are written."""
    for i in prange(x.size):
        y[i] = x[i] * s + first[i]
        z[i] = x[i] * s + second[i]
