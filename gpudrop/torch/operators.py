"""The operators: a stream drawn from torch's generator, and the fused forward and backward passes as pure functions.

    gpudrop::stream(Generator? generator, int place, Device? device) -> Tensor   two int64: seed and call
    gpudrop::forward(Tensor x, Tensor? other, Tensor stream, CALL) -> Tensor
    gpudrop::backward(Tensor dy, Tensor? saved, Tensor stream, CALL, bool second) -> Tensor

CALL is the rest of a call, as numbers and text: which variant, its options as JSON, its p, activation, bits, and the
number of the first sample. Where x is a part of a tensor, the options have its place as well: "part", the whole's shape
and where in it the part begins. A mask is a function of the stream and CALL, so the backward pass gets those alone, and
what runs either of them again (a checkpoint, a compiled graph) draws the same mask.

`stream` is the only one that has a state, torch's; place is another number at each place in a compiled graph, for torch
merges equal calls. It gives the numbers on the host, and a kernel gets them as arguments; or on the GPU where a graph
is captured or compiled, and the kernel reads them there, for arguments are the same at each replay.
"""

import functools
import json
from contextlib import contextmanager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd import forward_ad

from gpudrop import variants
from gpudrop.activations import find_activation
from gpudrop.backends import adopt
from gpudrop.dropout import dropout, here, within
from gpudrop.generator import StoredStream, Stream, spawned_seeds
from gpudrop.masks import Part

CALL = "str variant, str options, float p, str activation, int bits, int first"

library = torch.library.Library("gpudrop", "DEF")
seeded = (torch.Tag.nondeterministic_seeded,)
library.define("stream(Generator? generator=None, int place=0, Device? device=None) -> Tensor", tags=seeded)
library.define(f"forward(Tensor x, Tensor? other, Tensor stream, {CALL}) -> Tensor")
library.define(f"backward(Tensor dy, Tensor? saved, Tensor stream, {CALL}, bool second) -> Tensor")


def stream(generator=None, place=0, device=None):
    """A seed and a call, all 128 bits of them from torch's generator on the host.

    Within a capture they are from torch's generator of the device instead, which a graph moves on at each replay.
    """
    numbers = torch.empty(2, dtype=torch.int64, device="cpu")
    if device is None:
        return numbers.random_(-(2**63), None, generator=generator)
    if not torch.cuda.is_current_stream_capturing():
        return numbers.random_(-(2**63), None, generator=generator).to(device)
    if generator is not None:
        raise ValueError("a graph can't be captured with a generator of the host: what it has drawn would be repeated")
    return torch.empty(2, dtype=torch.int64, device=device).random_(-(2**63), None)


def to_tensor(stream):
    """A Stream as the operators take it: both numbers as signed ones, on the host."""
    return torch.tensor([n - 2**64 * (n >= 2**63) for n in (stream.seed, stream.call)], device="cpu")


def _to_stream(tensor):
    if tensor.is_cuda:
        return StoredStream(as_array(tensor).view(np.uint64))
    seed, call = tensor.tolist()
    return Stream(seed % 2**64, call % 2**64)


@functools.lru_cache(maxsize=1024)
def _options(text):
    """The variant's own options, and the Part."""
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
    part = read.pop("part", None)
    return read, None if part is None else Part(*map(tuple, part))


@functools.cache
def _variant(name):
    return dropout if name == "dropout" else getattr(variants, name)


def as_array(tensor):
    """The tensor's memory as a NumPy or CuPy array."""
    bits = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    if tensor.is_cuda:
        import cupy

        array = cupy.from_dlpack(bits.detach())  # __dlpack__ looks at requires_grad below autograd, too
    else:
        array = bits.numpy()
    return array.view(ml_dtypes.bfloat16) if tensor.dtype is torch.bfloat16 else array


def on_stream_of(tensor):
    """Where a call runs: if the tensor is on a GPU, on torch's current stream there and with torch's memory.

    A graph that is being captured owns what torch allocates, while CuPy's pool would hand a mask's memory on after the
    capture, and may have none without asking CUDA, which a capture forbids.
    """
    return _on_device(tensor.device) if tensor.is_cuda else nullcontext()


@contextmanager
def _on_device(device):
    import cupy

    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
    with stream, cupy.cuda.using_allocator(functools.partial(_allocate, device)):
        yield


def _allocate(device, size):
    """So many bytes, for CuPy."""
    import cupy

    memory = torch.empty(size, dtype=torch.uint8, device=device)
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(memory.data_ptr(), size, memory, device.index or 0), 0)


def _prepare(x, other, out, stream, variant, options, p, activation, bits, first):
    """The call, with torch's memory for its result: in torch's form, and of its allocator."""
    inputs = (as_array(x),) if other is None else (as_array(x), as_array(other))
    options, part = _options(options)
    keywords = {"activation": activation, "bits": bits, "out": adopt("out", as_array(out))} | options
    around = here()
    as_called = (around.on, around.first, around.part) == (True, first, part)  # wherever a backward pass runs
    with nullcontext() if as_called else within(on=True, first=first, part=part):
        return _variant(variant).prepare(*inputs, p, rng=_to_stream(stream), **keywords)


def forward(x, other, stream, *call):
    y = torch.empty_like(x)
    with on_stream_of(x):
        _prepare(x, other, y, stream, *call).forward()
    return y


def backward(dy, saved, stream, *call, out=None):
    """dx; by the operators a new tensor, by those who own dy and call this itself perhaps dy, as out."""
    *numbers, second = call
    dx = torch.empty_like(dy) if out is None else out
    with on_stream_of(dy):
        prepared = _prepare(dy, dy if call[0] == "zoneout" else None, dx, stream, *numbers)
        prepared.backward(None if saved is None else as_array(saved), second)
    return dx


