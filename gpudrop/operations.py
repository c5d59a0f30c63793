"""The kernels of dropout: their inputs, outputs and formulas, from an activation, a noise and its neighbours."""

from functools import cache, lru_cache
from typing import Any, NamedTuple

from gpudrop.formulas import Drawn, assembled
from gpudrop.formulas.activations import Activation
from gpudrop.formulas.noises import DRAWN, DROPOUT, DROPPED, Noise
from gpudrop.kernels.spec import WIDTHS, Draws, Kernel, Reads, Slot

Source = Draws | Reads | None


class Neighbours(NamedTuple):
    """The operands that are fused with dropout: y = noise(factor * activation(x + bias)).

    Attributes
    ----------
    bias : str
        The dtype of the bias, a row; "" if there is none.
    factor : str
        The name of the factor: "gain", a row, or "value", which is like x; "" if there is none.
    factor_dtype : str
        The dtype of the factor.
    wide : str
        The dtype of y and of the noise's second input, if it is not that of x.
    """

    bias: str = ""
    factor: str = ""
    factor_dtype: str = ""
    wide: str = ""


NONE = Neighbours()


@lru_cache(maxsize=1024)
def forward(
    activation: Activation,
    dtype: str,
    source: Source,
    noise: Noise = DROPOUT,
    bits: bool = False,
    neighbours: Neighbours = NONE,
) -> Kernel:
    """y = noise(factor * activation(x + bias)). A noise with two inputs also takes the second array.

    dtype: that of x. bits: whether a second output has the bits that the backward pass reads.
    """
    _, factor, _, wide = neighbours
    inputs = [Slot("x", dtype=dtype)]
    if noise.second_input is not None:
        inputs += [Slot(noise.second_input, dtype=wide or dtype)]
    z = _activated(neighbours) + (f" * {factor}" if factor else "")
    results, outputs = [f"apply(r, scale, shift, {z}, {noise.second_input or 'x'})"], [Slot("y", dtype=wide or dtype)]
    if bits:
        outputs += [Slot("bits", "bits")]
        alone = _bits_alone(activation, noise, source)
        results += [f"1 if {'r and ' * alone}{_slope(activation, neighbours)} != zero else 0"]
    names = {"apply": noise.value, **_names(activation)}
    inputs += _of_neighbours(neighbours, dtype)
    return _kernel("forward", activation, noise, source, inputs, outputs, (), results, names)


@lru_cache(maxsize=1024)
def backward(
    activation: Activation,
    dtype: str,
    source: Source,
    noise: Noise = DROPOUT,
    gradients: tuple[str, ...] = ("dx",),
    bits: bool = False,
    neighbours: Neighbours = NONE,
) -> Kernel:
    """The requested ones of the gradients, from dy and what `saves` names, or from dy and bits.

    gradients: the names of `noise.gradients`, and those of the neighbours: "dbias", and "dgain" or "dvalue". dx is one
    of them if any of those is. The outputs of layout "sums" are partial sums.
    """
    _, factor, _, wide = neighbours
    saved = "bits" if bits else saves(activation, dtype, noise, source, neighbours)
    alone = saved == "bits" and _bits_alone(activation, noise, source)
    through = noise.gradient or noise
    names = {"apply": through.value, "second": (noise.second or DROPPED).value, **_names(activation)}
    kept, dz, lines = _through(activation, through, saved, alone, neighbours)
    inputs, outputs, results = [Slot("dy", dtype=wide or dtype)], [], []
    if "dx" in gradients:
        lines += (f"dx = apply({kept}, scale, shift, {dz}{f' * {factor}' if factor else ''}, dy)",)
        inputs += [Slot("x", dtype=dtype)] * (saved == "x") + [Slot("y", dtype=dtype)] * (saved == "y")
        inputs += _of_neighbours(neighbours, dtype) if saved == "x" else []
        inputs += [Slot("bits", "bits")] * (saved == "bits")
    else:
        lines = ()
    for name in gradients:
        layout = "sums" if name in ("dbias", "dgain") else "full"
        if name in ("dx", "dbias"):
            results += ["dx"]
        elif factor and name == f"d{factor}":
            results += [f"apply(r, scale, shift, dy * {_activated(neighbours)}, dy)"]
        else:
            results += ["second(r, scale, shift, dy, dy)"]
        outputs += [Slot(name, layout, "" if layout == "sums" else dtype)]
    if saved == "y" or alone:
        source = None
    return _kernel("backward", activation, noise, source, inputs, outputs, lines, results, names)


@lru_cache(maxsize=1024)
def drawing(drawn: str | None, dtype: str, source: Source) -> Kernel:
    """The kernel that writes random values. It has no full inputs."""
    noise, outputs = DRAWN[drawn], [Slot("mask", dtype=dtype)]
    results = ["apply(r, scale, shift, 0, 0)"]
    return _kernel("mask", None, noise, source, [], outputs, (), results, {"apply": noise.value})


def saves(
    activation: Activation, dtype: str, noise: Noise, source: Source, neighbours: Neighbours = NONE
) -> str | None:
    """The array that the backward pass reads besides dy if it reads no bits: "x", "y" or None.

    It is "y" if the sign of y determines the slope and which elements were dropped. Then nothing is drawn again. With a
    bias of a wider dtype than x it does not: y may be 0 for a positive x + bias that is too small for y's dtype.
    """
    if neighbours.factor:
        return "x"
    if activation.slope_of == "output":
        counted = isinstance(source, Reads) and source.counted
        hidden = bool(neighbours.bias) and WIDTHS[neighbours.bias] > WIDTHS[dtype]
        return "y" if noise.zeroes and not counted and not hidden else "x"
    return None if activation.slope_of is None else "x"


