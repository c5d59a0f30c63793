"""CuPy kernels: assembled from printed formulas and the files beside this one.

A thread takes a chunk, the elements of one Philox call: it loads as many with 16-byte accesses, draws meanwhile, runs
the element formula over them in registers, and stores them the same way. The two ends of an array, and arrays that
aren't contiguous or aligned, go element by element through the same formula. Where a mask is read, a thread's location
in it moves on with the chunks.
"""

from gpudrop.kernels.cupy_elementwise.launching import advance, devices, grow, launch, on_device, put, unavailable

__all__ = ["advance", "devices", "grow", "launch", "on_device", "put", "unavailable"]
