"""The plan of a call: the kernels for an operation and a dtype, their scalars, and what the backward pass needs.

A call is checked first, as a `Prepared`. Then its results are allocated, its stream is drawn and its kernels are
launched.
"""

import math
from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpudrop import arrays, backends, operations
from gpudrop.checks import check_bits, check_save, check_truth
from gpudrop.context import Context, current, rng_of
from gpudrop.formulas.activations import ACTIVATIONS, Activation, find_activation
from gpudrop.formulas.noises import DROPOUT, PLAIN, Noise, Scalars
from gpudrop.generator import RngLike, Source, take
from gpudrop.hints import name_of
from gpudrop.kernels.spec import REAL, Draw, Draws, Kernel, Mask, Reads
from gpudrop.masks import Blocks, BroadcastMask, GivenMask, Shard, broadcast_mask, check_mask_shape, resolved, rows
from gpudrop.signatures import Save


def check_saved(save: Any, activation: Activation) -> Save:
    """What a forward pass with this activation saves; a ValueError if save is unknown or needs another activation."""
    if check_save(save) == "bits" and activation.slopes is None:
        having = ", ".join(sorted(name for name, row in ACTIVATIONS.items() if row.slopes is not None))
        raise ValueError(f"save='bits' needs an activation with two slopes ({having}), got {activation.name!r}")
    return save


class _Plan(NamedTuple):
    """The kernels and scalars of a call, without its arrays and its stream."""

    activation: Activation
    noise: Noise
    forward: Kernel
    backward: Kernel  # all gradients
    mask: Kernel | None  # draws the mask that the others read
    scalars: Scalars
    draws: bool
    saves: str | None  # the array that the backward pass reads besides dy: "x", "y", "bits" or None
    second_input: str  # the name of the second array, or ""
    with_bits: Any = None  # the _Plan of the same call whose backward pass reads bits, or None

    def gradient(self, name: str) -> Kernel:
        """The kernel of one gradient alone."""
        if [slot.name for slot in self.backward.outputs] == [name]:
            return self.backward
        forward = self.forward
        return operations.backward(
            self.activation, forward.dtype, forward.source, self.noise, (name,), self.saves == "bits"
        )

    def draw(self, rng: Source, origin: tuple[int, ...], module: Any, operand: Any, target: Any) -> Draw:
        """The Draw of one call; the generator moves on if anything is drawn."""
        limit, scale, shift = self.scalars
        if not self.draws:
            return Draw(0, 0, 0, limit, scale, shift)
        if rng.stored:  # it moves on where the kernel runs
            operand = arrays.stream_owner(operand, target)
        (seed, call), (start, row, pitch) = take(rng, module, operand), origin
        return Draw(seed, call, start, limit, scale, shift, row, pitch)


# Cached, because training repeats the same few calls. The size is limited, because p may come from a schedule.
@lru_cache(maxsize=1024)
def _plan(
    dtype: Any,
    noise: Noise,
    p: float,
    activation: Activation,
    bits: int,
    masked: bool,
    counted: bool,
    window: bool,
    stored: bool,
    given: bool,
) -> _Plan:
    if dtype.name not in arrays.DTYPES or not dtype.isnative:
        advice = "; convert it with x.astype(np.float32)" if dtype.kind in "biuf" else ""
        raise TypeError(f"x must have one of the dtypes {', '.join(arrays.DTYPES)}, got {dtype}{advice}")
    p, bits = noise.check(p), noise.check_bits(bits)
    gradients, second_input, scalars = noise.gradients, noise.second_input or "", noise.scalars(p, bits)
    if scalars is None and given:
        scalars = Scalars()
    elif scalars is None:
        noise, scalars = noise.off or PLAIN, Scalars()
    real = getattr(np, REAL[dtype.name])
    with np.errstate(over="ignore"):
        scalars = scalars._replace(scale=float(real(scalars.scale)), shift=float(real(scalars.shift)))
    draws = None if noise.drawn is None else Draws(bits, window, stored)
    source = Reads(counted) if masked and draws else draws
    found: Any = None
    for bits in (True, False) if activation.slopes is not None else (False,):
        forward = operations.forward(activation, dtype.name, source, noise, bits)
        backward = operations.backward(activation, dtype.name, source, noise, gradients, bits)
        mask = operations.drawing(noise.drawn, forward.mask_dtype, draws) if forward.masked else None
        saves = "bits" if bits else operations.saves(activation, noise, source)
        found = _Plan(
            activation,
            noise,
            forward,
            backward,
            mask,
            scalars,
            source is not None and not given,
            saves,
            second_input,
            found,
        )
    return found


