"""The kernels of dropout: their inputs, outputs and formulas, from an activation and a noise."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from gpudrop.formulas import Drawn, Pair
from gpudrop.formulas.activations import Activation
from gpudrop.formulas.noises import DRAWN, DROPOUT, DROPPED, Noise
from gpudrop.kernels.spec import Draws, Kernel, Reads, Slot

Source = Draws | Reads | None


@lru_cache(maxsize=1024)
def forward(activation: Activation, dtype: str, source: Source, noise: Noise = DROPOUT, bits: bool = False) -> Kernel:
    """y = noise(activation(x)). A noise with two inputs also takes the second array.

    bits: whether a second output has the bits that the backward pass reads.
    """
    names = ("x",) if noise.second_input is None else ("x", noise.second_input)
    outputs: tuple[str, ...] = ("y",)
    formula = _value(activation, noise)
    if bits:
        outputs, formula = ("y", "bits"), _recorded(activation, noise, _bits_alone(activation, noise, source))
    return _kernel("forward", activation, noise, dtype, source, names, outputs, formula)


@lru_cache(maxsize=1024)
def backward(
    activation: Activation,
    dtype: str,
    source: Source,
    noise: Noise = DROPOUT,
    gradients: tuple[str, ...] = ("dx",),
    bits: bool = False,
) -> Kernel:
    """The requested ones of `noise.gradients`, from dy and what `saves` names, or from dy and bits."""
    saved = "bits" if bits else saves(activation, noise, source)
    alone = saved == "bits" and _bits_alone(activation, noise, source)
    names = ("dy",) if saved is None or "dx" not in gradients else ("dy", saved)
    formula = _slope(activation, noise, saved, alone, gradients)
    if saved == "y" or alone:
        source = None
    return _kernel("backward", activation, noise, dtype, source, names, gradients, formula)


@lru_cache(maxsize=1024)
def drawing(drawn: str | None, dtype: str, source: Source) -> Kernel:
    """The kernel that writes random values. It has no full inputs."""
    noise = DRAWN[drawn]
    return _kernel("mask", None, noise, dtype, source, (), ("mask",), _drawn(noise))


def saves(activation: Activation, noise: Noise, source: Source) -> str | None:
    """The array that the backward pass reads besides dy if it reads no bits: "x", "y" or None.

    It is "y" if the sign of y determines the slope and which elements were dropped. Then nothing is drawn again.
    """
    if activation.slope_of == "output":
        counted = isinstance(source, Reads) and source.counted
        return "y" if noise.zeroes and not counted else "x"
    return None if activation.slope_of is None else "x"


def _bits_alone(activation: Activation, noise: Noise, source: Source) -> bool:
    """Whether the saved bits also say which elements were dropped, so that the backward pass draws nothing.

    Otherwise they only choose between the two slopes.
    """
    counted, slopes = isinstance(source, Reads) and source.counted, activation.slopes
    drops = noise.drawn in ("keep", None) and (noise.gradient or noise).zeroes and noise.gradients == ("dx",)
    return slopes is not None and slopes[0] == 0 and drops and not counted


def _kernel(
    direction: str,
    activation: Activation | None,
    noise: Noise,
    dtype: str,
    source: Source,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    formula: Callable[..., Any],
) -> Kernel:
    acting = (noise.gradient or noise) if direction == "backward" else noise
    if acting.drawn is None:
        source = None
    name = f"gpudrop_{'identity' if activation is None else activation.name}"
    name += "" if noise.name in ("dropout", "plain", "mask") else f"_{noise.name}"
    name += f"_{direction}_{source.bits if isinstance(source, Draws) else 0}"
    slots, results = (tuple(Slot(n, "bits" if n == "bits" else "full") for n in names) for names in (inputs, outputs))
    name += "_bits" * ("bits" in (*inputs, *outputs))
    if isinstance(source, Reads):
        name += "_masked" + "_counted" * source.counted
        slots += (Slot("mask", "mask"),)
    elif source is not None:
        name += "_window" * source.window + "_stored" * source.stored
    return Kernel(name, slots, results, formula, acting.drawn, source, dtype)


# Formulas. Each is created once, because a kernel's cache key contains its formula.


@cache
def _value(activation: Activation, noise: Noise) -> Callable[..., Any]:
    act, value = noise.value, activation.value

    def of_one(r: Drawn, scale, shift, x):
        return act(r, scale, shift, value(x), x)

    def of_two(r: Drawn, scale, shift, x, other):
        return act(r, scale, shift, value(x), other)

    return of_one if noise.second_input is None else of_two


@cache
def _recorded(activation: Activation, noise: Noise, alone: bool) -> Callable[..., Any]:
    """`_value` and the bit that the backward pass reads."""
    act, value, slope = noise.value, activation.value, activation.slope
    zero = activation.slopes[0]  # type: ignore[index]
    by_value = activation.slope_of == "output"

    def is_one_of_input(x) -> bool:
        return slope(x) != zero

    def is_one_of_value(x) -> bool:
        return slope(value(x)) != zero

    is_one = is_one_of_value if by_value else is_one_of_input

    def of_kept(r: Drawn, x):
        return 1 if r and is_one(x) else 0

    def of_all(r: Drawn, x):
        return 1 if is_one(x) else 0

    bit = of_kept if alone else of_all

    def of_one(r: Drawn, scale, shift, x) -> Pair:
        return act(r, scale, shift, value(x), x), bit(r, x)

    def of_two(r: Drawn, scale, shift, x, other) -> Pair:
        return act(r, scale, shift, value(x), other), bit(r, x)

    return of_one if noise.second_input is None else of_two


@cache
def _drawn(noise: Noise) -> Callable[..., Any]:
    act = noise.value

    def element(r: Drawn, scale, shift):
        return act(r, scale, shift, 0, 0)

    return element


@cache
def _slope(
    activation: Activation, noise: Noise, saved: str | None, alone: bool, gradients: tuple[str, ...]
) -> Callable[..., Any]:
    through, act = _through(activation, noise, saved, alone), (noise.second or DROPPED).value

    def first(r: Drawn, scale, shift, dy):
        return through(r, scale, shift, dy, dy)

    def second(r: Drawn, scale, shift, dy):
        return act(r, scale, shift, dy, dy)

    def both(r: Drawn, scale, shift, dy) -> Pair:
        return through(r, scale, shift, dy, dy), act(r, scale, shift, dy, dy)

    def both_of_saved(r: Drawn, scale, shift, dy, saved) -> Pair:
        return through(r, scale, shift, dy, saved), act(r, scale, shift, dy, dy)

    def both_of_bit(r: Drawn, scale, shift, dy, bit: bool) -> Pair:
        return through(r, scale, shift, dy, bit), act(r, scale, shift, dy, dy)

    if gradients == ("dx",):
        return first if saved is None else through
    if "dx" not in gradients:
        return second
    return both if saved is None else both_of_bit if saved == "bits" else both_of_saved


def _through(activation: Activation, noise: Noise, saved: str | None, alone: bool) -> Callable[..., Any]:
    """The formula of the gradient of x.

    If the gradient of a dropped element is 0, so is that of an element whose slope is 0: an infinite dy has no effect.
    """
    acting, value, slope = noise.gradient or noise, activation.value, activation.slope
    act, selects = acting.value, acting.zeroes and acting.drawn == "keep"

    def of_x(r: Drawn, scale, shift, dy, x):
        return act(r, scale, shift, dy * slope(x), x)

    def of_value(r: Drawn, scale, shift, dy, x):
        return act(r, scale, shift, dy * slope(value(x)), x)

    def of_value_if_kept(r: Drawn, scale, shift, dy, x):
        s = slope(value(x))
        return act(r and s != 0, scale, shift, dy * s, x)

    def of_y(r: Drawn, scale, shift, dy, y):
        return act(slope(y) != 0, scale, shift, dy * slope(y), y)

    if saved == "bits":
        return _through_bit(act, activation, selects, alone)
    if saved == "y":
        return of_y
    return of_x if activation.slope_of != "output" else of_value_if_kept if selects else of_value


def _through_bit(act: Any, activation: Activation, selects: bool, alone: bool) -> Callable[..., Any]:
    zero, one = activation.slopes  # type: ignore[misc]

    def of_bit(r: Drawn, scale, shift, dy, bit: bool):
        return act(r, scale, shift, dy * (one if bit else zero), dy)

    def of_bit_if_kept(r: Drawn, scale, shift, dy, bit: bool):
        return act(r and bit, scale, shift, dy * one, dy)

    def of_bit_alone(r: Drawn, scale, shift, dy, bit: bool):
        return act(bit, scale, shift, dy * one, dy)

    if not selects or zero != 0:
        return of_bit
    return of_bit_alone if alone else of_bit_if_kept


def _packed(r: Drawn, scale, shift, mask):
    return mask


def _unpacked(r: Drawn, scale, shift, bit: bool):
    return 1 if bit else 0


PACK = Kernel("gpudrop_pack", (Slot("mask"),), (Slot("bits", "bits"),), _packed, None, None, "bool")
"""The kernel that writes a boolean array as bits."""
UNPACK = Kernel("gpudrop_unpack", (Slot("bits", "bits"),), (Slot("mask"),), _unpacked, None, None, "bool")
"""The kernel that writes bits as a boolean array."""
