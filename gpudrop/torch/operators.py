"""The torch operators: two for streams, and the fused forward and backward passes as pure functions.

    gpudrop::stream(Tensor? base, *, Generator? generator, SymInt[] batch, int site, bool block, Device device)
        -> Tensor
    gpudrop::placed(Tensor stream, *, Device device) -> Tensor
    gpudrop::forward(Tensor x, Tensor? other, Tensor stream, CALL) -> Tensor
    gpudrop::recorded(Tensor x, Tensor? other, Tensor stream, CALL) -> (Tensor, Tensor)
    gpudrop::backward(Tensor dy, Tensor? saved, Tensor stream, CALL, bool second) -> Tensor
    gpudrop::fused(Tensor x, Tensor? other, Tensor? bias, Tensor? gain, Tensor stream, CALL, bool records) -> Tensor[]
    gpudrop::gradients(Tensor dy, Tensor? saved, Tensor? value, Tensor? bias, Tensor? gain, Tensor stream, CALL,
        ScalarType dtype, str[] names) -> Tensor[]

CALL is the rest of a call, as numbers and text: the variant, its options as JSON, p, activation, bits, and the index of
the first sample. The options may have two more keys. "shard" is set if x is a part of a tensor: the shape of the tensor
and the index of the part's first element. "save" is what `gpudrop.dropout_vjp` calls save, unless it is "auto".

`recorded` is forward and also returns the bits that backward accepts as saved: uint8, in whole words of 32 bits. If
forward needs a gradient and `save` selects bits, its derivative calls recorded instead. All else, such as graphs that
are exported without a backward pass, has forward alone.

`fused` is forward with a bias, a gain or a value, or with a residual of a wider dtype. If records is true, it returns
the bits too. `gradients` returns the gradients with the given names, from one kernel. dtype is that of x. Second
derivatives, forward mode, transforms of torch.func and sharded tensors use other operators instead: `composed` and
`composed_gradients` compute the same from forward, backward and torch's own operators.

A mask is a function of the stream and CALL. The backward pass therefore needs only these, and running either pass again
draws the same mask. All randomness is in `stream`. vmap calls it for one stream per sample, and compilers that
recompute parts of a graph save its output (`tracing`). It returns a seed and a call, int64 of shape (*batch, 2), on the
CPU. device is always "cpu", and tells torch which generator's state to save. site is different at each call site in a
compiled graph, because torch merges equal calls. block is true if the graph was compiled inside a block with its own
generator, such as mc_samples.

A kernel receives the two numbers as arguments. Arguments are the same at each replay of a graph. In a graph that is
captured or compiled for a GPU, `placed` therefore copies the numbers to the GPU, and the kernel reads them there.
"""

import functools
import json
import math
from contextlib import contextmanager, nullcontext

import ml_dtypes
import numpy as np
import torch
from torch._C import _functorch as functorch
from torch._functorch import autograd_function
from torch.autograd import forward_ad

from gpudrop import backends
from gpudrop.arrays import as_operand, bytes_of_bits
from gpudrop.context import Context, current
from gpudrop.formulas.activations import find_activation
from gpudrop.formulas.noises import PLAIN
from gpudrop.generator import StoredStream, Stream, spawned_seeds
from gpudrop.masks import Shard
from gpudrop.torch.activations import TORCHS
from gpudrop.torch.checks import check_tensors, likeness_of
from gpudrop.variants import FAMILY

CALL = "str variant, str options, float p, str activation, int bits, SymInt first"