def _bits_alone(activation: Activation, noise: Noise, source: Source) -> bool:
    """Whether the saved bits also say which elements were dropped, so that the backward pass draws nothing.

    Otherwise they only choose between the two slopes.
    """
    counted, slopes = isinstance(source, Reads) and source.counted, activation.slopes
    drops = noise.drawn in ("keep", None) and (noise.gradient or noise).zeroes and noise.gradients == ("dx",)
    return slopes is not None and slopes[0] == 0 and drops and not counted


def _of_neighbours(neighbours: Neighbours, dtype: str) -> list[Slot]:
    bias, factor, factor_dtype, _ = neighbours
    slots = [Slot("value", dtype=dtype)] * (factor == "value") + [Slot("bias", "row", bias)] * bool(bias)
    return slots + [Slot("gain", "row", factor_dtype)] * (factor == "gain")


# Parts of formulas, as text. apply, second, activate and slope are formulas.


def _names(activation: Activation) -> dict[str, Any]:
    slopes = {} if activation.slopes is None else dict(zip(("zero", "one"), activation.slopes, strict=True))
    return {"activate": activation.value, "slope": activation.slope, **slopes}


def _activated(neighbours: Neighbours) -> str:
    return f"activate(x{' + bias' if neighbours.bias else ''})"


def _slope(activation: Activation, neighbours: Neighbours) -> str:
    if activation.slope_of == "output":
        return f"slope({_activated(neighbours)})"
    return f"slope(x{' + bias' if neighbours.bias else ''})"


def _through(
    activation: Activation, noise: Noise, saved: str | None, alone: bool, neighbours: Neighbours
) -> tuple[str, str, tuple[str, ...]]:
    """The random value and the gradient dz that the noise takes, and the lines before it.

    If the gradient of a dropped element is 0, so is that of an element whose slope is 0: an infinite dy has no effect.
    """
    selects = noise.zeroes and noise.drawn == "keep"
    if saved == "bits":
        if selects and activation.slopes is not None and activation.slopes[0] == 0:
            return "bit" if alone else "r and bit", "dy * one", ()
        return "r", "dy * (one if bit else zero)", ()
    if saved == "y":
        return "slope(y) != 0", "dy * slope(y)", ()
    if activation.slope_of is None:
        return "r", "dy", ()
    if activation.slope_of == "output" and selects:
        return "r and s != 0", "dy * s", (f"s = {_slope(activation, neighbours)}",)
    return "r", f"dy * {_slope(activation, neighbours)}", ()


def _kernel(
    direction: str,
    activation: Activation | None,
    noise: Noise,
    source: Source,
    inputs: list[Slot],
    outputs: list[Slot],
    lines: tuple[str, ...],
    results: list[str],
    names: dict[str, Any],
) -> Kernel:
    acting = (noise.gradient or noise) if direction == "backward" else noise
    if acting.drawn is None:
        source = None
    # The kernel has the widest dtype of its elements. Other slots keep their own.
    dtype = max((slot.dtype for slot in (*inputs, *outputs) if slot.layout == "full"), key=WIDTHS.__getitem__)
    inputs, outputs = (
        [slot._replace(dtype="" if slot.dtype == dtype else slot.dtype) for slot in slots]
        for slots in (inputs, outputs)
    )
    name = f"gpudrop_{'identity' if activation is None else activation.name}"
    name += "" if noise.name in ("dropout", "plain", "mask") else f"_{noise.name}"
    beside = [slot for slot in inputs if slot.name in ("bias", "gain", "value")]
    name += "".join(f"_{slot.name}{slot.dtype and '_'}{slot.dtype}" for slot in beside)
    name += "_and_sums" * any(slot.layout == "sums" for slot in outputs)
    narrow = {slot.dtype for slot in (*inputs, *outputs) if slot.layout == "full" and slot.dtype}
    name += "".join(f"_of_{narrower}" for narrower in sorted(narrow))
    name += f"_{direction}_{source.bits if isinstance(source, Draws) else 0}"
    name += "_bits" * any(slot.layout == "bits" for slot in (*inputs, *outputs))
    parameters = ["r: Drawn", "scale", "shift", *("bit: bool" if s.layout == "bits" else s.name for s in inputs)]
    if isinstance(source, Reads):
        name += "_masked" + "_counted" * source.counted
        inputs += [Slot("mask", "mask")]
    elif source is not None:
        name += "_window" * source.window + "_stored" * source.stored
    formula = assembled(tuple(parameters), lines, tuple(results), tuple(names.items()))
    return Kernel(name, tuple(inputs), tuple(outputs), formula, acting.drawn, source, dtype)


def _same(r: Drawn, scale, shift, x):
    return x


def _unpacked(r: Drawn, scale, shift, bit: bool):
    return 1 if bit else 0


PACK = Kernel("gpudrop_pack", (Slot("mask"),), (Slot("bits", "bits"),), _same, None, None, "bool")
"""The kernel that writes a boolean array as bits."""
UNPACK = Kernel("gpudrop_unpack", (Slot("bits", "bits"),), (Slot("mask"),), _unpacked, None, None, "bool")
"""The kernel that writes bits as a boolean array."""


@cache
def adding(dtype: str) -> Kernel:
    """The kernel that adds up groups of rows of partial sums. dtype: that of the arithmetic."""
    return Kernel(f"gpudrop_add_{dtype}", (Slot("x"),), (Slot("sums", "sums"),), _same, None, None, dtype)


@cache
def rounding(dtype: str, real: str) -> Kernel:
    """The kernel that rounds sums to the dtype of their operand."""
    outputs = (Slot("y", dtype="" if dtype == real else dtype),)
    return Kernel(f"gpudrop_round_{dtype}", (Slot("x"),), outputs, _same, None, None, real)
