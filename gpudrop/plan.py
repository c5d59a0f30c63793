"""The plan of a call: the kernels for an operation and a dtype, their scalars, and what the backward pass needs.

A call is checked first, as a `Prepared`. Then its results are allocated, its stream is drawn and its kernels are
launched.
"""

import math
from collections import namedtuple
from functools import cache, lru_cache
from typing import Any, NamedTuple, cast

import numpy as np

from gpudrop import arrays, backends, operations
from gpudrop.checks import check_bits, check_save, check_truth
from gpudrop.context import Context, current, rng_of
from gpudrop.formulas.activations import ACTIVATIONS, Activation, find_activation
from gpudrop.formulas.noises import DROPOUT, PLAIN, Noise, Scalars
from gpudrop.generator import RngLike, Source, take
from gpudrop.hints import name_of
from gpudrop.kernels.spec import REAL, WIDTHS, Draw, Draws, Kernel, Mask, Reads
from gpudrop.masks import Blocks, BroadcastMask, GivenMask, Shard, broadcast_mask, check_mask_shape, resolved, rows
from gpudrop.signatures import MaskShape, Save


def check_saved(save: Any, activation: Activation, factor: str = "") -> Save:
    """What a forward pass saves; a ValueError if save is unknown or is not possible with this activation and factor."""
    if check_save(save) == "bits" and activation.slopes is None:
        having = ", ".join(sorted(name for name, row in ACTIVATIONS.items() if row.slopes is not None))
        raise ValueError(f"save='bits' needs an activation with two slopes ({having}), got {activation.name!r}")
    if save == "bits" and factor:
        raise ValueError(f"save='bits' does not support {factor}, whose gradient needs the activation's input")
    return save


class Variation(NamedTuple):
    """The part of a variant that depends on the call; the defaults are those of dropout.

    Attributes
    ----------
    p : float
        The strength of the noise, not yet checked.
    mask : tuple or Blocks, optional
        A mask_shape as for `dropout`, or the blocks of DropBlock. None draws a value for each element.
    batch_axis : int, optional
        The axis of x that counts samples. None if there is no such axis.
    other : array, optional
        The second array that the noise reads. It has the kind and shape of x. Only a residual may have a wider dtype.
    copies : int, optional
        The number of times x is repeated along a new first axis.
    bias : array, optional
        The array that is added to x. It has an element for each element of x's last axis.
    factor : (str, array), optional
        The factor of activation(x): "gain" and an array like bias, or "value" and an array like x.
    packed : bool, optional
        Not None if x and its factor "value" are the halves of the first argument along its last axis: whether x comes
        first.
    """

    p: float
    mask: MaskShape | Blocks | None = None
    batch_axis: int | None = 0
    other: Any = None
    copies: int | None = None
    bias: Any = None
    factor: tuple[str, Any] | None = None
    packed: bool | None = None


class Call(NamedTuple):
    """What a variant says about a call, before anything is checked.

    Attributes
    ----------
    variation : Variation
    noise, prediction : Noise
        The operation in training, and wherever dropout is switched off.
    names : tuple of str
        The names of the array arguments, whose gradients backprop returns. Empty if it returns a single gradient.
    """

    variation: Variation
    noise: Noise
    prediction: Noise
    names: tuple[str, ...] = ()


