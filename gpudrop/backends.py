"""The backends: which kernels run on an array, and views of one library's arrays as arrays of another."""

import importlib
from contextlib import contextmanager, nullcontext
from functools import cache, partial

from gpudrop import arrays
from gpudrop.kernels.spec import STORAGE
from gpudrop.uninterrupted import uninterrupted

BACKENDS = {"cpu": "numpy", "cupy_elementwise": "cupy", "numba_cuda": "numba"}
"""The modules of gpudrop.kernels, and the kind of array that each one uses."""

_OF_KIND = {kind: name for name, kind in BACKENDS.items()}


def of(name, array):
    """Copy a NumPy array to the current device, as a backend's own kind. The CPU backend returns the array itself.

    Raises
    ------
    ValueError, RuntimeError
        The errors of `choose`.
    """
    module = choose(BACKENDS.get(name), name)
    return array if BACKENDS[name] == "numpy" else arrays.in_dtype(module.put(array), array.dtype)


def to_device(array):
    """Copy a NumPy array to the current CUDA device, as a CuPy array or, without CuPy, as a Numba device array.

    Raises
    ------
    RuntimeError
        If neither library can be used; the message says why.
    """
    reasons = []
    for name in ("cupy_elementwise", "numba_cuda"):
        try:
            copy = of(name, array)
        except RuntimeError as reason:
            reasons.append(str(reason))
        else:
            arrays.finish(copy)
            return copy
    raise RuntimeError(f"no CUDA device can be used: {'; '.join(reasons)}")


def as_kind(array, operand):
    """A generator's array as an operand's kind, on its device."""
    kind = arrays.as_operand("rng", array).kind
    if operand.kind == "numpy" != kind:
        raise ValueError("rng must have its state on the host, where the arrays are, got one on the device")
    array = array if kind == operand.kind else arrays.viewer(operand.kind)(array)
    if kind == "cupy" == operand.kind and array.data.device_id != operand.array.data.device_id:
        where = array.data.device_id, operand.array.data.device_id
        raise ValueError(
            f"rng must have its state on the arrays' device, got device {where[0]} for arrays on {where[1]}"
        )
    return array


@cache
def load(backend):
    """The kernel module of a backend, or the reason why it is not available, as a sentence."""
    try:  # An interrupt during the import would leave Numba or CuPy half imported.
        module = uninterrupted(partial(importlib.import_module, f"gpudrop.kernels.{backend}"))
    except Exception as error:  # any error that a library with a broken driver raises
        return f"it can't be imported ({error})"
    return module.unavailable() or module


def choose(kind, backend=None):
    """The kernel module for arrays of a kind, or the module of the named backend.

    Raises
    ------
    ValueError
        If the name is unknown, or the backend cannot access the array's memory.
    RuntimeError
        If the backend is not available on this machine; the message says why.
    """
    if backend is None:
        name = _OF_KIND[kind]
    elif backend not in list(BACKENDS):  # the name may be of a type that is not hashable
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    elif (kind == "numpy") != (BACKENDS[backend] == "numpy"):
        memory = "CPU" if kind == "numpy" else "GPU"
        raise ValueError(f"backend {backend!r} does not support a {arrays.KINDS[kind]}, which is in {memory} memory")
    else:
        name = backend
    module = load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} is not available: {module}")
    return module


def launch(module, operand, kernel, inputs, outputs, draw):
    """Run a kernel on arrays of the operand's kind, viewed as the kernel module's own kind."""
    kind = operand.kind
    if kind == "numpy" or (_own(module, kind) and (kind != "cupy" or not arrays.elsewhere(operand.array))):
        module.launch(kernel, inputs, outputs, draw)
        return
    with _views(module, operand, outputs[0]) as view:
        if view is not None:
            inputs, outputs, draw = _viewed(kernel, inputs, outputs, draw, view)
        module.launch(kernel, inputs, outputs, draw)


def _viewed(kernel, inputs, outputs, draw, view):
    """The arguments of a launch, with all arrays viewed as the module's own kind."""
    arguments = [*zip(kernel.inputs, inputs, strict=True), *zip(kernel.outputs, outputs, strict=True)]
    # Use a dtype that both libraries have, and make one view per array.
    views, viewed = {}, []
    for slot, argument in arguments:
        if slot.layout == "mask":
            kept = None if argument.kept is None else view(argument.kept)
            viewed.append(argument._replace(array=view(argument.array), kept=kept))
            continue
        if id(argument) not in views:
            stored = STORAGE[slot.dtype or kernel.dtype]
            plain = argument if slot.layout in ("bits", "sums") else arrays.in_dtype(argument, stored)
            views[id(argument)] = view(plain)
        viewed.append(views[id(argument)])
    inputs, outputs = viewed[: len(inputs)], viewed[len(inputs) :]
    if kernel.stored:
        draw = draw._replace(seed=view(draw.seed))
    return inputs, outputs, draw


def _own(module, kind):
    """Whether a kernel module uses arrays of this kind without a view."""
    return BACKENDS[module.__name__[len("gpudrop.kernels.") :]] == kind


def advance(module, operand, state, stream):
    """Copy a generator's state to a stream and advance it: see `gpudrop.kernels`. All are of the operand's kind."""
    with _views(module, operand, operand.array) as view:
        module.advance(*((state, stream) if view is None else (view(state), view(stream))))


def grow(module, operand, seeds, mask, block):
    """Set DropBlock's blocks: see `gpudrop.kernels`. The returned count is of the operand's kind."""
    if operand.kind == "numpy":
        return module.grow(seeds, mask, block)
    with _views(module, operand, mask) as view:
        if view is None:
            return module.grow(seeds, mask, block)
        kept = module.grow(view(seeds), view(mask), block)
    return arrays.viewer(operand.kind)(kept)


@contextmanager
def _views(module, operand, out):
    """The context of a launch. It yields the function that views a device array as the module's own kind, or None."""
    with operand.on_device():
        if _own(module, operand.kind):
            yield None
        elif operand.kind == "cupy":
            # CuPy's array interface contains its current stream, so the views have the same stream.
            yield arrays.viewer("numba")
        else:
            import cupy

            stream = operand.array.stream or out.stream
            with cupy.cuda.ExternalStream(int(stream)) if stream else nullcontext():
                yield arrays.viewer("cupy")
