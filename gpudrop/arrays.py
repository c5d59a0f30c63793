"""Everything that depends on the kind of an array: its kind, allocation, checks and views."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from gpudrop.hints import name_of
from gpudrop.kernels.spec import STORAGE

KINDS = {"numpy": "NumPy array", "cupy": "CuPy array", "numba": "Numba device array"}
"""The kinds of arrays, and their names in messages."""

DTYPES = tuple(dtype for dtype in STORAGE if dtype != "bool")
"""The names of the dtypes that dropout accepts."""


# DLPack's numbers of the devices whose memory is the host's (CPU, pinned for CUDA) and CUDA's.
_DLPACK_HOST, _DLPACK_CUDA = (1, 3), (2, 13)


class Operand(NamedTuple):
    """A user's array in the form that kernels take.

    Attributes
    ----------
    array : array
        The same memory as a NumPy array, a CuPy array or a Numba device array.
    kind : {"numpy", "cupy", "numba"}
    give_back : callable
        Converts a result of that kind to the user's own kind.
    """

    array: Any
    kind: str
    give_back: Callable

    def likeness(self):
        """The properties that another array must share with this one; `describe` puts them into words."""
        device = self.array.data.device_id if self.kind == "cupy" else None
        return self.kind, self.array.dtype, self.array.shape, device

    def on_device(self):
        """The context in which memory is allocated and kernels run. For CuPy the array's device is the current one."""
        return elsewhere(self.array) or nullcontext() if self.kind == "cupy" else nullcontext()


def elsewhere(array):
    """A CuPy array's device if it is not the current one, else None, which avoids the time of switching devices."""
    return array.device if array.data.device_id != _get_device()() else None


@cache
def _get_device():
    from cupy.cuda.runtime import getDevice

    return getDevice


@cache
def _numba_device():
    from gpudrop.kernels.numba_cuda import current_device

    return current_device


@lru_cache(maxsize=256)
def name_of_dtype(dtype):
    """The name of a dtype that dropout accepts, or an empty string. NumPy computes a dtype's name in microseconds."""
    return dtype.name if dtype.name in DTYPES and dtype.isnative else ""


def describe(kind, dtype, shape, device):
    """A likeness in words."""
    where = "" if device is None else f" on device {device}"
    return f"a {KINDS[kind]} of dtype {dtype} and shape {shape}{where}"


def as_operand(name, x):
    """The operand for an array of any supported kind, without moving it between devices.

    Raises
    ------
    TypeError
        If x is of no supported kind. The message calls it `name`.
    """
    kind = _own_kind(type(x))  # type: ignore[arg-type]  # mypy takes no type[Any] for hashable
    if kind is not None:
        return Operand(x, kind, _unchanged)
    cupy = sys.modules.get("cupy")
    if getattr(type(x), "__cuda_ndarray__", False):
        return Operand(_plain_numba(x), "numba", _unchanged)
    if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
        # Kernels take the array without its subclass, because np.matrix is never one-dimensional.
        return Operand(np.asarray(x), "numpy", partial(_as_subclass, x))
    if isinstance(x, np.generic):
        array = np.asarray(x)
        array.flags.writeable = False  # like the scalar, in case it is passed as out
        return Operand(array, "numpy", _as_scalar)
    if cupy is not None and isinstance(x, cupy.ndarray):
        return Operand(x, "cupy", _unchanged)
    if hasattr(x, "__dlpack__") and not isinstance(x, (np.ndarray, type)):
        array = _from_dlpack(name, x)
        return Operand(array, "numpy" if isinstance(array, np.ndarray) else "cupy", partial(_through_dlpack, x))
    if hasattr(x, "__cuda_array_interface__") and not isinstance(x, type):
        return Operand(_from_interface(name, x), "cupy", _unchanged)
    convertible = isinstance(x, (int, float, list, tuple)) and name != "out"
    advice = f"; convert it with np.asarray({name}, np.float32)" if convertible else ""
    raise TypeError(
        f"{name} must be a NumPy, CuPy or Numba array, or have DLPack or __cuda_array_interface__, "
        f"got {name_of(type(x))}{advice}"
    )


