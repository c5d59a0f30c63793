"""The plan of a call: which kernels run for an operation and a dtype, what they are given, and what is kept to go back.

A call is checked and allocated first, as a `Prepared`; then it is drawn and launched.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpudrop import arrays, backends
from gpudrop.checks import check_bits, check_truth
from gpudrop.context import Context, current, rng_of
from gpudrop.formulas.activations import Activation, find_activation
from gpudrop.formulas.noises import DRAWN, DROPOUT, DROPPED, PLAIN, Noise, Numbers
from gpudrop.fusion import REAL, STORAGE, Draw, Fusion, Given
from gpudrop.generator import Generator, Stream, take
from gpudrop.hints import name_of
from gpudrop.masks import Blocks, Shard, Shared, check_mask_shape, rows, shared, within
from gpudrop.signatures import MaskShape

DTYPES = tuple(dtype for dtype in STORAGE if dtype != "bool")


class Variation(NamedTuple):
    """What sets one kind of dropout apart from another; the defaults are dropout itself.

    Attributes
    ----------
    p : float
        The strength of the noise, not yet checked.
    noise : Noise
    prediction : Noise
        What is done when not in training, and where everything is switched off.
    mask : tuple or Blocks, optional
        A mask_shape as `dropout` has it, or DropBlock's blocks; None draws for each element.
    batch_axis : int, optional
        The axis of x that counts samples, None if none does.
    other : array, optional
        The second array that the noise reads; of x's kind, shape and dtype.
    copies : int, optional
        How many times x is repeated along a new first axis.
    """

    p: float
    noise: Noise = DROPOUT
    prediction: Noise = PLAIN
    mask: MaskShape | Blocks | None = None
    batch_axis: int | None = 0
    other: Any = None
    copies: int | None = None


class _Plan(NamedTuple):
    """All of a call but its arrays and its stream."""

    forward: Fusion
    backward: Fusion
    second: Fusion | None  # backward to the second array
    mask: Fusion | None  # what is drawn before the others run
    numbers: Numbers
    draws: bool

    def draw(self, rng: Generator | Stream, place: tuple[int, ...], module: Any, operand: Any, target: Any) -> Draw:
        """The numbers of one call; the generator moves on if anything is drawn."""
        limit, scale, shift = self.numbers
        if not self.draws:
            return Draw(0, 0, 0, limit, scale, shift)
        if rng.stored:  # it moves on where the kernel runs
            operand = arrays.stream_owner(operand, target)
        (seed, call), (start, row, pitch) = take(rng, module, operand), place
        return Draw(seed, call, start, limit, scale, shift, row, pitch)


# A cache, because training makes the same few calls again and again; p may come from a schedule.
@lru_cache(maxsize=1024)
def _plan(
    dtype: Any,
    noise: Noise,
    p: float,
    activation: Activation,
    bits: int,
    given: bool,
    counted: bool,
    window: bool,
    stored: bool,
) -> _Plan:
    if dtype.name not in DTYPES or not dtype.isnative:
        advice = "; x.astype(np.float32) has one" if dtype.kind in "biuf" else ""
        raise TypeError(f"x must have one of the dtypes {', '.join(DTYPES)}, got {dtype}{advice}")
    p, bits = noise.check(p), noise.check_bits(bits)
    numbers, two_inputs = noise.numbers(p, bits), noise.two_inputs  # before noise may become another
    if numbers is None:
        noise, numbers = PLAIN, Numbers()
    real = getattr(np, REAL[dtype.name])
    with np.errstate(over="ignore"):
        numbers = numbers._replace(scale=float(real(numbers.scale)), shift=float(real(numbers.shift)))
    draws = noise.drawn is not None
    given, counted = given and draws, counted and draws
    inline = bits if draws and not given else 0

    drawn_here = {"window": window, "stored": stored} if inline else {}

    def fusion(direction: str, noise: Noise, activation: Activation) -> Fusion:
        described = Fusion(direction, activation, inline, dtype.name, noise, given, counted, **drawn_here)
        if described.acting.drawn is None or (direction == "backward" and described.saves_output):
            return Fusion(direction, activation, 0, dtype.name, noise)
        return described

    forward, identity = fusion("forward", noise, activation), find_activation(None)
    mask = None
    if given:
        drawn = DRAWN[noise.drawn]
        mask = Fusion("mask", identity, bits, forward.drawn_dtype, drawn, window=window, stored=stored)
    second = fusion("backward", noise.second or DROPPED, identity) if two_inputs else None
    return _Plan(forward, fusion("backward", noise, activation), second, mask, numbers, draws)


class Prepared(NamedTuple):
    """A checked and allocated call: all that is left to do is to draw and to launch."""

    x: arrays.Operand
    other: Any  # the second array, or x's own
    target: Any  # where to write
    out: Any  # the user's own array for that, or None
    module: Any
    plan: _Plan
    mask: Shared | Blocks | None
    buffers: list[Any] | None  # for the mask
    rng: Generator | Stream
    place: tuple[int, ...]  # where it is drawn: start, row and pitch of a Draw

    def forward(self) -> Any:
        x, other, target, out, module, plan, mask, buffers, rng, place = self
        draw = plan.draw(rng, place, module, x, target)
        _run(module, plan.forward, plan.mask, mask, x, other, target, draw, buffers)
        return x.give_back(target) if out is None else out

    def vjp(self) -> tuple[Any, Any]:
        """What `forward` returns, and the function that takes a gradient back."""
        x, other, target, out, module, plan, mask, buffers, rng, place = self
        activation = plan.backward.activation
        needs_x = activation.slope_of is not None and not plan.backward.saves_output
        if needs_x and out is not None and arrays.overlap(target, x.array):
            raise ValueError(f"out must not overlap x, which the backward pass of {activation.name!r} needs")
        draw = plan.draw(rng, place, module, x, target)
        _run(module, plan.forward, plan.mask, mask, x, other, target, draw, buffers)
        y = x.give_back(target) if out is None else out
        return y, self._backprop(draw, x.array if needs_x else None if activation.slope_of is None else target)

    def backward(self, saved: Any, second: bool = False) -> None:
        """The gradient alone, for a call that was prepared with dy in the place of x.

        saved: what the activation's slope is a function of, or None; second: whether it is the second array's.
        """
        fusion = self.plan.second if second else self.plan.backward
        draw = self.plan.draw(self.rng, self.place, self.module, self.x, self.target)
        _run(self.module, fusion, self.plan.mask, self.mask, self.x, saved, self.target, draw, self.buffers)

    def _backprop(self, draw: Draw, saved: Any) -> Any:
        """The function that takes a gradient back. It keeps one array at most, so it must not keep self."""
        module, plan, mask, likeness = self.module, self.plan, self.mask, self.x.likeness()

        def backprop(dy: Any, *, out: Any = None) -> Any:
            """dx for dy = d cost / d y; see `dropout_vjp`."""
            operand = arrays.as_operand("dy", dy)
            arrays.check_like("dy", operand, likeness)
            target = arrays.empty_like(operand) if out is None else arrays.target_of("out", out, operand, "dy")
            if out is not None and saved is not None and arrays.overlap(target, saved):
                kept = "y" if plan.backward.saves_output else "x"
                name = plan.backward.activation.name
                raise ValueError(f"out must not overlap {kept}, which the backward pass of {name!r} needs")
            dprevious = None
            if plan.second is not None:  # first, for out may be dy
                dprevious = arrays.empty_like(operand)
                _run(module, plan.second, plan.mask, mask, operand, None, dprevious, draw)
            _run(module, plan.backward, plan.mask, mask, operand, saved, target, draw)
            dx = operand.give_back(target) if out is None else out
            return dx if dprevious is None else (dx, operand.give_back(dprevious))

        return backprop


def _buffers(mask: Any, operand: arrays.Operand, dtype: str) -> list[Any]:
    """Memory for what `_draw_shared` fills, of an operand's kind."""
    return [arrays.empty(shape, dtype, operand) for shape in mask.shapes]


