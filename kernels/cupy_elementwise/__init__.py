"""CuPy kernels, assembled from printed formulas and from the .cuh files of this folder.

A thread processes one chunk at a time: the elements of one Philox call. It loads the chunk with 16-byte accesses, and
draws while the loads run. It applies the element formula in registers, and stores the results with 16-byte accesses.
The two ends of an array are processed one element at a time by the same formula. So are arrays that are not contiguous
or not aligned. If the kernel reads a mask, a thread's location in it advances with the chunks. So does its column, if
the kernel reads rows. Kernels with sums have another loop: see sums.cuh.
"""

from gpudrop.kernels.chunks import ROWS
from gpudrop.kernels.cupy_elementwise.launching import (
    advance,
    devices,
    grow,
    launch,
    on_device,
    put,
    saves_bits,
    unavailable,
)

__all__ = ["ROWS", "advance", "devices", "grow", "launch", "on_device", "put", "saves_bits", "unavailable"]