class Prepared(NamedTuple):
    """A checked call on x or on arrays like it. Nothing is allocated, drawn or launched yet."""

    x: arrays.Operand
    inputs: tuple[Any, ...]  # x, and the second array of a noise that has one
    copies: bool  # whether x is repeated
    module: Any
    plan: _Plan
    mask: BroadcastMask | Blocks | GivenMask | None
    rng: Source
    origin: tuple[int, ...]  # the position in the mask: start, row and pitch of a Draw

    def forward(self, out: Any = None) -> Any:
        """Compute y, in out if out is not None."""
        target = self._target(out)
        self._launch(self.plan, target)
        return self.x.give_back(target) if out is None else out

    def vjp(self, out: Any = None, save: str = "auto") -> tuple[Any, Any]:
        """The result of `forward`, and the function that computes the gradients; see `dropout_vjp` for save."""
        plan = self._saving(save)
        x, target = self.x, self._target(out)
        if plan.saves == "x" and out is not None and arrays.overlap(target, x.array):
            raise ValueError(f"out must not overlap x, which the backward pass of {plan.activation.name!r} needs")
        bits = arrays.empty_bits(target.size, x) if plan.saves == "bits" else None
        draw = self._launch(plan, target, bits)
        y = x.give_back(target) if out is None else out
        return y, self._backprop(plan, draw, {"x": x.array, "y": target, "bits": bits, None: None}[plan.saves])

    def record(self, out: Any, bits: Any) -> None:
        """As `forward`, and write the bits that `gradient` can read.

        bits: an array like that of `arrays.empty_bits`.
        """
        self._launch(self._saving("bits"), self._target(out), bits)

    def gradient(self, saved: Any, out: Any, name: str = "dx", bits: bool = False) -> None:
        """Write a single gradient to out. The call was prepared with dy, which is like x.

        saved: the array that `plan.saves` names, or None; or the bits that `record` has written.
        """
        x, _, _, module, plan, mask, rng, origin = self
        target = arrays.target_of("out", out, x, "dy")
        plan = plan.with_bits if bits else plan
        kernel = plan.gradient(name)
        buffers = _buffers(plan, mask, x, target) if kernel.masked else None
        draw = plan.draw(rng, origin, module, x, target)
        inputs = (x.array,) if len(kernel.inputs) - kernel.masked == 1 else (x.array, saved)
        _run(module, plan, mask, x, kernel, inputs, (target,), draw, buffers)

    def _saving(self, save: str) -> _Plan:
        """The plan for a backward pass that reads what `save` says."""
        plan = self.plan
        auto = check_saved(save, plan.activation) == "auto" and plan.with_bits is not None
        return plan.with_bits if save == "bits" or (auto and self.module.saves_bits(self.x.array)) else plan

    def _launch(self, plan: _Plan, target: Any, bits: Any = None) -> Draw:
        """Run the forward kernel of a plan. Return its Draw, which the backward pass needs."""
        x, inputs, _, module, _, mask, rng, origin = self
        buffers = None if plan.mask is None else _buffers(plan, mask, x, target)
        draw = plan.draw(rng, origin, module, x, target)
        if len(inputs) != plan.forward.num_inputs:  # with p = 0 the second array is not read
            inputs = (x.array,)
        outputs = (target,) if bits is None else (target, bits)
        _run(module, plan, mask, x, plan.forward, inputs, outputs, draw, buffers)
        return draw

    def _target(self, out: Any) -> Any:
        """The array that y is written to."""
        x = self.x
        if out is not None:
            target = arrays.target_of("out", out, x, "x")
            if len(self.inputs) > 1:
                arrays.check_apart("out", target, self.inputs[1], self.plan.second_input)
            return target
        if self.copies:
            return arrays.empty(x.array.shape, x.array.dtype, x)  # empty_like would make the samples the innermost axis
        return arrays.empty_like(x)

    def _backprop(self, plan: _Plan, draw: Draw, saved: Any) -> Any:
        """The function that computes the gradients. It keeps at most one array alive, so it must not keep self."""
        module, mask, likeness = self.module, self.mask, self.x.likeness()
        # Without a second output, the gradient of a second array is dy itself.
        computed, of_two = len(plan.backward.outputs) == 2, plan.second_input and _gradients(plan.second_input)

        def backprop(dy: Any, *, out: Any = None) -> Any:
            """dx for dy = d cost / d y; see `dropout_vjp`."""
            operand = arrays.as_operand("dy", dy)
            arrays.check_like("dy", operand, likeness)
            target = arrays.empty_like(operand) if out is None else arrays.target_of("out", out, operand, "dy")
            if out is not None and plan.saves in ("x", "y") and arrays.overlap(target, saved):
                name = plan.activation.name
                raise ValueError(f"out must not overlap {plan.saves}, which the backward pass of {name!r} needs")
            inputs = (operand.array,) if saved is None else (operand.array, saved)
            outputs: tuple[Any, ...] = (target, arrays.empty_like(operand)) if computed else (target,)
            if of_two and not computed and out is not None and arrays.overlap(target, operand.array):
                dy = operand.give_back(arrays.copied(operand.array))  # out overwrites dy
            buffers = _buffers(plan, mask, operand, target) if plan.backward.masked else None
            _run(module, plan, mask, operand, plan.backward, inputs, outputs, draw, buffers)
            dx = operand.give_back(target) if out is None else out
            return of_two(dx, operand.give_back(outputs[1]) if computed else dy) if of_two else dx

        return backprop