def _draw_shared(mask: Any, module: Any, operand: arrays.Operand, buffers: list[Any], fusion: Any, draw: Draw) -> Given:
    """Draw a Shared or Blocks into its buffers; the fusion and the draw are those of drawing alone."""
    if isinstance(mask, Blocks):
        seeds, grown = buffers
        backends.launch(module, operand, fusion, seeds, seeds, seeds, draw)
        kept = backends.grow(module, operand, seeds, grown, mask.block)
        return Given(grown.reshape(-1), period=math.prod(grown.shape), kept=kept)
    array = buffers[0]
    _draw_windows(module, operand, fusion, array, draw._replace(row=mask.row, pitch=mask.pitch), mask.starts)
    spread = Fusion("mask", fusion.activation, 0, fusion.dtype, fusion.noise, given=True)
    for buffer, (_, *place) in zip(buffers[1:], mask.spreads, strict=True):
        backends.launch(module, operand, spread, buffer, buffer, buffer, Draw(), Given(array, *place))
        array = buffer
    return Given(array, mask.period, mask.repeat, mask.run)


def _draw_windows(module: Any, operand: arrays.Operand, fusion: Fusion, array: Any, draw: Draw, starts: Any) -> None:
    """Draw an array in as many windows as there are starts, each of which is counted from the draw's own."""
    flat = array if len(starts) == 1 else array.reshape(-1)
    size = array.size // len(starts)
    for k, start in enumerate(starts):
        window = flat if len(starts) == 1 else flat[k * size : (k + 1) * size]
        backends.launch(module, operand, fusion, window, window, window, draw._replace(start=draw.start + start))


def _run(
    module: Any,
    fusion: Any,
    drawing: Fusion | None,
    mask: Any,
    operand: arrays.Operand,
    second: Any,
    target: Any,
    draw: Draw,
    buffers: Any = None,
) -> None:
    """Run a fusion on an operand and a second array, if there is one, after drawing what it needs of a mask.

    drawing: the fusion that draws the mask; buffers: for the mask, where they are allocated already.
    """
    given = None
    if drawing is not None and fusion.given:
        owner = arrays.stream_owner(operand, target)
        given = _draw_shared(mask, module, owner, buffers or _buffers(mask, owner, drawing.dtype), drawing, draw)
    array = operand.array
    backends.launch(module, operand, fusion, array, array if second is None else second, target, draw, given)