one_level = getattr(autograd_function, "enable_single_level_autograd_function")  # noqa: B009  (not exported)
library = torch.library.Library("gpudrop", "DEF")
library.define(
    "stream(Tensor? base=None, *, Generator? generator=None, SymInt[] batch=[], int site=0, bool block=False, "
    "Device device) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)
library.define("placed(Tensor stream, *, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
library.define(f"forward(Tensor x, Tensor? other, Tensor stream, {CALL}) -> Tensor")
library.define(f"recorded(Tensor x, Tensor? other, Tensor stream, {CALL}) -> (Tensor, Tensor)")
library.define(f"backward(Tensor dy, Tensor? saved, Tensor stream, {CALL}, bool second) -> Tensor")
library.define(
    f"fused(Tensor x, Tensor? other, Tensor? bias, Tensor? gain, Tensor stream, {CALL}, bool records) -> Tensor[]"
)
library.define(
    f"gradients(Tensor dy, Tensor? saved, Tensor? value, Tensor? bias, Tensor? gain, Tensor stream, {CALL}, "
    "ScalarType dtype, str[] names) -> Tensor[]"
)


# The overloads: calling them directly is faster.
STREAM, PLACED = torch.ops.gpudrop.stream.default, torch.ops.gpudrop.placed.default
FORWARD, BACKWARD = torch.ops.gpudrop.forward.default, torch.ops.gpudrop.backward.default
RECORDED = torch.ops.gpudrop.recorded.default
FUSED, GRADIENTS = torch.ops.gpudrop.fused.default, torch.ops.gpudrop.gradients.default


def drawn(generator=None):
    """Draw a seed and a call, 128 random bits, from torch's CPU generator."""
    return torch.empty(2, dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)


def _drawn_in_graph(generator, block):
    """Draw a seed and a call in a compiled graph, which must run in the context that it was compiled for."""
    # again: recomputation in a backward pass, for which torch has restored its generator's state
    context, again = current(), torch._C._current_graph_task_id() != -1
    if again and block:
        raise RuntimeError(
            "a compiled model within mc_samples can't draw its masks again for a backward pass: call it under "
            "torch.no_grad()"
        )
    if not again and (not context.on or (context.rng is not None) != block):
        raise RuntimeError(
            "a compiled model runs in another context than it was compiled for: don't call it in one asyncio task "
            "while another task is inside no_dropout or mc_samples"
        )
    return to_tensor(context.rng.next()) if block and context.rng else drawn(generator)


def stream(base=None, *, generator=None, batch=(), site=0, block=False, device):
    """Return the stream of a call, or one stream per sample, from generators spawned as in mc_samples."""
    if base is None:
        base = _drawn_in_graph(generator, block) if site else drawn(generator)
    if not batch:
        return base.clone()
    seeds = spawned_seeds(_to_stream(base), math.prod(batch))
    return torch.tensor([[_signed(seed), 0] for seed in seeds], dtype=torch.int64, device="cpu").reshape(*batch, 2)


def placed(stream, *, device):
    """Return the stream in GPU memory; during graph capture, a new stream that differs at each replay.

    Torch's CUDA generator draws the new stream. Each replay of the graph advances that generator.
    """
    if torch.cuda.is_current_stream_capturing():
        return torch.empty_like(stream, device=device).random_(-(2**63), None)
    return stream.to(device)


def to_tensor(stream):
    """Convert a Stream for the operators: a CPU tensor of both numbers as signed integers."""
    return torch.tensor([_signed(stream.seed), _signed(stream.call)], device="cpu")


def _signed(number):
    return number - 2**64 * (number >= 2**63)


def _to_stream(tensor):
    if tensor.is_cuda:
        return StoredStream(as_array(tensor).view(np.uint64))
    seed, call = tensor.tolist()
    return Stream(seed % 2**64, call % 2**64)


@functools.lru_cache(maxsize=1024)
def options_of(text):
    """Parse the options of a call: (options and Shard, save)."""
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
    shard, save = read.pop("shard", None), read.pop("save", "auto")
    return read | ({} if shard is None else {"shard": Shard(*shard)}), save


class _Memory:
    """The CPU memory of a tensor, for NumPy; after tensor.numpy() torch could never resize or free it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return torch._C._to_dlpack_versioned(self.tensor)

    def __dlpack_device__(self):
        return 1, 0


def as_array(tensor):
    """Return a NumPy or CuPy view of the tensor's memory."""
    bits = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    if tensor.is_cuda:
        import cupy

        array = cupy.from_dlpack(bits.detach())  # __dlpack__ rejects requires_grad, even below autograd
    else:
        array = np.from_dlpack(_Memory(bits))
    return array.view(ml_dtypes.bfloat16) if tensor.dtype is torch.bfloat16 else array


def on_stream_of(tensor):
    """Return the context manager for a call: on a GPU, it selects torch's current CUDA stream and torch's allocator.

    A captured graph owns the memory that torch allocates during the capture. CuPy's pool would reuse that memory after
    the capture. It may also have to allocate from CUDA, which is forbidden during a capture.
    """
    return _on_device(tensor.device) if tensor.is_cuda else nullcontext()


@contextmanager
def _on_device(device):
    import cupy

    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, device.index)
    with stream, cupy.cuda.using_allocator(functools.partial(_allocate, device)):
        yield


def _allocate(device, size):
    """Allocate memory from torch for CuPy; size is in bytes."""
    import cupy

    memory = torch.empty(size, dtype=torch.uint8, device=device)
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(memory.data_ptr(), size, memory, device.index or 0), 0)