@cache
def _gradients(second_input: str) -> Any:
    """The type of the gradients of two arrays."""
    return namedtuple("Gradients", ("dx", f"d{second_input}"))  # noqa: PYI024  (the names depend on the variant)


def _buffers(plan: Any, mask: Any, operand: arrays.Operand, target: Any) -> list[Any]:
    """Allocate the buffers that `_draw_mask` fills, of an operand's kind."""
    owner = arrays.stream_owner(operand, target)
    return [arrays.empty(shape, plan.mask.dtype, owner) for shape in mask.shapes]


def _run(
    module: Any,
    plan: _Plan,
    mask: Any,
    operand: arrays.Operand,
    kernel: Kernel,
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    draw: Draw,
    buffers: list[Any] | None,
) -> None:
    """Run a kernel. If it reads a mask, first draw the mask into the buffers."""
    if buffers is not None:
        owner = arrays.stream_owner(operand, outputs[0])
        inputs = (*inputs, _draw_mask(mask, module, owner, buffers, plan.mask, draw))
    backends.launch(module, operand, kernel, inputs, outputs, draw)


def _draw_mask(mask: Any, module: Any, operand: arrays.Operand, buffers: list[Any], kernel: Any, draw: Draw) -> Mask:
    """Draw a BroadcastMask or Blocks into its buffers, with the kernel that only draws. Unpack a GivenMask."""
    if isinstance(mask, Blocks):
        seeds, grown = buffers
        backends.launch(module, operand, kernel, (), (seeds,), draw)
        kept = backends.grow(module, operand, seeds, grown, mask.block)
        return Mask(grown.reshape(-1), period=math.prod(grown.shape), kept=kept)
    if isinstance(mask, GivenMask):
        mask, array, packed = mask
        if packed:
            bits, (array, *buffers) = array, buffers
            backends.launch(module, operand, operations.UNPACK, (bits,), (array,), Draw())
    else:
        array, *buffers = buffers
        _draw_windows(module, operand, kernel, array, draw._replace(row=mask.row, pitch=mask.pitch), mask.starts)
    spread = operations.drawing(kernel.drawn, kernel.dtype, Reads())
    for buffer, (_, *geometry) in zip(buffers, mask.spreads, strict=True):
        backends.launch(module, operand, spread, (Mask(array, *geometry),), (buffer,), Draw())
        array = buffer
    return Mask(array, mask.period, mask.repeat, mask.run)


