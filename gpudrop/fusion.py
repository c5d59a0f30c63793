"""Fusion: the description of one fused operation, from which every backend builds its kernel.

What varies between kernels is a field here, and what one element goes through is a formula here, so
a new operand is a new field and a few lines per loop, never a new family of kernels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from gpudrop.activations import Activation
from gpudrop.random_bits import lanes

# The storage and the arithmetic of each dtype: kernels see 16-bit floats as their bits.
STORAGE = {"float16": "uint16", "bfloat16": "uint16", "float32": "float32", "float64": "float64", "bool": "uint8"}
REAL = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64", "bool": "float32"}


@dataclass(frozen=True)
class Fusion:
    """One fused operation: out[i] = element(keep, scale, a[i], b[i]).

    Attributes
    ----------
    direction : {"forward", "backward", "mask"}
        forward: a = b = x.  backward: a = dy, b = what the activation's slope is a function of.
        mask: 1 where kept, out of nothing.
    activation : Activation
    bits : {0, 8, 16, 32}
        Random bits per element; with 0 nothing is drawn and everything is kept.
    dtype : {"float16", "bfloat16", "float32", "float64", "bool"}
    """

    direction: str
    activation: Activation
    bits: int
    dtype: str

    @property
    def name(self):
        """The kernel's name, as a profiler shows it."""
        return f"gpudrop_{self.activation.name}_{self.direction}_{self.bits}"

    @property
    def storage(self):
        """The name of the NumPy dtype in which kernels see the elements."""
        return STORAGE[self.dtype]

    @property
    def real(self):
        """The name of the NumPy dtype of the arithmetic."""
        return REAL[self.dtype]

    @property
    def chunk(self):
        """Elements per step of a kernel: those of one Philox call."""
        return lanes(self.bits or 16)

    @cached_property
    def element(self):
        """The formula of one element."""
        value, slope = self.activation.value, self.activation.slope
        if self.direction == "mask":

            def element(keep: bool, scale, a, b):
                return 1 if keep else 0

        elif self.direction == "forward":

            def element(keep: bool, scale, a, b):
                return value(a) * scale if keep else 0

        elif self.activation.slope_of == "output":

            def element(keep: bool, scale, a, b):
                return a * slope(b) * scale if slope(b) != 0 else 0

        else:

            def element(keep: bool, scale, a, b):
                return a * slope(b) * scale if keep else 0

        return element


class Draw(NamedTuple):
    """What varies from call to call without another kernel: the numbers a kernel is given.

    Attributes
    ----------
    seed, call : int
        The stream.
    start : int
        The index of the first element in the mask's own shape.
    limit : int
        The largest field that drops its element, threshold - 1: unlike the threshold it always fits a
        field. A threshold of 0 draws nothing and never gets here.
    scale : float
        What kept elements are multiplied by.
    """

    seed: int = 0
    call: int = 0
    start: int = 0
    limit: int = 0
    scale: float = 1.0