def _prepare(x, other, stream, call, **rows):
    """Return the checked call for x, or for dy in a backward pass. rows: the bias and the gain, if there are any."""
    variant, options, p, activation, bits, first = call
    row = FAMILY[variant]
    inputs = (as_array(x), None if other is None else as_array(other))[: len(row.inputs)]
    keywords = {"activation": activation, "bits": bits} | options_of(options)[0]
    keywords |= {name: as_array(row) for name, row in rows.items() if row is not None}
    # The context of the forward call, because a backward pass may run in another one.
    return row.function.prepare(*inputs, p, rng=_to_stream(stream), context=Context(first=first), **keywords)


def _result(tensor):
    """Return an operand for a result that torch has allocated."""
    return as_operand("out", as_array(tensor))


def forward(x, other, stream, *call):
    y = torch.empty_like(x)
    with on_stream_of(x):
        _prepare(x, other, stream, call).forward(_result(y))
    return y


def recorded(x, other, stream, *call):
    y, bits = torch.empty_like(x), _ended(_empty_bits(x), x)
    with on_stream_of(x):
        _prepare(x, other, stream, call).record(_result(y), as_array(bits))
    return y, bits


def _empty_bits(x):
    """Return memory for one bit per element of x."""
    return torch.empty(bytes_of_bits(x.numel()), dtype=torch.uint8, device=x.device)


def _ended(bits, x):
    """Clear the bytes after the last element's bit, which the CPU's kernels do not write."""
    if x.numel() % 32:
        bits[-4:] = 0
    return bits


def has_bits(saved):
    """Whether this is not x or y, but the bits that `recorded` returned."""
    return saved is not None and saved.dtype is torch.uint8


def backward(dy, saved, stream, *call, out=None):
    """Compute dx. The operators return a new tensor; a direct caller that owns dy may pass it as out."""
    *numbers, second = call
    dx = torch.empty_like(dy) if out is None else out
    with on_stream_of(dy):
        prepared, bits = _prepare(dy, dy if len(FAMILY[call[0]].inputs) > 1 else None, stream, numbers), has_bits(saved)
        if saved is not None:
            saved = as_array(saved.flatten() if bits else saved)  # bits of sharded tensors have more dimensions
        name = f"d{FAMILY[call[0]].inputs[1]}" if second else "dx"
        prepared.gradients(prepared.x, {name: as_array(dx)}, saved, bits)
    return dx


def check(x, other, bias, gain, call):
    """Raise the errors of a call, before it draws anything: fake and composed tensors are not checked elsewhere."""
    check_tensors(call[0], likeness_of(x), likeness_of(other), likeness_of(bias), likeness_of(gain))


def _empty_fused(x, other, call, records):
    """Return memory for the results of `fused`: y has the dtype of a residual, and the size of half a packed gate."""
    dtype = x.dtype if other is None else other.dtype
    like = x.chunk(2, -1)[0] if is_packed(call[0], other) else x
    y = torch.empty_like(like, dtype=dtype)
    return [y, _empty_bits(y)] if records else [y]


def is_packed(variant, other):
    """Whether x contains the second input as well: one that the noise does not read."""
    return other is None and FAMILY[variant].is_product


def fused(x, other, bias, gain, stream, *call):
    *numbers, records = call
    with on_stream_of(x):
        prepared = _prepare(x, other, stream, numbers, bias=bias, gain=gain)
        y, *bits = results = _empty_fused(x, other, numbers, records)
        if records:
            prepared.record(_result(y), as_array(_ended(bits[0], y)))
        else:
            prepared.forward(_result(y))
    return results