class _Plan(NamedTuple):
    """The kernels and scalars of a call, without its arrays and its stream."""

    activation: Activation
    noise: Noise
    forward: Kernel
    backward: Kernel  # all gradients
    mask: Kernel | None  # draws the mask that the others read
    scalars: Scalars
    draws: bool
    neighbours: operations.Neighbours
    saves: str | None  # the array that the backward pass reads besides dy: "x", "y", "bits" or None
    with_bits: Any = None  # the _Plan of the same call whose backward pass reads bits, or None

    def gradient(self, names: tuple[str, ...]) -> Kernel:
        """The kernel of some gradients."""
        if tuple(slot.name for slot in self.backward.outputs) == names:
            return self.backward
        of_x = self.forward.dtypes[0][0]
        source, bits = self.forward.source, self.saves == "bits"
        return operations.backward(self.activation, of_x, source, self.noise, names, bits, self.neighbours)

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
    neighbours: operations.Neighbours,
) -> _Plan:
    p, bits = noise.check(p), noise.check_bits(bits)
    gradients, scalars = noise.gradients, noise.scalars(p, bits)
    gradients += ("dbias",) * bool(neighbours.bias)
    gradients += (f"d{neighbours.factor}",) if neighbours.factor else ()
    if scalars is None and given:
        scalars = Scalars()
    elif scalars is None:
        noise, scalars = noise.off or PLAIN, Scalars()
    real = getattr(np, REAL[neighbours.wide or dtype.name])
    with np.errstate(over="ignore"):
        scalars = scalars._replace(scale=float(real(scalars.scale)), shift=float(real(scalars.shift)))
    draws = None if noise.drawn is None else Draws(bits, window, stored)
    source = Reads(counted) if masked and draws else draws
    found: Any = None
    for by_bits in (True, False) if activation.slopes is not None and not neighbours.factor else (False,):
        forward = operations.forward(activation, dtype.name, source, noise, by_bits, neighbours)
        backward = operations.backward(activation, dtype.name, source, noise, gradients, by_bits, neighbours)
        mask = operations.drawing(noise.drawn, forward.mask_dtype, draws) if forward.masked else None
        found = _Plan(
            activation,
            noise,
            forward,
            backward,
            mask,
            scalars,
            source is not None and not given,
            neighbours,
            "bits" if by_bits else operations.saves(activation, dtype.name, noise, source, neighbours),
            found,
        )
    return found


class Prepared(NamedTuple):
    """A checked call on x or on arrays like it. Nothing is allocated, drawn or launched yet."""

    x: arrays.Operand
    like: arrays.Operand  # what y is like: x, or the second array if its dtype is wider
    inputs: dict[str, Any]  # the arrays that kernels may read, by the names of their slots
    call: Call
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
        needed = [slot.name for slot in plan.backward.inputs if slot.name in self.inputs]
        if out is not None:
            _check_unneeded(target, {self.name_of(name): self.inputs[name] for name in needed}, plan.activation)
        bits = arrays.empty_bits(target.size, x) if plan.saves == "bits" else None
        draw = self._launch(plan, target, bits)
        y = x.give_back(target) if out is None else out
        kept = {name: self.inputs[name] for name in needed}
        kept |= {plan.saves: target if bits is None else bits} if plan.saves in ("y", "bits") else {}
        return y, _Backprop(self, plan, draw, kept)

    def record(self, out: Any, bits: Any) -> None:
        """As `forward`, and write the bits that `gradient` can read.

        bits: an array like that of `arrays.empty_bits`.
        """
        self._launch(self._saving("bits"), self._target(out), bits)

    def gradients(self, dy: arrays.Operand, outputs: dict[str, Any], saved: Any = None, bits: bool = False) -> None:
        """Write gradients to arrays by their names: some of those of the plan, in its order.

        The call was prepared with x, or with any array like x if `saved` is what the backward pass reads. dy is like y.
        saved: the array that `plan.saves` names, or the bits that `record` has written. None if that is x, or nothing.
        """
        plan = self.plan.with_bits if bits else self.plan
        inputs = {**self.inputs, "dy": dy.array} | dict.fromkeys(("x", "y", "bits") * (saved is not None), saved)
        if self.call.variation.packed is not None:
            outputs["dx"], outputs["dvalue"] = arrays.halves(outputs["dx"], self.call.variation.packed)
        draw = plan.draw(self.rng, self.origin, self.module, dy, next(iter(outputs.values())))
        _run(self.module, plan, self.mask, dy, plan.gradient(tuple(outputs)), inputs, outputs, draw)

    @property
    def second(self) -> str:
        """The name of the noise's second input, or an empty string."""
        return self.plan.noise.second_input or ""

    def name_of(self, slot: str) -> str:
        """The name of the argument that is the slot's operand."""
        return self.call.names[0] if slot == "x" and self.call.names else slot

    def _saving(self, save: str) -> _Plan:
        """The plan for a backward pass that reads what `save` says."""
        plan = self.plan
        auto = check_saved(save, plan.activation, plan.neighbours.factor) == "auto" and plan.with_bits is not None
        return plan.with_bits if save == "bits" or (auto and self.module.saves_bits(self.x.array)) else plan

    def _launch(self, plan: _Plan, target: Any, bits: Any = None) -> Draw:
        """Run the forward kernel of a plan. Return its Draw, which the backward pass needs."""
        x = self.x
        buffers = None if plan.mask is None else _buffers(plan, self.mask, x, target)
        draw = plan.draw(self.rng, self.origin, self.module, x, target)
        outputs = {"y": target, "bits": bits}
        _run(self.module, plan, self.mask, x, plan.forward, self.inputs, outputs, draw, buffers)
        return draw

    def _target(self, out: Any) -> Any:
        """The array that y is written to."""
        like = self.like
        if out is not None:
            target = arrays.target_of("out", out, like, self.name_of("x" if like is self.x else self.second))
            for name, array in self.inputs.items() if len(self.inputs) > 1 else ():
                arrays.check_apart("out", target, array, self.name_of(name), itself=name not in ("bias", "gain"))
            return target
        if self.call.variation.copies is not None:
            # empty_like would make the samples the innermost axis.
            return arrays.empty(like.array.shape, like.array.dtype, like)
        return arrays.empty_like(like)


