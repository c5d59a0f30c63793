"""Numba CUDA kernels: `map` is their text, `launch` compiles and launches them, `intrinsics` is their LLVM and PTX."""

import numba_cuda  # noqa: F401  (first: without it, old versions of Numba have a numba.cuda of their own)
from numba import cuda  # noqa: F401  (`gpudrop.backends` copies arrays with it)

from gpudrop.kernels.numba_cuda.launch import advance, current_device, devices, grow, launch, unavailable

__all__ = ["advance", "current_device", "devices", "grow", "launch", "unavailable"]