def _empty_gradients(dy, saved, value, bias, gain, call):
    """Return memory for the results of `gradients`."""
    *numbers, dtype, names = call
    likes = {"dvalue": value, "dbias": bias, "dgain": gain}
    likes["dx"] = saved if is_packed(numbers[0], value) else dy
    dtypes = {"dx": dtype}
    return [torch.empty_like(likes[name], dtype=dtypes.get(name)) for name in names]


def gradients(dy, saved, value, bias, gain, stream, *call):
    *numbers, _, names = call
    results = dict(zip(names, _empty_gradients(dy, saved, value, bias, gain, call), strict=True))
    bits, other = has_bits(saved), value if FAMILY[numbers[0]].is_product else dy
    # x also has the shape and the dtype of dx, which the kernel does not read.
    x = saved if gain is not None or FAMILY[numbers[0]].is_product else results["dx"]
    kept = None if saved is None or saved is x else as_array(saved.flatten() if bits else saved)
    with on_stream_of(dy):
        prepared = _prepare(x, other, stream, numbers, bias=bias, gain=gain)
        outputs = {name: as_array(result) for name, result in results.items()}
        prepared.gradients(_result(dy), outputs, kept, bits)
    return list(results.values())


for name, implementation in (
    ("forward", forward),
    ("recorded", recorded),
    ("backward", backward),
    ("fused", fused),
    ("gradients", gradients),
):
    for device in ("CPU", "CUDA"):
        library.impl(name, implementation, device)
library.impl("stream", stream, "CompositeExplicitAutograd")
library.impl("placed", placed, "CompositeExplicitAutograd")


@torch.library.register_fake("gpudrop::stream", lib=library)
def _(base=None, *, batch=(), **options):
    return torch.empty((*batch, 2), dtype=torch.int64, device="cpu")


@torch.library.register_fake("gpudrop::placed", lib=library)
def _(stream, *, device):
    return torch.empty_like(stream, device=device)


@torch.library.register_fake("gpudrop::forward", lib=library)
def _(x, other, stream, *call):
    check(x, other, None, None, call)
    return torch.empty_like(x)


@torch.library.register_fake("gpudrop::recorded", lib=library)
def _(x, other, stream, *call):
    check(x, other, None, None, call)
    return torch.empty_like(x), _empty_bits(x)


@torch.library.register_fake("gpudrop::backward", lib=library)
def _(dy, saved, stream, *call):
    return torch.empty_like(dy)


@torch.library.register_fake("gpudrop::fused", lib=library)
def _(x, other, bias, gain, stream, *call):
    check(x, other, bias, gain, call)
    return _empty_fused(x, other, call[:-1], call[-1])


@torch.library.register_fake("gpudrop::gradients", lib=library)
def _(dy, saved, value, bias, gain, stream, *call):
    return _empty_gradients(dy, saved, value, bias, gain, call)


# Gradients


def _saved(ctx):
    """Return the saved tensor, or None. Call it once per backward pass: a checkpoint returns tensors only once."""
    tensors = ctx.saved_tensors
    return tensors[0] if tensors else None


class _Forward(torch.autograd.Function):
    """The forward pass and its derivatives; each element of y depends on one element of x.

    `recorded` has them too, because an outer transform of torch.func differentiates it.
    """

    @staticmethod
    def forward(ctx, operator, keyset, x, other, stream, *call):
        records = operator is RECORDED or _saves_bits(x, call)
        y = _computed(RECORDED if records else FORWARD, keyset, x, other, stream, *call)
        y, kept = y if records else (y, _kept(call, x, y))
        ctx.stream, ctx.call = stream, call
        if kept is not None and ctx.needs_input_grad[2]:
            ctx.save_for_backward(kept)
        return (y, kept) if operator is RECORDED else y

    @staticmethod
    def backward(ctx, dy, *_):
        saved, dx, dother = _saved(ctx), None, None
        if ctx.needs_input_grad[2]:
            dx = _through(dy, saved, ctx.stream, ctx.call, again=torch.is_grad_enabled())
        if ctx.needs_input_grad[3]:
            dother = _of_second(dy, ctx.stream, ctx.call)
        return None, None, dx, dother, *(None,) * (1 + len(ctx.call))


