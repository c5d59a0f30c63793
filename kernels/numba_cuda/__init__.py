"""Numba CUDA kernels: `map` has their code, `intrinsics` their LLVM and PTX, `launching` compiles and launches them."""

import numba_cuda  # noqa: F401  (first: otherwise old versions of Numba import their own numba.cuda)

from gpudrop.kernels.chunks import ROWS
from gpudrop.kernels.numba_cuda.launching import (
    advance,
    current_device,
    devices,
    grow,
    launch,
    on_device,
    put,
    saves_bits,
    unavailable,
)

__all__ = [
    "ROWS",
    "advance",
    "current_device",
    "devices",
    "grow",
    "launch",
    "on_device",
    "put",
    "saves_bits",
    "unavailable",
]