def prepare(
    operand: arrays.Operand,
    how: Any,
    activation: Any,
    training: bool,
    rng: Generator | Stream | None,
    bits: int,
    out: Any,
    backend: str | None,
    shard: Shard | None = None,
    context: Context | None = None,
) -> Prepared:
    """Check a call and allocate for it.

    operand: x; how: the Variation; context: what holds for the call, by default what holds for the code that runs.
    """
    strength, noise, prediction, mask, axis, other, copies = how
    context = current() if context is None else context
    if training is not True and training is not False:
        training = check_truth("training", training)
    acts = training and context.on
    # Numbers of the usual types are checked where a plan is made of them, once.
    p = strength if acts and type(strength) is float else noise.check(strength)
    bits = bits if type(bits) is int else check_bits(bits)
    noise = noise if acts else prediction
    if copies is not None:
        operand = arrays.repeated(operand, copies)
    x, kind, _ = operand
    activation, rng = find_activation(activation), rng_of(rng, context)
    counted, window, place = False, False, (0, x.size, 0)
    if mask is not None or shard is not None or context.first:
        mask, place = _placed(x, mask, axis, context.first, shard, copies)
        counted, window = (False, place[1] < x.size) if mask is None else (mask.counted, mask.window)
    plan = _plan(x.dtype, noise, p, activation, bits, mask is not None, counted, window, rng.stored)
    module = backends.choose(kind, backend)
    second = x
    if noise.two_inputs:
        second = arrays.as_operand("previous", other)
        arrays.check_like("previous", second, operand.likeness())
        second = second.array
    if out is not None:
        target = arrays.target_of("out", out, operand, "x")
    elif copies is not None:
        target = arrays.empty(x.shape, x.dtype, operand)  # like x it would have the samples innermost
    else:
        target = arrays.empty_like(operand)
    if noise.two_inputs and out is not None:
        arrays.check_apart("out", target, second, "previous")
    buffers = None if plan.mask is None else _buffers(mask, arrays.stream_owner(operand, target), plan.mask.dtype)
    return Prepared(operand, second, target, out, module, plan, mask, buffers, rng, place)


def _placed(
    x: Any, mask: Any, axis: int | None, first: int, shard: Shard | None, copies: int | None
) -> tuple[Any, tuple[int, int, int]]:
    """The mask as a Shared, as Blocks or None, and where it is drawn: start, row and pitch of a Draw."""
    if shard is not None:
        if isinstance(mask, Blocks):
            raise ValueError("dropblock does not support shards: its normalisation needs the whole array")
        shard = _shard_of(x, shard, copies)
    shape = tuple(x.shape) if shard is None else shard.shape
    if (mask is not None or shard is not None) and not isinstance(mask, Blocks):
        mask = shared(tuple(x.shape), (None,) * len(shape) if mask is None else check_mask_shape(mask), axis, shard)
    start, row, pitch = 0, x.size, 0
    if shard is not None and mask is None and x.size:
        row, pitch, (start,) = rows(tuple(x.shape), shard)
    if first and axis is not None and x.ndim and x.size:
        start += first * (math.prod(shape) // shape[axis] if mask is None else mask.per_sample)
        if start + (math.prod(shape) if mask is None else mask.drawn) > 2**64:
            raise ValueError(f"first must leave room for the mask below 2**64, got {first}")
    return mask, (start, row, pitch)


def _shard_of(x: Any, shard: Any, copies: int | None = None) -> Shard:
    """The shard that x is, with x repeated along a new first axis if there are copies."""
    if not isinstance(shard, Shard):
        raise TypeError(f"shard must be a gpudrop.Shard or None, got {name_of(type(shard))}")
    if copies is not None:
        shard = Shard((None, *shard.shape), (0, *shard.start))
    return within(shard, tuple(x.shape))


def draw_mask(
    shape: tuple[int, ...],
    p: float,
    rng: Generator | Stream,
    bits: int,
    start: int,
    operand: arrays.Operand,
    backend: str | None,
    shard: Shard | None = None,
) -> Any:
    """The mask of `dropout` itself as an array of an operand's kind; the numbers are checked."""
    context = current()
    rng = rng_of(rng, context)
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
        raise ValueError(f"start must leave room for the mask below 2**64, got {start}")
    numbers = DROPOUT.numbers(p, bits) if context.on else None
    bits, stored = (bits, rng.stored) if numbers else (0, False)
    drawn_here = {"window": row * len(starts) < mask.size, "stored": stored} if numbers else {}
    fusion = Fusion("mask", find_activation(None), bits, "bool", DRAWN["keep"], **drawn_here)
    seed, call = take(rng, module, operand._replace(array=mask)) if numbers else (0, 0)
    draw = Draw(seed, call, start, *(numbers or Numbers()), row, pitch)
    _draw_windows(module, operand, fusion, mask, draw, starts)
    return operand.give_back(mask)