def _saves_bits(x, call):
    """Whether bits are saved for the backward pass, by the rule of `gpudrop.dropout_vjp`."""
    save = options_of(call[1])[1]
    if save != "auto" or find_activation(call[3]).slopes is None:
        return save == "bits"
    module = backends.load("cupy_elementwise" if x.is_cuda else "cpu")
    return not isinstance(module, str) and module.saves_bits(_Layout(x))


class _Layout:
    """The attributes of an array that `saves_bits` of a kernel module reads. Compilers trace tensors without memory."""

    def __init__(self, tensor):
        self.tensor, self.flags = tensor, self

    @property
    def nbytes(self):
        size = self.tensor.numel()
        if isinstance(size, torch.SymInt):  # The graph is for all sizes: decide by the first one, without a guard.
            size = size.node.hint or 0
        return size * self.tensor.element_size()

    @property
    def c_contiguous(self):
        return self.tensor.is_contiguous()


def _kept(call, x, y, bias=None):
    """Return the tensor that the derivative of the activation needs, unless bits are saved: x, y or None."""
    return {"x": x, "y": y}.get(_needs(call, x.dtype, bias))


def _needs(call, dtype, bias):
    """The name of that tensor, or None. dtype: that of x. See `gpudrop.operations.saves`."""
    activation = find_activation(call[3])
    if activation.slope_of is None:
        return None
    hidden = bias is not None and bias.dtype.itemsize > dtype.itemsize
    return "y" if activation.slope_of == "output" and FAMILY[call[0]].by_sign and not hidden else "x"


def _dropped(like, stream, call):
    """Return which elements are dropped, as booleans like a tensor.

    Formulas of torch's operators multiply the gradient of a dropped element, which is 0. They get a finite number
    instead of the element: its slope may be infinite or nan, and the gradient would be nan.
    """
    variant, options, p, _, *rest = _noise_of(call)
    return BACKWARD(torch.ones_like(like), None, stream, variant, options, p, "identity", *rest, False) == 0


def _of_second(dy, stream, call):
    """Return the gradient of the second input; that of a residual is dy itself."""
    return dy if FAMILY[call[0]].noise.second is PLAIN else BACKWARD(dy, None, stream, *call, True)


def _through(dy, saved, stream, call, again):
    """Return dy * (derivative of y), in one pass.

    If it may be differentiated again and depends on x, torch's own operators compute the derivative.
    """
    variant, options, p, name, *rest = call
    if has_bits(saved) or not (again and name in TORCHS and find_activation(name).slope_of == "input"):
        return BACKWARD(dy, saved, stream, *call, False)
    masked = BACKWARD(dy, None, stream, variant, options, p, "identity", *rest, False)
    if (variant, options, p) != ALONE:
        saved = saved.masked_fill(_dropped(dy, stream, call), 0)
    return TORCHS[name].slope(masked, saved)


class _Backward(torch.autograd.Function):
    """The backward pass and its derivative; dx is linear in dy."""

    @staticmethod
    def forward(ctx, operator, keyset, dy, saved, stream, *call):
        dx = _computed(operator, keyset, dy, saved, stream, *call)
        ctx.stream, ctx.call = stream, call
        if saved is not None:
            ctx.save_for_backward(saved)
        return dx

    @staticmethod
    def backward(ctx, ddx):
        saved, name = _saved(ctx), ctx.call[3]
        if ctx.needs_input_grad[3] and find_activation(name).slope_of == "input":
            raise NotImplementedError(NO_SECOND_DERIVATIVE.format(name))
        ddy = BACKWARD(ddx, saved, ctx.stream, *ctx.call)
        return None, None, ddy, *(None,) * (2 + len(ctx.call))


NO_SECOND_DERIVATIVE = (
    "the backward pass of {!r} can't be differentiated again; for second derivatives apply the activation separately, "
    "before a dropout without an activation"
)