for name, implementation in (("forward", forward), ("backward", backward)):
    for device in ("CPU", "CUDA"):
        library.impl(name, implementation, device)
library.impl("stream", stream, "CompositeExplicitAutograd")


@torch.library.register_fake("gpudrop::stream", lib=library)
def _(generator=None, place=0, device=None):
    return torch.empty(2, dtype=torch.int64, device="cpu" if device is None else device)


@torch.library.register_fake("gpudrop::forward", lib=library)
def _(x, other, stream, *call):
    return torch.empty_like(x)


@torch.library.register_fake("gpudrop::backward", lib=library)
def _(dy, saved, stream, *call):
    return torch.empty_like(dy)


# Gradients

BY_SIGN = {"dropout", "dropout1d", "dropout2d", "dropout3d", "drop_path", "locked_dropout", "embedding_dropout"}
BY_SIGN |= {"token_dropout", "consistent_dropout", "drop_connect"}
"""The variants whose y tells by its sign what was dropped, so that an activation such as relu needs no x."""


def _saved(ctx):
    """What _save has kept, or None. Once a backward pass, for a checkpoint gives it out once."""
    tensors = ctx.saved_tensors
    return tensors[0] if tensors else None


def _save(ctx, inputs, output):
    x, _, ctx.stream, *ctx.call = inputs
    variant, activation = ctx.call[0], find_activation(ctx.call[3])
    if activation.slope_of is not None:
        by_sign = activation.slope_of == "output" and variant in BY_SIGN
        ctx.save_for_backward(output if by_sign else x)


def _gradient(ctx, dy):
    saved, dx, dother = _saved(ctx), None, None
    if ctx.needs_input_grad[0]:
        dx = torch.ops.gpudrop.backward(dy, saved, ctx.stream, *ctx.call, False)
    if ctx.needs_input_grad[1]:
        dother = torch.ops.gpudrop.backward(dy, None, ctx.stream, *ctx.call, True)
    return dx, dother, *(None,) * (1 + len(ctx.call))


def _save_again(ctx, inputs, output):
    _, saved, ctx.stream, *ctx.call, ctx.second = inputs
    if saved is not None:
        ctx.save_for_backward(saved)


def _gradient_again(ctx, ddx):
    """The backward pass is linear in dy; its slope has a derivative of its own only where it bends."""
    saved, name = _saved(ctx), ctx.call[3]
    if find_activation(name).slope_of == "input" and not ctx.second:
        raise NotImplementedError(
            f"gpudrop's backward pass of {name!r} can't be differentiated once more; for second derivatives apply the "
            "activation by itself, before a dropout without one"
        )
    ddy = torch.ops.gpudrop.backward(ddx, saved, ctx.stream, *ctx.call, ctx.second)
    return ddy, *(None,) * (3 + len(ctx.call))


def _differentiable(name, save, gradient):
    """Give an operator, whose first two arguments are differentiated, its derivative.

    As torch.library.register_autograd does, which takes 20 microseconds longer at each call.
    """
    operator = getattr(torch.ops.gpudrop, name).default

    def below(keyset, arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def forward(ctx, *arguments):
        *inputs, keyset = arguments
        output = below(keyset, inputs)
        save(ctx, inputs, output)
        return output

    def backward(ctx, dy):
        return *gradient(ctx, dy), None

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"gpudrop_{name}", (torch.autograd.Function,), methods)

    def kernel(keyset, first, second, *others):
        if forward_ad._current_level >= 0:
            for x in (first, second):
                if x is not None and forward_ad.unpack_dual(x).tangent is not None:
                    raise NotImplementedError("gpudrop has no forward-mode derivatives")
        wanted = first.requires_grad or (second is not None and second.requires_grad)
        if wanted and torch.is_grad_enabled():
            return function.apply(first, second, *others, keyset)
        return below(keyset, (first, second, *others))

    library.impl(name, kernel, "Autograd", with_keyset=True)


_differentiable("forward", _save, _gradient)
_differentiable("backward", _save_again, _gradient_again)


# torch.func.vmap


def _each(info, run):
    """run(i) for each sample, stacked."""
    return torch.stack([run(i) for i in range(info.batch_size)]), 0


def _select(tensor, dim, i):
    return tensor if tensor is None or dim is None else tensor.select(dim, i)


@torch.library.register_vmap("gpudrop::forward", lib=library)
def _(info, in_dims, x, other, stream, *call):
    """Streams as randomness says: one for all, or a sample's own.

    A sample's own is that of the generators which the stream's would spawn, as in `gpudrop.mc_samples`.
    """
    streams = [stream] * info.batch_size
    if json.loads(call[1]).get("training", True) and call[2] > 0:
        if info.randomness == "error":
            raise RuntimeError("vmap: a dropout draws random numbers; say by randomness='different' or 'same' which")
        if info.randomness == "different":
            seeds = spawned_seeds(_to_stream(stream.cpu()), info.batch_size)
            streams = [to_tensor(Stream(seed, 0)) for seed in seeds]

    def run(i):
        return torch.ops.gpudrop.forward(_select(x, in_dims[0], i), _select(other, in_dims[1], i), streams[i], *call)

    return _each(info, run)


@torch.library.register_vmap("gpudrop::backward", lib=library)
def _(info, in_dims, dy, saved, stream, *call):
    """Whatever the randomness, the mask is the forward pass's: nothing is drawn."""

    def run(i):
        return torch.ops.gpudrop.backward(_select(dy, in_dims[0], i), _select(saved, in_dims[1], i), stream, *call)

    return _each(info, run)
