"""Which kernels run on an array, and how: the backends, and the views that one has of another's arrays."""

import importlib
from contextlib import contextmanager, nullcontext
from functools import cache, partial

from gpudrop import arrays
from gpudrop.uninterrupted import uninterrupted

BACKENDS = {"cpu": "numpy", "cupy_elementwise": "cupy", "numba_cuda": "numba"}
"""The modules of gpudrop.kernels, and the kind of arrays that is each one's own."""

_OF_KIND = {kind: name for name, kind in BACKENDS.items()}


def of(name, array):
    """A NumPy array's copy in the memory of the current device, as a backend's own kind; for the host's, itself.

    Raises
    ------
    ValueError, RuntimeError
        As from `choose`.
    """
    module = choose(BACKENDS.get(name), name)
    return array if BACKENDS[name] == "numpy" else arrays.in_dtype(module.put(array), array.dtype)


def to_device(array):
    """A NumPy array's copy in the memory of the current CUDA device, in CuPy's form or else in Numba's.

    Raises
    ------
    RuntimeError
        If neither can be used; the message says why.
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
    """The kernel module of a backend, or the reason why it can't serve, as a sentence."""
    try:  # An interrupt as Numba or CuPy are imported would leave them half imported.
        module = uninterrupted(partial(importlib.import_module, f"gpudrop.kernels.{backend}"))
    except Exception as error:  # whatever a library of a broken driver raises
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
    if backend is None:
        name = _OF_KIND[kind]
    elif backend not in list(BACKENDS):  # a list, say, is not hashable
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    elif (kind == "numpy") != (BACKENDS[backend] == "numpy"):
        memory = "host" if kind == "numpy" else "device"
        raise ValueError(f"backend {backend!r} can't serve a {arrays.KINDS[kind]}, which lives on the {memory}")
    else:
        name = backend
    module = load(name)
    if isinstance(module, str):
        raise RuntimeError(f"backend {name!r} can't serve: {module}")
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
    """The arguments of a launch by the function that views an array as the module's own kind."""
    full, masks = inputs[: kernel.num_inputs], inputs[kernel.num_inputs :]
    # In a dtype that both libraries have, and one view per array.
    views = {id(array): view(arrays.in_dtype(array, kernel.storage)) for array in (*full, *outputs)}
    inputs, outputs = ([views[id(array)] for array in part] for part in (full, outputs))
    for mask in masks:
        kept = None if mask.kept is None else view(mask.kept)
        inputs.append(mask._replace(array=view(mask.array), kept=kept))
    if kernel.stored:
        draw = draw._replace(seed=view(draw.seed))
    return inputs, outputs, draw


def _own(module, kind):
    """Whether a kind of arrays is a kernel module's own."""
    return BACKENDS[module.__name__[len("gpudrop.kernels.") :]] == kind


def advance(module, operand, state, stream):
    """Copy a generator's state to a stream, and move it on: see `gpudrop.kernels`. All are of the operand's kind."""
    with _views(module, operand, operand.array) as view:
        module.advance(*((state, stream) if view is None else (view(state), view(stream))))


def grow(module, operand, seeds, mask, block):
    """DropBlock's blocks: see `gpudrop.kernels`. The count that is returned is of the operand's kind."""
    if operand.kind == "numpy":
        return module.grow(seeds, mask, block)
    with _views(module, operand, mask) as view:
        if view is None:
            return module.grow(seeds, mask, block)
        kept = module.grow(view(seeds), view(mask), block)
    return arrays.viewer(operand.kind)(kept)


@contextmanager
def _views(module, operand, out):
    """Where kernels run: gives the function that views a device array as the module's own kind, or None."""
    with operand.on_device():
        if _own(module, operand.kind):
            yield None
        elif operand.kind == "cupy":
            # CuPy's interface names its current stream, which the views then carry.
            yield arrays.viewer("numba")
        else:
            import cupy

            stream = operand.array.stream or out.stream
            with cupy.cuda.ExternalStream(int(stream)) if stream else nullcontext():
                yield arrays.viewer("cupy")
