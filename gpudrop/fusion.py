"""Fusion: the description of one fused operation, from which every backend builds its kernel.

What varies between kernels is a field here, and what one element goes through is a formula here, so
a new operand is a new field and a few lines per loop, never a new family of kernels.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gpudrop.formulas.activations import Activation
from gpudrop.formulas.noises import DROPOUT, Noise
from gpudrop.formulas.philox import lanes

# The storage and the arithmetic of each dtype: kernels see 16-bit floats as their bits.
STORAGE = {"float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8"}
REAL = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64", "bool": "float32"}


@dataclass(frozen=True)
class Fusion:
    """One fused operation: out[i] = element(drawn, scale, shift, a[i], b[i]).

    Attributes
    ----------
    direction : {"forward", "backward", "mask"}
        forward: a = x, and b = x or the noise's second array.  backward: a = dy, b = what the activation's
        slope is a function of.  mask: what is drawn itself, out of nothing.
    activation : Activation
    bits : {0, 8, 16, 32}
        Random bits per element; with 0 nothing is drawn here.
    dtype : {"float16", "bfloat16", "float32", "float64", "bool"}
    noise : Noise
    given : bool
        Whether what is drawn for an element is read from an array that was made before, and broadcasts.
    counted : bool
        Whether scale is how many elements there are for one of those kept: DropBlock's normalisation.
    window : bool
        Whether the elements are a window of the mask, in rows that lie apart in it.
    stored : bool
        Whether the stream's numbers are read from the device's memory, as what is captured in a graph needs it.
    """

    direction: str
    activation: Activation
    bits: int
    dtype: str
    noise: Noise = DROPOUT
    given: bool = False
    counted: bool = False
    window: bool = False
    stored: bool = False

    def __hash__(self):
        return self._hash  # every launch looks its kernel up by it

    @cached_property
    def _hash(self):
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def name(self):
        """The kernel's name, as a profiler shows it."""
        noise = "" if self.noise.name in ("dropout", "plain", "mask") else f"_{self.noise.name}"
        suffix = "_given" * self.given + "_counted" * self.counted
        suffix += "_window" * self.window + "_stored" * self.stored
        return f"gpudrop_{self.activation.name}{noise}_{self.direction}_{self.bits}{suffix}"

    @property
    def storage(self):
        """The name of the NumPy dtype in which kernels see the elements."""
        return STORAGE[self.dtype]

    @cached_property
    def stored_dtype(self):
        """The same as a NumPy dtype."""
        return np.dtype(self.storage)

    @property
    def real(self):
        """The name of the NumPy dtype of the arithmetic."""
        return REAL[self.dtype]

    @property
    def approximate(self):
        """Whether results are rounded to 16 bits, which hides an error of some units in the last place of a float32."""
        return self.dtype in ("float16", "bfloat16")

    @property
    def given_mask(self):
        """Whether truth values are given, and not numbers."""
        return self.given and self.keeps

    @cached_property
    def chunk(self):
        """Elements per step of a CUDA kernel: those of one Philox call, but at most 64 bytes, for want of registers.

        Where none is made they are those of 16 bytes, or of 32 where the place of a given mask is to be found.
        """
        itemsize = np.dtype(self.storage).itemsize
        if self.bits:
            return min(lanes(self.bits), 64 // itemsize)
        return min(16, 32 // itemsize) if self.given_mask else 16 // itemsize

    @cached_property
    def shares(self):
        """How many chunks share a Philox call."""
        return lanes(self.bits) // self.chunk if self.bits else 1

    @property
    def reads(self):
        """How many arrays of elements it reads: a, or a and b, or none."""
        if self.direction == "mask":
            return 0
        second = self.noise.two_inputs if self.direction == "forward" else self.activation.slope_of is not None
        return 1 + second

    @property
    def saves_output(self):
        """Whether y tells the backward pass what was dropped and what the slope is, so that nothing is drawn for it."""
        return self.activation.slope_of == "output" and self.noise.zeroes and not self.counted

    @property
    def acting(self):
        """The noise that acts in this direction: in backward, the one that takes dy to dz."""
        return (self.noise.gradient or self.noise) if self.direction == "backward" else self.noise

    @property
    def keeps(self):
        """Whether what is drawn is a truth value; otherwise it is a real number."""
        return self.acting.drawn in ("keep", None)

    @property
    def drawn_dtype(self):
        """The dtype of an array of what is drawn."""
        return "bool" if self.keeps else self.real

    @cached_property
    def element(self):
        """The formula of one element."""
        noise, value, slope = self.acting.value, self.activation.value, self.activation.slope
        if self.direction == "mask":

            def inner(a, b):
                return 0

        elif self.direction == "forward":

            def inner(a, b):
                return value(a)

        elif self.activation.slope_of == "output" and not self.saves_output:

            def inner(a, b):
                return a * slope(value(b))

        else:

            def inner(a, b):
                return a * slope(b)

        if self.direction == "backward" and self.saves_output:

            def element(r: bool, scale, shift, a, b):
                return noise(slope(b) != 0, scale, shift, inner(a, b), b)

        elif self.keeps:

            def element(r: bool, scale, shift, a, b):
                return noise(r, scale, shift, inner(a, b), b)

        else:

            def element(r, scale, shift, a, b):  # type: ignore[misc]  # r's type, which printers read, sets it apart
                return noise(r, scale, shift, inner(a, b), b)

        return element


class Draw(NamedTuple):
    """What varies from call to call without another kernel: the numbers a kernel is given.

    Attributes
    ----------
    seed, call : int
        The stream. For a fusion that has `stored`, seed is an array of both, unsigned 64-bit integers.
    start : int
        The index of the first element in the mask's own shape.
    limit : int
        The largest field that drops its element, threshold - 1: unlike the threshold it always fits a
        field. A threshold of 0 draws nothing and never gets here.
    scale, shift : float
        The noise's own numbers: what kept elements are multiplied by, say.
    row, pitch : int
        For a fusion that has `window`: how many elements follow one another in the mask, and how far apart in it these
        rows begin.
    """

    seed: int = 0
    call: int = 0
    start: int = 0
    limit: int = 0
    scale: float = 1.0
    shift: float = 0.0
    row: int = 0
    pitch: int = 0


class Given(NamedTuple):
    """What was drawn before a kernel that has `given` runs, and where its elements find it.

    Element i reads array[i // (run * period * repeat) * period + i // run % period]: from the right, `run`
    elements share a number, `period` of these follow one another, and come `repeat` times before the next ones.

    Attributes
    ----------
    array : array
        One-dimensional, contiguous, of the fusion's `drawn_dtype`.
    period, repeat, run : int
    kept : array, optional
        One unsigned 64-bit integer: how many elements of array are kept, for a fusion that has `counted`.
    """

    array: Any
    period: int = 1
    repeat: int = 1
    run: int = 1
    kept: Any = None
