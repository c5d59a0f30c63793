"""What is measured: cases, as data."""

from dataclasses import dataclass, replace

import numpy as np
from ml_dtypes import bfloat16

from gpudrop.formulas.activations import find_activation
from gpudrop.variants import FAMILY

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": bfloat16}
LARGE = 2**26  # elements: beyond the last-level cache of all but the largest processors


@dataclass(frozen=True)
class Case:
    """One row of a table: what every contender computes.

    Attributes
    ----------
    section : str
        The table it belongs to; a GPU's section "launch" is timed by the CPU's clock.
    activation, dtype : str
    size : int
        Elements of x.
    backward : bool
        Whether the gradient is taken back as well.
    threads : int
    p : float
        The probability of dropping.
    variant : str, optional
        The variant's name, if it is not dropout.
    forward : bool, optional
        Whether y is computed; False, with backward, is the backward pass alone.
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

    @property
    def two_inputs(self):
        """Whether the forward pass reads an array beside x, and the backward pass writes one beside dx."""
        return self.variant is not None and len(FAMILY[self.variant].inputs) > 1

    @property
    def reads_saved(self):
        """Whether the backward pass reads (or for two inputs writes) an array beside dy and dx."""
        return self.two_inputs or find_activation(self.activation).slope_of is not None

    @property
    def bytes(self):
        """Bytes that must move between the arrays and the processor: x, y; dy, what is saved, dx."""
        arrays = self.forward * (2 + self.two_inputs) + self.backward * (2 + self.reads_saved)
        return arrays * self.array_bytes

    @property
    def array_bytes(self):
        """Bytes of one array."""
        return self.size * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def passes(self):
        """The forward pass alone, and the backward pass alone."""
        return replace(self, forward=True, backward=False), replace(self, forward=False, backward=True)
