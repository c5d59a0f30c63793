"""The cases of a benchmark, as data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from ml_dtypes import bfloat16

from gpudrop.formulas.activations import find_activation
from gpudrop.variants import FAMILY

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": bfloat16}
LARGE = 2**26  # elements: beyond the last-level cache of all but the largest processors


def every_other_column(values):
    """Store a matrix in every other column of a matrix of twice the width."""
    wide = np.zeros((len(values), 2 * values.shape[1]), values.dtype)
    wide[:, ::2] = values
    return wide[:, ::2]


LAYOUTS: dict[str, tuple[Callable, Literal["C", "F"]]] = {
    "C": (np.ascontiguousarray, "C"),
    "Fortran": (np.asfortranarray, "F"),
    "every other column": (every_other_column, "C"),
    "transposed": (np.asfortranarray, "C"),
}
"""Layout -> (the function that stores x in it, the order of out=). The transpose of C order is Fortran order."""


@dataclass(frozen=True)
class Case:
    """One row of a table: the computation that every contender performs.

    Attributes
    ----------
    section : str
        The table of the case. On a GPU, the section "launch" is timed by the CPU's clock.
    activation, dtype : str
        The activation before dropout, and the dtype of the arrays.
    size : int
        The number of elements of x.
    backward : bool
        Whether the gradient is computed too.
    threads : int
        The number of CPU threads.
    p : float
        The probability of dropping an element.
    variant : str, optional
        The name of the variant, if it is not dropout.
    forward : bool, optional
        Whether y is computed. If False, with backward=True, only the backward pass is measured.
    bits : int, optional
        The random bits per element in gpudrop.
    layout : str, optional
        The layout of x and out=: a key of `LAYOUTS`.
    """

    section: str
    activation: str = "relu"
    dtype: str = "float32"
    size: int = LARGE
    backward: bool = False
    threads: int = 1
    p: float = 0.1
    variant: str | None = None
    forward: bool = True
    bits: int = 16
    layout: str = "C"

    @property
    def shape(self):
        """The shape of x: a square in the section "layouts", otherwise one dimension."""
        return (math.isqrt(self.size),) * 2 if self.section == "layouts" else (self.size,)

    @property
    def two_inputs(self):
        """Whether the forward pass reads two arrays, and the backward pass writes two gradients."""
        return self.variant is not None and len(FAMILY[self.variant].inputs) > 1

    @property
    def is_product(self):
        """Whether y is a product of two inputs. Then the backward pass reads both and writes two gradients."""
        return self.variant is not None and FAMILY[self.variant].is_product

    @property
    def reads_saved(self):
        """Whether the backward pass reads (or writes, for a second gradient) another array besides dy and dx."""
        writes = self.variant is not None and len(FAMILY[self.variant].noise.gradients) > 1
        return self.is_product or writes or find_activation(self.activation).slope_of is not None

    @property
    def bytes(self):
        """The bytes that must move between memory and processor: x and y; dy, the saved array and dx."""
        arrays = self.forward * (2 + self.two_inputs) + self.backward * (2 + self.reads_saved)
        arrays += self.backward * 2 * self.is_product  # the second input and its gradient
        return arrays * self.array_bytes

    @property
    def array_bytes(self):
        """The bytes of one array."""
        return self.size * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def passes(self):
        """The cases of the forward pass alone and of the backward pass alone."""
        return replace(self, forward=True, backward=False), replace(self, forward=False, backward=True)