@lru_cache(maxsize=256)
def _own_kind(of):
    """The kind of all arrays of a class, or None if the class does not determine it."""
    if of is np.ndarray:
        return "numpy"
    if getattr(of, "__cuda_ndarray__", False):
        return None if issubclass(of, np.ndarray) else "numba"
    return "cupy" if of.__module__ == "cupy" and of.__name__ == "ndarray" else None


def _unchanged(result):
    return result


def _as_subclass(x, result):
    """The result as NumPy's own functions return it: a matrix for np.matrix, a plain array for np.memmap."""
    if result.ndim != x.ndim:
        return result
    try:
        return x.__array_wrap__(result, None, False)
    except TypeError:  # the signature in subclasses from before NumPy 2
        return x.__array_wrap__(result)


def _as_scalar(result):
    return result[()]  # a result with axes stays an array


def _cupy(name, x):
    try:
        import cupy
    except ImportError:
        raise TypeError(
            f"{name} is a {type(x).__name__} on a GPU, which needs CuPy, and CuPy is not installed"
        ) from None
    return cupy


def _from_dlpack(name, x):
    try:
        return _exported(name, x)
    except (RuntimeError, BufferError, ValueError) as error:
        reason = str(error).rstrip(".")
        if _is_tensor(x):
            reason = f"{'it is nested' if x.is_nested else reason} ({x.dtype}, {x.layout})"
            if (str(x.dtype), str(x.layout), x.is_nested) in _OF_TORCHS_FACE:
                reason += "; use gpudrop.torch.functional for tensors"
        raise TypeError(f"{name} can't be read through DLPack: {reason}") from error


def _exported(name, x):
    """x's memory as an array of NumPy's or CuPy's, or whatever error the other library raises."""
    device = int(x.__dlpack_device__()[0])
    if device not in _DLPACK_HOST + _DLPACK_CUDA:
        raise TypeError(f"{name} must be on the CPU or on a CUDA device, got DLPack's device type {device}")
    if _is_tensor(x) and x.is_neg():  # PyTorch exports its memory, where the numbers have the opposite sign
        raise BufferError("Can't export tensors with the negative bit set")
    library = np if device in _DLPACK_HOST else _cupy(name, x)
    return library.from_dlpack(x)


# The tensors of gpudrop.torch: dtype, layout, and whether it is nested.
_OF_TORCHS_FACE = {(f"torch.{name}", "torch.strided", False) for name in DTYPES}


def _is_tensor(x):
    """Whether x is of a class of PyTorch's, or of one that derives from those; without importing PyTorch."""
    return any(base.__module__.partition(".")[0] == "torch" for base in type(x).__mro__)


def _from_interface(name, x):
    try:
        return _cupy(name, x).asarray(x)
    except RuntimeError as error:
        raise TypeError(f"{name} can't be read through __cuda_array_interface__: {error}") from error


def _plain_numba(x):
    """A plain device array. Numba's managed and mapped arrays are NumPy arrays too, and lack some of its methods."""
    if not isinstance(x, np.ndarray):
        return x
    from numba import cuda

    return cuda.as_cuda_array(x, sync=False)


def _through_dlpack(x, result):
    """The result in x's namespace, or unchanged if the namespace has no from_dlpack."""
    library = namespace(x)
    return library.from_dlpack(result) if hasattr(library, "from_dlpack") else result


def namespace(x):
    """The module of an array's functions: its namespace of the array API standard, if it has one."""
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    libraries = [sys.modules[base.__module__.partition(".")[0]] for base in type(x).__mro__]
    # A subclass may come from a user's module.
    return next((library for library in libraries if hasattr(library, "from_dlpack")), libraries[0])


def empty_like(operand, dtype=None):
    """An uninitialised array like the operand's, in the same memory order. dtype: its dtype, if it is another one.

    A Numba device array with another dtype is in C order.
    """
    array = operand.array
    if operand.kind == "numpy":
        return np.empty_like(array, dtype, subok=False)
    if dtype is not None and dtype != array.dtype:
        if operand.kind == "numba":
            return empty(array.shape, dtype, operand)
        with operand.on_device():
            return sys.modules["cupy"].empty_like(array, dtype)
    if operand.kind == "cupy":
        cupy = sys.modules["cupy"]
        if array._c_contiguous and not elsewhere(array):  # flags.c_contiguous would create an object
            return cupy.ndarray(array.shape, array.dtype)  # what empty_like does, without its check of the memory order
        with operand.on_device():
            return cupy.empty_like(array)
    from numba import cuda

    if array.size and hasattr(array, "gpu_data") and array.is_c_contiguous():
        context = array.gpu_data.context
        if _numba_device()() == context.device.id:  # what device_array_like does, in less time
            memory = context.memalloc(array.alloc_size)
            return type(array)(array.shape, array.strides, array.dtype, stream=array.stream, gpu_data=memory)
    return cuda.device_array_like(array, stream=array.stream)


