"""Numba CUDA kernels: `map` is their text, `intrinsics` their LLVM and PTX, `launching` compiles and launches them."""

import numba_cuda  # noqa: F401  (first: without it, old versions of Numba have a numba.cuda of their own)

from gpudrop.kernels.numba_cuda.launching import (
    advance,
    current_device,
    devices,
    grow,
    launch,
    on_device,
    put,
    unavailable,
)

__all__ = ["advance", "current_device", "devices", "grow", "launch", "on_device", "put", "unavailable"]
