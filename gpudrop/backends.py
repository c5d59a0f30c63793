"""Which kernels serve an array: the kinds of arrays, the backends, and the way between them."""

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BACKENDS = ("cpu", "cupy_elementwise", "numba_cuda")
"""The modules of gpudrop.kernels, by name."""

_KIND_NAMES = {"numpy": "NumPy array", "cupy": "CuPy array", "numba": "Numba device array"}


@dataclass(frozen=True)
class Operand:
    """A user's array as kernels take it.

    Attributes
    ----------
    array : array
        The same memory as a NumPy array, a CuPy array or a Numba device array.
    kind : {"numpy", "cupy", "numba"}
    give_back : callable
        Turns a result of that kind into the user's own kind.
    """

    array: Any
    kind: str
    give_back: Callable

    def describe(self):
        return f"a {_KIND_NAMES[self.kind]} of dtype {self.array.dtype} and shape {tuple(self.array.shape)}"


def adopt(name, x):
    """The operand for an array of any supported kind, without moving it between devices.

    Raises
    ------
    TypeError
        If x, which the message calls `name`, is of no supported kind.
    """
    if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
        return Operand(x, "numpy", _unchanged)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return Operand(x, "cupy", _unchanged)
    if getattr(type(x), "__cuda_ndarray__", False):
        return Operand(x, "numba", _unchanged)
    if hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray):
        on_host = int(x.__dlpack_device__()[0]) == 1
        array = np.from_dlpack(x) if on_host else _cupy(name, x).from_dlpack(x)
        return Operand(array, "numpy" if on_host else "cupy", functools.partial(_through_dlpack, x))
    if hasattr(x, "__cuda_array_interface__"):
        return Operand(_cupy(name, x).asarray(x), "cupy", _unchanged)
    raise TypeError(
        f"{name} must be a NumPy, CuPy or Numba array, or have DLPack or __cuda_array_interface__, "
        f"got {type(x).__module__}.{type(x).__qualname__}"
    )


def _unchanged(result):
    return result


def _cupy(name, x):
    try:
        import cupy
    except ImportError:
        raise TypeError(
            f"{name} is a {type(x).__name__} on a device, which needs CuPy, and CuPy is not installed"
        ) from None
    return cupy


def _through_dlpack(x, result):
    """The result in x's namespace, or as it is where that has no from_dlpack."""
    if hasattr(x, "__array_namespace__"):
        namespace = x.__array_namespace__()
    else:
        namespace = sys.modules[type(x).__module__.partition(".")[0]]
    return namespace.from_dlpack(result) if hasattr(namespace, "from_dlpack") else result


def empty_like(operand):
    """An uninitialised array like the operand's, in the same memory order."""
    if operand.kind == "numpy":
        return np.empty_like(operand.array, subok=False)
    if operand.kind == "cupy":
        return sys.modules["cupy"].empty_like(operand.array)
    from numba import cuda

    return cuda.device_array_like(operand.array, stream=operand.array.stream)


def empty_mask(shape, like):
    """An uninitialised boolean array of the operand's kind, or of NumPy's if `like` is None."""
    if like is None or like.kind == "numpy":
        return np.empty(shape, np.bool_)
    if like.kind == "cupy":
        return sys.modules["cupy"].empty(shape, np.bool_)
    from numba import cuda

    return cuda.device_array(shape, np.bool_, stream=like.array.stream)


def overlap(x, y):
    """Whether two arrays of one kind share an element's memory."""
    return x.size > 0 and np.shares_memory(_addresses(x), _addresses(y))


def same_memory(x, y):
    """Whether two arrays of one kind are the same elements in the same places."""
    x, y = _addresses(x), _addresses(y)
    return x.ctypes.data == y.ctypes.data and x.strides == y.strides and x.shape == y.shape


class _Addresses:
    def __init__(self, interface):
        self.__array_interface__ = interface


def _addresses(array):
    """A NumPy array with the same addresses, whose elements must not be touched."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        interface = array.__cuda_array_interface__
        return np.asarray(_Addresses({k: interface[k] for k in ("shape", "strides", "data", "typestr", "version")}))
    return array._ary  # a Numba array in the simulator


def is_writable(array):
    return not isinstance(array, np.ndarray) or array.flags.writeable


@functools.cache
def load(backend):
    """The kernel module of a backend, or the reason why it can't serve, as a sentence."""
    try:
        module = importlib.import_module(f"gpudrop.kernels.{backend}")
    except ImportError as error:
        return f"it can't be imported ({error})"
    return module.unavailable() or module


def choose(kind, backend=None):
    """The kernel module that serves arrays of a kind: by the kind, or forced by name.

    Raises
    ------
    ValueError
        If the name is unknown, or the backend works in other memory than the array's.
    RuntimeError
        If the backend can't serve on this machine; the message says why.
    """
    name = _backend_of(kind) if backend is None else backend
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if (kind == "numpy") != (name == "cpu"):
        place = "host" if kind == "numpy" else "device"
        raise ValueError(f"backend {name!r} can't serve a {_KIND_NAMES[kind]}, which lives on the {place}")
    module = load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} can't serve: {module}")
    return module


def _backend_of(kind):
    return {"numpy": "cpu", "cupy": "cupy_elementwise", "numba": "numba_cuda"}[kind]


def launch(module, kind, fusion, a, b, out, draw):
    """Run a fusion on arrays of a kind, viewed as the kernel module's own kind."""
    if kind not in module.serves:
        own = {id(array): _foreign_view(module, array, fusion) for array in (a, b, out)}
        a, b, out = own[id(a)], own[id(b)], own[id(out)]
    module.launch(fusion, a, b, out, draw)


def _foreign_view(module, array, fusion):
    """The same device memory as the other library's array, on the stream that is current in its own."""
    array = array.view(fusion.storage)  # a dtype that both libraries have
    if "numba" in module.serves:
        from numba import cuda

        return cuda.as_cuda_array(array, sync=False)
    import cupy

    return cupy.asarray(array)