def _draw_windows(module: Any, operand: arrays.Operand, kernel: Kernel, array: Any, draw: Draw, starts: Any) -> None:
    """Draw an array in one window for each start. Starts are relative to the draw's own start."""
    flat = array if len(starts) == 1 else array.reshape(-1)
    size = array.size // len(starts)
    for k, start in enumerate(starts):
        window = flat if len(starts) == 1 else flat[k * size : (k + 1) * size]
        backends.launch(module, operand, kernel, (), (window,), draw._replace(start=draw.start + start))


def prepare(
    operand: arrays.Operand,
    how: Any,
    activation: Any,
    training: bool,
    rng: RngLike,
    bits: int,
    backend: str | None,
    shard: Shard | None = None,
    context: Context | None = None,
) -> Prepared:
    """Check a call.

    operand: x, or for a single gradient dy, which is like x. how: the fields of a `variants.Variation`: the strength,
    the noise of training and of prediction, and so on. context: the call's Context, by default the current one.
    """
    strength, noise, prediction, mask, axis, other, copies = how
    context = current() if context is None else context
    if training is not True and training is not False:
        training = check_truth("training", training)
    acts = training and context.on
    # Arguments of the usual types are checked in `_plan`, once for each plan.
    p = strength if acts and type(strength) is float else noise.check(strength)
    bits = bits if type(bits) is int else check_bits(bits)
    noise = noise if acts else prediction
    if copies is not None:
        operand = arrays.repeated(operand, copies)
    x, kind, _ = operand
    activation, stream_source = find_activation(activation), rng_of(rng, context)
    counted, window, origin, given = False, False, (0, x.size, 0), isinstance(mask, GivenMask)
    if not given and (mask is not None or shard is not None or context.first):
        mask, origin = _locate(x, mask, axis, context.first, shard, copies)
        counted, window = (False, origin[1] < x.size) if mask is None else (mask.counted, mask.window)
    plan = _plan(x.dtype, noise, p, activation, bits, mask is not None, counted, window, stream_source.stored, given)
    module = backends.choose(kind, backend)
    inputs: tuple[Any, ...] = (x,)
    if noise.second_input is not None:
        second = arrays.as_operand(noise.second_input, other)
        arrays.check_like(noise.second_input, second, operand.likeness())
        inputs = (x, second.array)
    return Prepared(operand, inputs, copies is not None, module, plan, mask, stream_source, origin)


