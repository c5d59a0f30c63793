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
def forward(activation: Activation, dtype: str, source: Source, noise: Noise = DROPOUT) -> Kernel:
    """y = noise(activation(x)). A noise with two inputs also takes the second array."""
    names = ("x", "previous") if noise.two_inputs else ("x",)
    return _kernel("forward", activation, noise, dtype, source, names, ("y",), _value(activation, noise))


@lru_cache(maxsize=1024)
def backward(
    activation: Activation,
    dtype: str,
    source: Source,
    noise: Noise = DROPOUT,
    gradients: tuple[str, ...] = ("dx",),
) -> Kernel:
    """The requested gradients, "dx" and "dprevious", from dy and the array that `saves` names."""
    saved = saves(activation, noise, source)
    if saved == "y":
        source = None
    names = ("dy",) if saved is None or "dx" not in gradients else ("dy", saved)
    formula = _slope(activation, noise, saved, gradients)
    return _kernel("backward", activation, noise, dtype, source, names, gradients, formula)


@lru_cache(maxsize=1024)
def drawing(drawn: str | None, dtype: str, source: Source) -> Kernel:
    """The kernel that writes random values. It has no full inputs."""
    noise = DRAWN[drawn]
    return _kernel("mask", None, noise, dtype, source, (), ("mask",), _drawn(noise))


def saves(activation: Activation, noise: Noise, source: Source) -> str | None:
    """The array that the backward pass reads besides dy: "x", "y" or None.

    It is "y" if the sign of y determines the slope and which elements were dropped. Then nothing is drawn again.
    """
    if activation.slope_of == "output":
        counted = isinstance(source, Reads) and source.counted
        return "y" if noise.zeroes and not counted else "x"
    return None if activation.slope_of is None else "x"


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
    slots = tuple(map(Slot, inputs))
    if isinstance(source, Reads):
        name += "_masked" + "_counted" * source.counted
        slots += (Slot("mask", "mask"),)
    elif source is not None:
        name += "_window" * source.window + "_stored" * source.stored
    return Kernel(name, slots, tuple(map(Slot, outputs)), formula, acting.drawn, source, dtype)


# Formulas. Each is created once, because a kernel's cache key contains its formula.


@cache
def _value(activation: Activation, noise: Noise) -> Callable[..., Any]:
    act, value = noise.value, activation.value

    def of_one(r: Drawn, scale, shift, x):
        return act(r, scale, shift, value(x), x)

    def of_two(r: Drawn, scale, shift, x, previous):
        return act(r, scale, shift, value(x), previous)

    return of_two if noise.two_inputs else of_one


@cache
def _drawn(noise: Noise) -> Callable[..., Any]:
    act = noise.value

    def element(r: Drawn, scale, shift):
        return act(r, scale, shift, 0, 0)

    return element


@cache
def _slope(activation: Activation, noise: Noise, saved: str | None, gradients: tuple[str, ...]) -> Callable[..., Any]:
    through, act = _through(activation, noise, saved), (noise.second or DROPPED).value

    def first(r: Drawn, scale, shift, dy):
        return through(r, scale, shift, dy, dy)

    def second(r: Drawn, scale, shift, dy):
        return act(r, scale, shift, dy, dy)

    def both(r: Drawn, scale, shift, dy) -> Pair:
        return through(r, scale, shift, dy, dy), act(r, scale, shift, dy, dy)

    def both_of_saved(r: Drawn, scale, shift, dy, saved) -> Pair:
        return through(r, scale, shift, dy, saved), act(r, scale, shift, dy, dy)

    if gradients == ("dx",):
        return first if saved is None else through
    if gradients == ("dprevious",):
        return second
    return both if saved is None else both_of_saved


def _through(activation: Activation, noise: Noise, saved: str | None) -> Callable[..., Any]:
    """The formula of the gradient of x."""
    act, value, slope = (noise.gradient or noise).value, activation.value, activation.slope

    def of_x(r: Drawn, scale, shift, dy, x):
        return act(r, scale, shift, dy * slope(x), x)

    def of_value(r: Drawn, scale, shift, dy, x):
        return act(r, scale, shift, dy * slope(value(x)), x)

    def of_y(r: Drawn, scale, shift, dy, y):
        return act(slope(y) != 0, scale, shift, dy * slope(y), y)

    if saved == "y":
        return of_y
    return of_value if activation.slope_of == "output" else of_x