def copied(array):
    """A copy of an array in memory of its own."""
    if not hasattr(array, "copy_to_device"):
        return array.copy()
    from numba import cuda

    copy = cuda.device_array_like(array, stream=array.stream)
    copy.copy_to_device(array, stream=array.stream)
    return copy


def contiguous(array):
    """The array, or a copy of it in C order."""
    if hasattr(array, "copy_to_device"):
        return array if array.is_c_contiguous() else copied(array)
    return array if array.flags.c_contiguous else array.copy()


def halves(array, first):
    """The halves of an array along its last axis. If first is false, the second one comes first."""
    *others, size = array.shape
    both = []
    for half in (slice(size // 2), slice(size // 2, size)):
        index = *(slice(None) for _ in others), half  # not an ellipsis, which Numba's arrays do not support
        both.append(array[index])
    return both if first else both[::-1]


def zeros(shape, dtype, like):
    """As `empty`, filled with zeros."""
    if like.kind == "numpy":
        return np.zeros(shape, dtype)
    if like.kind == "cupy":
        with like.on_device():
            return sys.modules["cupy"].zeros(shape, dtype)
    from numba import cuda

    return cuda.to_device(np.zeros(shape, dtype), stream=like.array.stream)


def empty(shape, dtype, like):
    """An uninitialised array in C order, of an operand's kind and on its device."""
    if like.kind == "numpy":
        return np.empty(shape, dtype)
    if like.kind == "cupy":
        with like.on_device():
            return sys.modules["cupy"].empty(shape, dtype)
    from numba import cuda

    return cuda.device_array(shape, dtype, stream=like.array.stream)


def bytes_of_bits(size):
    """The number of bytes in memory for `size` bits: CUDA kernels write whole words of 32 bits."""
    return (size + 31) // 32 * 4


def empty_bits(size, like):
    """An uninitialised array for `size` bits, of an operand's kind."""
    return empty(bytes_of_bits(size), np.uint8, like)


def in_dtype(array, dtype):
    """A view in another dtype of the same item size. Numba's own view method rejects arrays without axes."""
    if hasattr(array, "gpu_data"):
        return type(array)(array.shape, array.strides, dtype, stream=array.stream, gpu_data=array.gpu_data)
    return array.view(dtype)


def to_host(array):
    """Copy a device array to NumPy, after all work that is queued on the device."""
    finish(array)
    return array.get() if hasattr(array, "get") else array.copy_to_host()


def overwrite(array, values):
    """Copy a NumPy array into a device array, after all work that is queued on the device and before later work."""
    finish(array)
    array.set(values) if hasattr(array, "set") else array.copy_to_device(values)
    finish(array)


def finish(array):
    """Wait for all streams of an array's device."""
    if hasattr(array, "get"):
        with array.device:
            sys.modules["cupy"].cuda.runtime.deviceSynchronize()
    else:
        from numba import cuda

        cuda.synchronize()


def stream_owner(operand, target):
    """The one of two arrays whose stream the kernels use. Only a Numba array has one; the operand's comes first."""
    if operand.kind == "numba" and not operand.array.stream:
        return operand._replace(array=target)
    return operand


def repeated(operand, copies):
    """The operand, repeated `copies` times along a new first axis in the same memory."""
    x, shape = operand.array, (copies, *operand.array.shape)
    if operand.kind == "numpy":
        array = np.broadcast_to(x, shape)
    elif operand.kind == "cupy":
        array = sys.modules["cupy"].broadcast_to(x, shape)
    elif hasattr(x, "gpu_data"):
        array = type(x)(shape, (0, *x.strides), x.dtype, stream=x.stream, gpu_data=x.gpu_data)
    else:
        array = type(x)(np.broadcast_to(x._ary, shape))  # in the simulator
    return operand._replace(array=array)


class _Device:
    """Device memory with an array interface, but without a stream to wait for. It keeps the memory's owner alive."""

    def __init__(self, interface, owner):
        self.__cuda_array_interface__ = interface
        self.owner = owner


def overlap(x, y):
    """Whether two arrays of one kind share an element's memory."""
    if x is y or x.size == 0:
        return x.size > 0
    if isinstance(x, np.ndarray):  # as the rest would return, in a third of the time
        return np.shares_memory(x, y)
    first, second = _begin(x), _begin(y)
    if first is None or second is None:
        return np.shares_memory(_addresses(x), _addresses(y))
    return second < first + x.nbytes if first <= second else first < second + y.nbytes


def _begin(array):
    """The address of a contiguous array on a device; None for others."""
    kind = _own_kind(type(array))  # type: ignore[arg-type]  # as in as_operand
    if kind == "cupy":
        return array.data.ptr if array._c_contiguous else None
    if kind == "numba" and hasattr(array, "gpu_data") and array.is_c_contiguous():
        return array.device_ctypes_pointer.value
    return None


def overlaps_itself(array):
    """Whether elements of an array share memory. It is also true for arrays whose axes are only interleaved."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        return False  # a fast path: the rest takes a microsecond
    reach = array.dtype.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return array.size > 0
        reach += stride * (length - 1)
    return False


def same_memory(x, y):
    """Whether two arrays of one kind are the same elements at the same addresses."""
    if x is y:
        return True
    x, y = _addresses(x), _addresses(y)
    return x.ctypes.data == y.ctypes.data and x.strides == y.strides and x.shape == y.shape


def _interface(array):
    """The CUDA array interface with strides: Numba leaves out the strides of a broadcast array."""
    interface = {key: array.__cuda_array_interface__[key] for key in ("shape", "data", "typestr", "version")}
    return interface | {"strides": tuple(array.strides)}


class _Addresses:
    def __init__(self, interface):
        self.__array_interface__ = interface


def _addresses(array):
    """A NumPy array with the same addresses. Its elements must not be accessed."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "__cuda_array_interface__"):
        return np.asarray(_Addresses(_interface(array)))
    return array._ary  # a Numba array in the simulator


def is_writable(array):
    return not isinstance(array, np.ndarray) or array.flags.writeable


def viewer(kind):
    """The function that views a device array, in the same memory, as an array of CuPy or Numba."""
    if kind == "cupy":
        import cupy

        return lambda array: cupy.asarray(_Device(_interface(array), array))
    from numba import cuda

    return partial(cuda.as_cuda_array, sync=False)


def target_of(name: str, out: Any, operand: Operand, source: str, likeness: Any = None) -> Any:
    """The user's array to write to. It is checked to be like the operand, and not to overlap it partially.

    likeness: that of the array, if it is not the operand's.

    An Operand is returned without checks, because gpudrop itself made it from a checked array.
    """
    if type(out) is Operand:
        return out.array
    target = as_operand(name, out)
    check_like(name, target, likeness or operand.likeness())
    if not is_writable(target.array):
        raise ValueError(f"{name} must be writable, got a read-only array")
    if overlaps_itself(target.array):
        raise ValueError(f"{name} must not overlap itself, got an array whose elements share memory")
    check_apart(name, target.array, operand.array, source)
    return target.array


def check_apart(name: str, target: Any, array: Any, source: str, itself: bool = True) -> None:
    if overlap(target, array) and not (itself and same_memory(target, array)):
        what = f"be {source} itself or share no memory with it" if itself else f"share no memory with {source}"
        raise ValueError(f"{name} must {what}, got an overlapping view")


def check_like(name: str, operand: Operand, likeness: Any) -> None:
    if operand.likeness() != likeness:
        wanted, got = describe(*likeness), describe(*operand.likeness())
        cast = likeness[1] != operand.array.dtype and likeness[2] == operand.array.shape and name != "out"
        advice = f"; convert it with {name}.astype({likeness[1].name!r})" if cast else ""
        raise ValueError(f"{name} must be {wanted}, got {got}{advice}")