def _below(operator, keyset, *arguments):
    """Call an operator below autograd, without its derivative."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _computed(operator, keyset, *arguments):
    """Call an operator in a Function, with derivatives on: outer transforms of torch.func need theirs."""
    if not torch._C._are_functorch_transforms_active():
        return _below(operator, keyset, *arguments)
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        return _below(operator, keyset, *arguments)


def _differentiable(operator, function, tangent):
    """Register the derivatives of an operator with respect to its first two arguments.

    torch.library.register_autograd would do the same, but takes 20 microseconds longer per call and has no forward
    mode. Under transforms of torch.func, the kernel is called once for each transform, as for torch's own operators.
    The Function is therefore applied to one level only.

    tangent(operator, primals, tangents, *others) returns the result for dual numbers. It must call only operators that
    accept dual numbers.
    """
    apply = super(torch.autograd.Function, function).apply

    def kernel(keyset, first, second, *others):
        if forward_ad._current_level >= 0:
            primals, tangents = zip(*map(_unpacked, (first, second)), strict=True)
            if any(t is not None for t in tangents):
                return tangent(operator, primals, tangents, *others)
        if not (torch.is_grad_enabled() and (first.requires_grad or (second is not None and second.requires_grad))):
            return _below(operator, keyset, first, second, *others)
        if not torch._C._are_functorch_transforms_active():
            return apply(operator, keyset, first, second, *others)
        with one_level():
            return apply(operator, keyset, first, second, *others)

    library.impl(operator._schema.name, kernel, "Autograd", with_keyset=True)


def _unpacked(tensor):
    return (None, None) if tensor is None else forward_ad.unpack_dual(tensor)


def _tangent(operator, primals, tangents, stream, *call):
    """Return y with its tangent; each element of y depends on one element of x, so the tangent is like a gradient."""
    (x, other), (dx, dother), name = primals, tangents, call[3]
    records = operator is RECORDED or _saves_bits(x, call)
    if not records and x.requires_grad and dx is not None and find_activation(name).slope_of == "input":
        # The gradient needs a tangent too. Torch's own activation provides it.
        if name not in TORCHS:
            raise NotImplementedError(NO_SECOND_DERIVATIVE.format(name))
        activated = TORCHS[name].value(forward_ad.make_dual(x, dx).masked_fill(_dropped(x, stream, call), 0))
        other = other if dother is None else forward_ad.make_dual(other, dother)
        return operator(activated, other, stream, *call[:3], "identity", *call[4:])
    y = (RECORDED if records else FORWARD)(x, other, stream, *call)
    y, kept = y if records else (y, _kept(call, x, y))
    dy = None if dother is None else _of_second(dother, stream, call)
    if dx is not None:
        through = _through(dx, kept, stream, call, again=True)
        dy = through if dy is None else dy + through
    dual = forward_ad.make_dual(y, dy)
    return (dual, kept) if operator is RECORDED else dual


def _tangent_of_gradient(operator, primals, tangents, stream, *call):
    (dy, saved), (ddy, dsaved) = primals, tangents
    if dsaved is not None and find_activation(call[3]).slope_of == "input":
        raise NotImplementedError(NO_SECOND_DERIVATIVE.format(call[3]))
    dx = operator(dy, saved, stream, *call)
    return dx if ddy is None else forward_ad.make_dual(dx, operator(ddy, saved, stream, *call))


# Dropout with neighbours


class _Fused(torch.autograd.Function):
    """The pass of `fused` and its first derivative."""

    @staticmethod
    def forward(ctx, keyset, x, other, bias, gain, stream, *call):
        records = call[-1] or (not _has_factor(call, gain) and _saves_bits(x, call))
        y, *bits = results = _below(FUSED, keyset, x, other, bias, gain, stream, *call[:-1], records)
        kept = bits[0] if records else x if _has_factor(call, gain) else _kept(call, x, y, bias)
        value = other if FAMILY[call[0]].is_product else None
        ctx.bias = None
        if bias is not None and kept is not x:  # only its shape and dtype are read: it may be changed in place
            bias, ctx.bias = None, bias.detach()
        of_x, of_other, of_bias, of_gain = ctx.needs_input_grad[1:5]
        reads = of_x or of_bias or of_gain or (of_other and value is not None)
        ctx.save_for_backward(*((kept, value, bias, gain) if reads else (None,) * 4))
        ctx.stream, ctx.call, ctx.dtype, ctx.of_value = stream, call[:-1], x.dtype, value is not None
        return tuple(results) if call[-1] else y

    @staticmethod
    def backward(ctx, dy, *_):
        saved, value, bias, gain = ctx.saved_tensors
        bias = ctx.bias if bias is None else bias
        of_x, of_other, of_bias, of_gain = ctx.needs_input_grad[1:5]
        wanted = {"dx": True, "dbias": of_bias, "dgain": of_gain, "dvalue": of_other and ctx.of_value}
        found, names = {}, [name for name, needed in wanted.items() if needed]
        if of_x or len(names) > 1:
            compute = composed_gradients if torch.is_grad_enabled() else GRADIENTS
            computed = compute(dy, saved, value, bias, gain, ctx.stream, *ctx.call, ctx.dtype, names)
            found = dict(zip(names, computed, strict=True))
        dother = dy if of_other and not ctx.of_value else found.get("dvalue")
        results = found.get("dx"), dother, found.get("dbias"), found.get("dgain")
        return None, *results, *(None,) * (2 + len(ctx.call))


def _has_factor(call, gain):
    """Whether the activation's result is multiplied, by a gain or a value."""
    return gain is not None or FAMILY[call[0]].is_product