class _Backprop:
    """The function that computes the gradients of a call. It keeps only those arrays alive that it reads."""

    def __init__(self, prepared: Prepared, plan: _Plan, draw: Draw, kept: dict[str, Any]) -> None:
        """kept: the arrays that the backward pass reads besides dy, by the names of their slots."""
        self.module, self.mask, self.plan, self.draw, self.kept = prepared.module, prepared.mask, plan, draw, kept
        self.likeness, self.of_x, self.packed = (
            prepared.like.likeness(),
            prepared.x.likeness(),
            prepared.call.variation.packed,
        )
        self.names, self.called = prepared.call.names, {name: prepared.name_of(name) for name in kept}
        self.dtypes = {f"d{name}": prepared.inputs[name].dtype for name in ("bias", "gain") if name in prepared.inputs}

    def __call__(self, dy: Any, *, out: Any = None) -> Any:
        """dx for dy = d cost / d y; see `dropout_vjp`."""
        operand, plan, kernel = arrays.as_operand("dy", dy), self.plan, self.plan.backward
        arrays.check_like("dy", operand, self.likeness)
        out, other = self._outs(out)
        whole = self._target(operand, out)
        outputs = {"dx": whole}
        if self.packed is not None:
            outputs["dx"], outputs["dvalue"] = arrays.halves(whole, self.packed)
        for slot in kernel.outputs:
            if slot.layout == "sums":
                *_, columns = operand.array.shape
                outputs[slot.name] = arrays.empty((columns,), self.dtypes[slot.name], operand)
            elif slot.name not in outputs:
                outputs[slot.name] = self._target(operand, other)
                if other is not None and any(arrays.overlap(outputs[slot.name], x) for x in (whole, operand.array)):
                    raise ValueError("out must be two arrays of which the second shares no memory with the first or dy")
        second, kept = plan.noise.second_input, self.kept
        returned = second is not None and f"d{second}" not in outputs  # dy itself is that gradient
        if returned and out is not None and arrays.overlap(whole, operand.array):
            dy = operand.give_back(arrays.copied(operand.array))  # out overwrites dy
        inputs = {"dy": operand.array, **kept}
        _run(self.module, plan, self.mask, operand, kernel, inputs, outputs, self.draw)
        dx = operand.give_back(whole) if out is None else out
        if not self.names:
            return dx
        results = {"dx": dx, f"d{second}": dy} if returned else {"dx": dx}
        for name, array in outputs.items():
            if name != "dx" and self.packed is None:
                results[name] = operand.give_back(array) if other is None or name in self.dtypes else other
        return _gradients(self.names)(dx, *(results.get(f"d{name}") for name in self.names[1:]))

    def _outs(self, out: Any) -> Any:
        """The arrays for the gradients of the first argument and of the second one, each an array or None."""
        outs, full = out if isinstance(out, tuple) else (out,), self.plan.backward.num_outputs
        most = full if self.packed is None else 1
        if not 0 < len(outs) <= most:
            wanted = "one array" if most == 1 else f"one to {most} arrays"
            raise ValueError(f"out must be an array or a tuple of {wanted}, got a tuple of {len(outs)}")
        return (*outs, None)[:2]

    def _target(self, operand: arrays.Operand, out: Any) -> Any:
        """The array for the gradient of an argument."""
        kind, dtype, shape, device = self.of_x
        if self.packed is not None:
            *others, size = shape
            shape = (*others, 2 * size)
        if out is None:
            like_dy = self.packed is None
            return arrays.empty_like(operand, dtype) if like_dy else arrays.empty(shape, dtype, operand)
        target = arrays.target_of("out", out, operand, "dy", (kind, dtype, shape, device))
        kept = {self.called[name]: array for name, array in self.kept.items() if name != "bits"}
        _check_unneeded(target, kept, self.plan.activation)
        return target


