"""Arrays between pages that no program may touch: a process that reads or writes beyond them is killed.

The CPU kernels use pointers, which Numba's bounds checks do not see.
"""

import ctypes
import mmap

import numpy as np

PAGE, NO_ACCESS, READ_WRITE = mmap.PAGESIZE, 0, mmap.PROT_READ | mmap.PROT_WRITE
_mapped = []  # the memory of all arrays, which stays mapped


def fenced(shape, dtype, last=True):
    """A C-contiguous array of zeros that ends, or begins, where its pages do."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    pages = max(1, -(-size // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    _mapped.append(memory)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (first, first + (pages + 1) * PAGE):
        if protect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    offset = PAGE + (pages * PAGE - size if last else 0)
    return np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