ALONE = "dropout", json.dumps({"training": False}), 0.0
"""The beginning of a call that applies an activation alone."""


def _noise_of(call):
    """Return the call of the noise alone, without an activation, for a variant whose neighbours are computed apart."""
    variant, options, p, _, *rest = call
    if FAMILY[variant].is_product:
        own = FAMILY[variant].options
        options = json.dumps({name: value for name, value in json.loads(options).items() if name not in own})
        variant = "dropout"
    return variant, options, p, "identity", *rest


def _activation_of(call):
    """Return the call of the activation alone."""
    return *ALONE, *call[3:5], 0


def _in_order(halves, call):
    """Return the gate and the value, given the halves of the tensor that contains both; and the other way round."""
    return halves if options_of(call[1])[0].get("gate_first", True) else halves[::-1]


def composed(x, other, bias, gain, stream, *call):
    """Compute `fused` from operators that have all derivatives, transforms and shardings."""
    *numbers, records = call
    check(x, other, bias, gain, numbers)
    dtype = x.dtype if other is None else other.dtype
    real = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    if is_packed(numbers[0], other):
        x, other = _in_order(x.chunk(2, -1), numbers)
    z, other = x.to(real), None if other is None else other.to(real)
    z = z if bias is None else z + bias
    dropped = _dropped(z, stream, numbers)
    z = z.masked_fill(dropped, 0)
    if not _has_factor(numbers, gain):
        y, *bits = RECORDED(z, other, stream, *numbers) if records else (FORWARD(z, other, stream, *numbers),)
        return [y.to(dtype), *bits]
    factor, residual = (other.masked_fill(dropped, 0), None) if gain is None else (gain, other)
    z = FORWARD(z, None, stream, *_activation_of(numbers)) * factor
    return [FORWARD(z, residual, stream, *_noise_of(numbers)).to(dtype)]


def composed_gradients(dy, saved, value, bias, gain, stream, *call):
    """Compute `gradients` from operators that have derivatives, transforms and shardings."""
    *numbers, dtype, names = call
    real = torch.float64 if torch.float64 in (dtype, dy.dtype) else torch.float32
    again, packed = torch.is_grad_enabled(), is_packed(numbers[0], value)
    kept, value = _in_order(saved.chunk(2, -1), numbers) if packed else (saved, value)
    reads_x = _has_factor(numbers, gain) or _needs(numbers, dtype, bias) == "x"
    if kept is not None and not has_bits(kept):
        kept = kept.to(real) + (bias if bias is not None and reads_x else 0)
    if _has_factor(numbers, gain):
        dropped = _dropped(kept, stream, numbers)
        kept, value = (None if each is None else each.masked_fill(dropped, 0) for each in (kept, value))
        activation, factor = _activation_of(numbers), value if gain is None else gain
        activated = FORWARD(kept, None, stream, *activation)
        dz = BACKWARD(dy.to(real), None, stream, *_noise_of(numbers), False)
        dfactor = dz * activated
        dx = _through(dz * factor, _kept(activation, kept, activated), stream, activation, again)
        dx = dx.masked_fill(dropped, 0)  # the gain may be infinite
    else:
        dfactor, dx = None, _through(dy.to(real), kept, stream, numbers, again)
    found = {"dx": dx, "dvalue": dfactor, "dbias": dx, "dgain": dfactor}
    if packed:
        found["dx"] = torch.cat(_in_order((dx, dfactor), numbers), -1)
    rows = {"dbias": bias, "dgain": gain}
    return [_summed(found[name], rows[name]) if name in rows else found[name].to(dtype) for name in names]