def _locate(
    x: Any, mask: Any, axis: int | None, first: int, shard: Shard | None, copies: int | None
) -> tuple[Any, tuple[int, int, int]]:
    """The mask as a BroadcastMask, as Blocks or None, and its position: start, row and pitch of a Draw."""
    if shard is not None:
        if isinstance(mask, Blocks):
            raise ValueError("dropblock does not support shards: its normalisation needs the whole array")
        shard = _shard_of(x, shard, copies)
    shape = tuple(x.shape) if shard is None else shard.shape
    if (mask is not None or shard is not None) and not isinstance(mask, Blocks):
        mask = broadcast_mask(
            tuple(x.shape), (None,) * len(shape) if mask is None else check_mask_shape(mask), axis, shard
        )
    start, row, pitch = 0, x.size, 0
    if shard is not None and mask is None and x.size:
        row, pitch, (start,) = rows(tuple(x.shape), shard)
    if first and axis is not None and x.ndim and x.size:
        start += first * (math.prod(shape) // shape[axis] if mask is None else mask.per_sample)
        if start + (math.prod(shape) if mask is None else mask.drawn) > 2**64:
            raise ValueError(f"first must be so small that the mask ends below 2**64, got {first}")
    return mask, (start, row, pitch)


def _shard_of(x: Any, shard: Any, copies: int | None = None) -> Shard:
    """The Shard of x. If there are copies, x is repeated along a new first axis."""
    if not isinstance(shard, Shard):
        raise TypeError(f"shard must be a gpudrop.Shard or None, got {name_of(type(shard))}")
    if copies is not None:
        shard = Shard((None, *shard.shape), (0, *shard.start))
    return resolved(shard, tuple(x.shape))


def given_mask(x: arrays.Operand, keep: Any, mask_shape: Any) -> GivenMask:
    """The mask of an array x that the caller has drawn before: see `dropout`."""
    sizes = x.array.shape
    if mask_shape is None:
        mask_shape = (None,) * len(sizes)
    geometry = broadcast_mask(tuple(sizes), check_mask_shape(mask_shape), None, given=True)
    own = tuple(n if m is None else m for m, n in zip(mask_shape, sizes[len(sizes) - len(mask_shape) :], strict=True))
    mask = arrays.as_operand("keep", keep)
    packed = mask.array.dtype == np.uint8
    wanted = (np.dtype(np.uint8), (-(-geometry.drawn // 8),)) if packed else (np.dtype(bool), own)
    kind, _, _, device = x.likeness()
    if mask.likeness() != (kind, *wanted, device):
        raise ValueError(
            f"keep must be {arrays.describe(kind, np.dtype(bool), own, device)}, or its packed bits of dtype uint8 and "
            f"shape {(-(-geometry.drawn // 8),)}, got {arrays.describe(*mask.likeness())}"
        )
    return GivenMask(geometry, mask.array.reshape(-1), packed)


def draw_mask(
    shape: tuple[int, ...],
    p: float,
    rng: RngLike,
    bits: int,
    start: int,
    operand: arrays.Operand,
    backend: str | None,
    shard: Shard | None = None,
    packed: bool = False,
) -> Any:
    """The mask of `dropout` as an array of an operand's kind, or its bits. p, bits and start are checked already."""
    context = current()
    stream_source = rng_of(rng, context)
    module = backends.choose(operand.kind, backend)
    mask = arrays.empty(shape, np.bool_, operand)
    whole, (row, pitch, starts) = shape, (mask.size, 0, (0,))
    if shard is not None:
        shard = _shard_of(mask, shard)
        whole = shard.shape
        if mask.size:
            row, pitch, starts = rows(shape, shard)
    if context.first and mask.ndim and mask.size:
        start += context.first * (math.prod(whole) // whole[0])
    if start + math.prod(whole) > 2**64:
        name, got = ("first", context.first) if context.first else ("start", start)
        raise ValueError(f"{name} must be so small that the mask ends below 2**64, got {got}")
    scalars = DROPOUT.scalars(p, bits) if context.on else None
    source = Draws(bits, row * len(starts) < mask.size, stream_source.stored) if scalars else None
    seed, call = take(stream_source, module, operand._replace(array=mask)) if scalars else (0, 0)
    draw = Draw(seed, call, start, *(scalars or Scalars()), row, pitch)
    _draw_windows(module, operand, operations.drawing("keep", "bool", source), mask, draw, starts)
    if packed:
        kept, mask = mask, arrays.empty_bits(mask.size, operand)
        backends.launch(module, operand._replace(array=kept), operations.PACK, (kept,), (mask,), Draw())
        mask = mask[: -(-kept.size // 8)]
    return operand.give_back(mask)