def _check_unneeded(target: Any, kept: dict[str, Any], activation: Activation) -> None:
    """Check that an array to write to overlaps none that the backward pass reads. kept: these, by argument."""
    for name, array in kept.items():
        if arrays.overlap(target, array):
            raise ValueError(f"out must not overlap {name}, which the backward pass of {activation.name!r} needs")


@cache
def _gradients(names: tuple[str, ...]) -> Any:
    """The type of the gradients of arrays with these names."""
    fields = [f"d{name}" for name in names]
    of = cast("Any", namedtuple("Gradients", fields))  # noqa: PYI024  (the fields depend on the variant)
    of.__reduce__ = lambda self: (_unpickled, (names, *self))  # pickle would search for the type in this module
    return of


def _unpickled(names: tuple[str, ...], *gradients: Any) -> Any:
    return _gradients(names)(*gradients)


def _empty_sums(module: Any, operand: arrays.Operand, out: Any, real: Any) -> Any:
    """The array for the partial sums of an array's columns: out itself if there is only one group to add up."""
    *others, columns = operand.array.shape
    groups = -(-math.prod(others) // module.ROWS)
    if groups == 1 and columns and out.dtype == real:
        return out.reshape(1, columns)
    return (arrays.empty if operand.array.size else arrays.zeros)((max(1, groups), columns), np.dtype(real), operand)


def _add_up(module: Any, operand: arrays.Operand, sums: Any, out: Any) -> None:
    """Write the sums of the columns to out, from partial sums.

    Each launch adds up groups of rows, always in the same order.
    """
    real, empty = arrays.name_of_dtype(sums.dtype), not operand.array.size
    while sums.shape[0] > 1:
        rows, operand = sums, operand._replace(array=sums)
        sums = _empty_sums(module, operand, out, real)
        backends.launch(module, operand, operations.adding(real), (rows,), (sums,), Draw())
    if out.size and (empty or out.dtype != sums.dtype):
        sums = sums.reshape(out.size)
        rounding = operations.rounding(arrays.name_of_dtype(out.dtype), real)
        backends.launch(module, operand._replace(array=sums), rounding, (sums,), (out,), Draw())


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
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    draw: Draw,
    buffers: list[Any] | None = None,
) -> None:
    """Run a kernel on arrays by the names of their slots.

    If it reads a mask, first draw the mask into the buffers, which are allocated if there are none. If it has partial
    sums, add them up in its outputs.
    """
    sums = {}
    if kernel.num_sums:
        rows = [slot.name for slot in kernel.outputs if slot.layout == "sums"]
        sums = {name: _empty_sums(module, operand, outputs[name], kernel.real) for name in rows}
    if kernel.masked:
        first = outputs[kernel.outputs[0].name]
        buffers = _buffers(plan, mask, operand, first) if buffers is None else buffers
        owner = arrays.stream_owner(operand, first)
        inputs = {**inputs, "mask": _draw_mask(mask, module, owner, buffers, plan.mask, draw)}
    read = [inputs[slot.name] for slot in kernel.inputs]
    written = [sums.get(slot.name, outputs[slot.name]) for slot in kernel.outputs]
    backends.launch(module, operand, kernel, read, written, draw)
    for name, partial in sums.items():
        _add_up(module, operand, partial, outputs[name])


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
    call: Call,
    activation: Any,
    training: bool,
    rng: RngLike,
    bits: int,
    backend: str | None,
    shard: Shard | None = None,
    context: Context | None = None,
) -> Prepared:
    """Check a call.

    operand: x, or for a single gradient dy, which is like x. context: the call's Context, by default the current one.
    """
    mask: Any
    (strength, mask, axis, other, copies, bias, factor, packed), noise, prediction, names = call
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
    like, neighbours, called = operand, operations.NONE, names[0] if names else "x"
    inputs: dict[str, Any] = {}
    _check_dtype(called, operand.array.dtype)
    if packed is not None:
        _check_packed(called, operand)
        first, inputs["value"] = arrays.halves(operand.array, packed)
        like = operand = operand._replace(array=first)
    if noise.second_input is not None:
        second, wide = _second_input(noise, other, operand, called)
        if wide:
            like, neighbours = second, operations.Neighbours(wide=wide)
        inputs[noise.second_input] = second.array
    x, kind, _ = operand
    inputs["x"] = x
    if bias is not None or factor is not None or packed is not None:
        neighbours = _check_neighbours(called, operand, bias, factor, inputs, neighbours)
    activation, stream_source = find_activation(activation), rng_of(rng, context)
    counted, window, origin, given = False, False, (0, x.size, 0), isinstance(mask, GivenMask)
    if not given and (mask is not None or shard is not None or context.first):
        mask, origin = _locate(x, mask, axis, context.first, shard, copies)
        counted, window = (False, origin[1] < x.size) if mask is None else (mask.counted, mask.window)
    stored = stream_source.stored
    plan = _plan(x.dtype, noise, p, activation, bits, mask is not None, counted, window, stored, given, neighbours)
    return Prepared(operand, like, inputs, call, backends.choose(kind, backend), plan, mask, stream_source, origin)