def _summed(gradient, row):
    """Return the sums over all axes except the last, in the dtype of the row."""
    axes = tuple(range(gradient.dim() - 1))
    return (gradient.sum(axes) if axes else gradient).to(row.dtype)


def _fused_autograd(keyset, *arguments):
    """The derivatives of `fused`. See `_differentiable` for the reasons."""
    tensors = [tensor for tensor in arguments[:4] if tensor is not None]
    if torch._C._are_functorch_transforms_active() or any(
        forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    ):
        return composed(*arguments)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return _below(FUSED, keyset, *arguments)
    results = super(torch.autograd.Function, _Fused).apply(keyset, *arguments)
    return list(results) if arguments[-1] else [results]


library.impl("fused", _fused_autograd, "Autograd", with_keyset=True)
library.impl("fused", composed, "FuncTorchBatched")
for key in ("FuncTorchBatched", "Batched"):  # the latter is that of is_grads_batched
    library.impl("gradients", composed_gradients, key)

_differentiable(FORWARD, _Forward, _tangent)
_differentiable(RECORDED, _Forward, _tangent)
_differentiable(BACKWARD, _Backward, _tangent_of_gradient)


# torch.func.vmap


def _streams_of_samples(base=None, *, batch=(), **options):
    """Apply the randomness option of vmap: one stream for all samples, one stream per sample, or torch's own error.

    If base is set, the stream has been drawn already or is fixed, so there is no error.
    """
    interpreter = functorch.peek_interpreter_stack()  # keep this reference: vmap below only points to it
    vmap = functorch.CVmapInterpreterPtr(interpreter)
    if base is None and vmap.randomness() == functorch.RandomnessType.Error:
        torch.rand(0)
    different = vmap.randomness() == functorch.RandomnessType.Different
    batch = [vmap.batchSize(), *batch] if different else batch
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchVmapMode)):
        streams = STREAM(base, batch=batch, **options)
    return functorch._add_batch_dim(streams, 0, vmap.level()) if different else streams


library.impl("stream", _streams_of_samples, "FuncTorchVmapMode")


def _each_sample(operator):
    """Register the vmap rule of an operator: call it for one sample after another, each with its own stream."""

    def rule(info, in_dims, first, second, stream, *call):
        tensors, dims = (first, second, stream), in_dims[:3]
        if info.batch_size == 0:
            shape = list(first.shape)
            if dims[0] is not None:
                del shape[dims[0]]
            y = first.new_empty((0, *shape))
            return ((y, y.new_empty((0, 0), dtype=torch.uint8)), (0, 0)) if operator is RECORDED else (y, 0)

        def sample(i):
            mine = (x if dim is None else x.select(dim, i) for x, dim in zip(tensors, dims, strict=True))
            return operator(*mine, *call)

        samples = [sample(i) for i in range(info.batch_size)]
        if operator is RECORDED:
            return tuple(map(torch.stack, zip(*samples, strict=True))), (0, 0)
        return torch.stack(samples), 0

    torch.library.register_vmap(operator._name, rule, lib=library)


_each_sample(FORWARD)
_each_sample(RECORDED)
_each_sample(BACKWARD)


@torch.library.register_vmap("gpudrop::placed", lib=library)
def _(info, in_dims, stream, *, device):
    return PLACED(stream, device=device), in_dims[0]
