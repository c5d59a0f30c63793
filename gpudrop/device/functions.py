"""Functions for users' own Numba kernels, of the same formulas as gpudrop's kernels.

Numba replaces a call of a `DeviceFunction` by the function's own code, in @njit functions and in @cuda.jit kernels. In
the CUDA simulator and in plain Python it is an ordinary function.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.imputils import lower_constant
from numba.core.typing.typeof import typeof_impl
from numba.extending import models, overload, register_model
from numba.types import Dummy

from gpudrop.formulas import MATH, compiled, philox


class DeviceFunction:
    """A function that Numba inlines wherever it is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        # Numba reads these attributes: it inlines the py_func of an object with such options.
        self.py_func, self.targetoptions = function, {"inline": "always"}

    def __call__(self, *args: Any) -> Any:
        with np.errstate(all="ignore"):
            return self.py_func(*args)

    def __repr__(self) -> str:
        return f"<gpudrop.device.{self.py_func.__name__}>"

    def __reduce__(self) -> str:
        return self.py_func.__qualname__  # a name of its module


class DeviceFunctionType(Dummy):
    """The Numba type of the name of a function whose calls were inlined."""


@typeof_impl.register(DeviceFunction)
def _(function: DeviceFunction, context: Any) -> DeviceFunctionType:
    return DeviceFunctionType(repr(function))


@lower_constant(DeviceFunctionType)
def _(context: Any, builder: Any, kind: DeviceFunctionType, function: DeviceFunction) -> Any:
    return context.get_dummy_value()


register_model(DeviceFunctionType)(models.OpaqueModel)


# GPUs have an instruction of their own for it.
overload(philox.product)(lambda a, b: lambda a, b: np.uint64(a) * np.uint64(b))


if not numba.config.ENABLE_CUDASIM:
    with contextlib.suppress(Exception):  # without a working numba-cuda, no CUDA kernel can be compiled
        from gpudrop.kernels.numba_cuda.intrinsics import register_product

        register_product(philox.product)


def formula(function: Callable[..., Any], real: type = np.float32) -> DeviceFunction:
    """A formula as a DeviceFunction, with arithmetic in a type."""
    functions = {name: getattr(math, name) for name in MATH} | {"divide": DeviceFunction(lambda a, b: a / b)}
    made: DeviceFunction = compiled(function, real, functions, DeviceFunction, {philox.product: philox.product})
    return made