@lru_cache(maxsize=64)
def _check_dtype(name: str, dtype: Any) -> None:
    if not arrays.name_of_dtype(dtype):
        advice = f"; convert it with {name}.astype(np.float32)" if dtype.kind in "biuf" else ""
        raise TypeError(f"{name} must have one of the dtypes {', '.join(arrays.DTYPES)}, got {dtype}{advice}")


def _second_input(noise: Noise, other: Any, x: arrays.Operand, called: str) -> tuple[arrays.Operand, str]:
    """The noise's second input, which must be like x, and the name of its dtype if that is a wider one.

    A gradient that is dy itself may have a wider dtype. called: the name of x.
    """
    name: Any = noise.second_input
    second = arrays.as_operand(name, other)
    found, wanted = second.likeness(), x.likeness()
    if found == wanted:
        return second, ""
    if noise.second is not PLAIN:
        arrays.check_like(name, second, wanted)
    (kind, dtype, *rest), wide = wanted, arrays.name_of_dtype(second.array.dtype)
    alike = found == (kind, second.array.dtype, *rest)
    if not alike or WIDTHS.get(wide, 0) <= WIDTHS[arrays.name_of_dtype(dtype)]:
        wanted, found = arrays.describe(*wanted), arrays.describe(*found)
        raise ValueError(f"{name} must be {wanted}, as {called}, or of a wider dtype, got {found}")
    return second, wide


def _check_packed(name: str, operand: arrays.Operand) -> None:
    shape = tuple(operand.array.shape)
    if not shape or shape[-1] % 2:
        raise ValueError(f"{name} without value must have an even number of elements along its last axis, got {shape}")


def _check_neighbours(
    called: str,
    operand: arrays.Operand,
    bias: Any,
    factor: Any,
    inputs: dict[str, Any],
    neighbours: operations.Neighbours,
) -> operations.Neighbours:
    """Check the bias and the factor of a call, and add them to its inputs. called: the name of x."""
    kind, dtype, shape, device = operand.likeness()
    name, factor = factor if factor is not None else ("value" if "value" in inputs else "", inputs.get("value"))
    if name == "value" and name not in inputs:
        value = arrays.as_operand(name, factor)
        arrays.check_like(name, value, operand.likeness())
        inputs[name] = value.array
    of_x = arrays.name_of_dtype(dtype)
    allowed = of_x, REAL[neighbours.wide or of_x]
    for row, array in (("bias", bias), ("gain", factor if name == "gain" else None)):
        if array is None:
            continue
        of_row = arrays.as_operand(row, array)
        if not shape:
            raise ValueError(f"{called} must have an axis for {row}, got shape ()")
        if arrays.name_of_dtype(of_row.array.dtype) not in allowed or of_row.likeness() != (
            kind,
            of_row.array.dtype,
            shape[-1:],
            device,
        ):
            wanted = " or ".join(sorted({*allowed}))
            raise ValueError(
                f"{row} must have a value for each element of the last axis of {called}, "
                f"{arrays.describe(kind, wanted, shape[-1:], device)}, for {called} of dtype {dtype} and shape "
                f"{shape}, got {arrays.describe(*of_row.likeness())}"
            )
        inputs[row] = arrays.contiguous(of_row.array)
    of_bias, of_factor = (arrays.name_of_dtype(inputs[each].dtype) if each in inputs else "" for each in ("bias", name))
    return operations.Neighbours(of_bias, name, of_factor, neighbours.wide)


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
